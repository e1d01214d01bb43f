"""Bytes and seconds as people read them."""

from __future__ import annotations

import pytest

from partita.units import disk_size, duration, memory_size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (98_362_432, "98.4 MB"),
        (99_960_000, "100 MB"),
        (538_200_000, "538 MB"),
        (999_700_000, "1.0 GB"),
        (10**13, "10.0 TB"),
        (10**16, "10000 TB"),
    ],
)
def test_disks_are_counted_in_thousands(count: int, text: str) -> None:
    assert disk_size(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1023, "1023 bytes"),
        (23040, "22.5 KiB"),
        (256 << 20, "256 MiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        (2 << 30, "2.0 GiB"),
        (3 << 40, "3.0 TiB"),
    ],
)
def test_memory_is_counted_in_powers_of_two(count: int, text: str) -> None:
    assert memory_size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.244, "0.24 s"),
        (0.996, "1.0 s"),
        (3.21, "3.2 s"),
        (9.96, "10 s"),
        (59, "59 s"),
        (59.7, "1 min"),
        (61, "1 min"),
        (3599, "1 h 0 min"),
        (12000, "3 h 20 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
