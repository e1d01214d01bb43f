"""How kernels are compiled, and where what was compiled is kept.

A kernel is compiled when it is first called, in a fraction of a second to two, and kept in a folder of the user's cache
that is named after the kernels' own sources: an edit, and another version of partita, starts another folder. Where
nothing can be written a process compiles for itself. Importing this module imports numba, and nothing else does.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import platformdirs
from numba import types
from numba.core import config
from numba.extending import overload

from .passes import ParallelCompiler, PartCompiler, WholeCompiler

_config: Any = config  # its attributes come from the environment
_ALONE = threading.Lock()
_OPTIONS: Any = {
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "fastmath": {"contract"},
    "no_cfunc_wrapper": True,
}


def kernel(function: Callable[..., Any]) -> Any:
    """The function compiled for the types that it is called with. It holds no lock and checks no bounds.

    A multiplication and an addition may become one instruction; nothing else is reordered, so that a row gives the same
    bits alone and among others.
    """
    return _kept(function, pipeline_class=WholeCompiler)


def inlined(function: Callable[..., Any]) -> Any:
    """A part of kernels, compiled into each of them: what is constant there is constant in it, and vectors stay in
    registers."""
    return _part(function, forceinline=True)


def inner_kernel(function: Callable[..., Any]) -> Any:
    """The same for what only kernels call: it is compiled and kept as a part of them."""
    return _part(function)


def part_of_types(stub: Callable[..., Any]) -> Any:
    """A decorator for what gives, for the types of arguments, the part of kernels that a call of `stub` means."""
    options: Any = {"pipeline_class": PartCompiler, "no_cpython_wrapper": True, **_OPTIONS}
    return overload(stub, jit_options=options)


def parallel_kernel(function: Callable[..., Any]) -> Any:
    """The same, with `numba.prange` over threads."""
    return _kept(function, pipeline_class=ParallelCompiler, parallel=True)


Call = tuple[Callable[..., None], tuple[Any, ...]]
"""A kernel and what to call it with: so that who calls it can keep both, and call it again on the same memory."""


def threaded(count: int, kernel: Callable[..., None], *arguments: Any) -> None:
    """Call a parallel kernel on so many threads, at most those that numba has started. One thread of Python at a time:
    not each library that numba finds for this can be called from two."""
    with _ALONE:
        numba.set_num_threads(min(count, _config.NUMBA_NUM_THREADS))
        kernel(*arguments)


def folder() -> Path:
    """Where compiled kernels are kept: beside what else partita keeps for a user."""
    given = os.environ.get("PARTITA_CACHE")
    root = Path(given).expanduser() if given else platformdirs.user_cache_path("partita")
    return root.absolute() / "kernels" / _version()


def _version() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def _writable(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


_PLACE = folder()
KEPT = _writable(_PLACE)
"""Whether what is compiled outlives this process."""
COLD = not KEPT or next(_PLACE.iterdir(), None) is None
"""Whether no process has left anything that this one could use."""


def _made(function: Callable[..., Any], **options: Any) -> Any:
    return numba.njit(**_OPTIONS, **options)(function)


def _part(function: Callable[..., Any], **options: Any) -> Any:
    """Compiled once for all constants that it is called with: LLVM knows them where the part has been inlined."""
    made = _made(function, pipeline_class=PartCompiler, no_cpython_wrapper=True, **options)
    template = made.get_call_template
    made.get_call_template = lambda args, kws: template(tuple(map(types.unliteral, args)), kws)
    return made


def _kept(function: Callable[..., Any], **options: Any) -> Any:
    made = _made(function, **options)
    if KEPT:
        before, _config.CACHE_DIR = _config.CACHE_DIR, str(_PLACE)  # read when caching is switched on, and only then
        try:
            made.enable_caching()
        finally:
            _config.CACHE_DIR = before
    return made
