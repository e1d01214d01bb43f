"""Memory of this process and machine, for backends whose device is the CPU.

The peak is the kernel's own high-water mark of resident memory where it can be reset (Linux), and a sampled maximum
elsewhere is deliberately not invented: there `peak` is the mark since the process began.
"""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from partita.backend import Memory


def read() -> Memory:
    machine = psutil.virtual_memory()
    resident = psutil.Process().memory_info().rss
    return Memory(total=machine.total, free=machine.available, active=resident, peak=max(_high_water(), resident))


def reset_peak() -> None:
    """Forget the high-water mark. Linux only: writing 5 to clear_refs resets VmHWM (proc(5)); a no-op elsewhere."""
    if sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # a container may forbid it: the mark then counts from the start of the process
            return


def _high_water() -> int:
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
