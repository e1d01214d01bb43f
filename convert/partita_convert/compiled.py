"""Loops that numba compiles when they are first called, and keeps beside what else partita keeps for a user.

Importing this module imports numba, which takes half a second and is not everywhere: who imports it can do without, or
says what is missing. Sums may be taken in any order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numba
from numba.core import config

from partita.sources.store import cache_dir

_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}}
_config: Any = config
_njit: Any = numba.njit

part: Any = _njit(**_OPTIONS)
"""Of a loop: what only other compiled functions call."""
inlined: Any = _njit(**_OPTIONS, forceinline=True)
"""The same, compiled into each of them, which keeps vectors in registers."""


def kept(function: Callable[..., Any]) -> Any:
    """Compiled for the types that it is called with. Where nothing can be written each process compiles for itself."""
    made, place = _njit(**_OPTIONS)(function), cache_dir() / "quantizers"
    before, _config.CACHE_DIR = _config.CACHE_DIR, str(place)  # read when caching is switched on, and only then
    try:
        with contextlib.suppress(OSError, RuntimeError):
            place.mkdir(parents=True, exist_ok=True)
            made.enable_caching()
    finally:
        _config.CACHE_DIR = before
    return made
