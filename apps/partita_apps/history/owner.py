"""Which process writes a reply, in a text that is kept beside it, and whether that process still lives.

A process id alone is given again to others, so the time at which the process began belongs to it.
"""

from __future__ import annotations

import os

import psutil

_SLACK = 2.0
"""Seconds by which the same beginning may be read differently: it is counted from the boot, and clocks are set."""


def me() -> str:
    """This process."""
    return f"{os.getpid()} {psutil.Process().create_time():.2f}"


def lives(owner: str) -> bool:
    """Whether a process that `me` named is still there. What `me` never wrote names nobody."""
    pid, _, began = owner.partition(" ")
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(began)) <= _SLACK and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.AccessDenied:  # somebody's, and there
        return True
