"""Numbers of bytes and seconds as a person reads them: one format of each, for every message and table.

Files, downloads and disks are counted in thousands (kB, MB, GB), as shops and the Hub count them; what lies in memory,
and its limits, in powers of 1024 (KiB, MiB, GiB), as systems and drivers report it. Three digits at most tell sizes
apart. Not here: measurements of a table with one unit for a column (`bench`).
"""

from __future__ import annotations

from collections.abc import Sequence

_DECIMAL = ("bytes", "kB", "MB", "GB", "TB")
_BINARY = ("bytes", "KiB", "MiB", "GiB", "TiB")


def disk_size(count: int) -> str:
    """Bytes of a file, a download or a disk: "999 bytes", "98.4 MB", "538 MB"."""
    return _scaled(count, 1000, _DECIMAL)


def memory_size(count: int) -> str:
    """Bytes in memory: "22.5 KiB", "310 MiB", "2.0 GiB"."""
    return _scaled(count, 1024, _BINARY)


def duration(seconds: float) -> str:
    """ "0.24 s", "3.2 s", "45 s", "12 min", "3 h 20 min"."""
    if seconds < 59.5:
        digits = 2 if seconds < 0.995 else 1 if seconds < 9.95 else 0
        return f"{seconds:.{digits}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _scaled(count: int, base: int, units: Sequence[str]) -> str:
    """In the first unit that takes three or four digits, one of them behind the point below 100."""
    value, last = float(count), units[-1]
    for unit in units:
        if value < base - 0.5 or unit == last:
            whole = unit == units[0] or value >= 99.95
            return f"{value:.{0 if whole else 1}f} {unit}"
        value /= base
    raise AssertionError("the last unit takes any value")
