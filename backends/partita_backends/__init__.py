"""Backends: one protocol (`partita.backend.Backend`), three implementations, and the order in which `auto` tries them.

Nothing here imports mlx or torch before a candidate is tried. Backends never import each other. Invariants: what was
named is refused with a reason, never replaced; whatever was passed over has a reason of one line.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from partita.errors import BackendUnavailable, DataError, PartitaError
from partita.group import Alone
from partita.units import memory_size

from .together import launched

if TYPE_CHECKING:
    from partita.backend import Backend
    from partita.group import Group

    Needs = Callable[[Backend], int] | None

CLASSES = {
    "mlx": ("partita_backends.mlx", "MlxBackend"),
    "torch": ("partita_backends.torch", "TorchBackend"),
    "numpy": ("partita_backends.numpy", "NumpyBackend"),
}
"""By the name of the backend, which is also the name of the library it needs."""
# (backend, device) in the order of `auto`. On a CPU torch comes before mlx because its matrix products are several
# times faster there (`partita bench decode` measures both).
CANDIDATES = (
    ("mlx", "metal"),
    ("torch", "cuda"),
    ("torch", "rocm"),
    ("torch", "cpu"),
    ("mlx", "cpu"),
    ("numpy", "cpu"),
)
DEVICES = {"metal": "Metal", "cuda": "CUDA", "rocm": "ROCm", "cpu": "the CPU"}
DTYPES = ("auto", "float32", "bfloat16", "float16")


class NotBuilt(BackendUnavailable):
    """The library is for other devices: nothing is wrong with it."""


@dataclass(frozen=True)
class Attempt:
    """What came of a candidate: a backend, or the reason why it cannot be used.

    fault: something that is installed fails, or lacks the device that it was built for. Without it the reason is an
    ordinary one, which is not reported: a library that is not installed, a device that is never here.
    """

    name: str
    device: str
    backend: Backend | None = None
    reason: str = ""
    fault: bool = False


@dataclass(frozen=True)
class Choice:
    """The backend to use, and the attempts before it."""

    backend: Backend
    passed: tuple[Attempt, ...] = ()

    @property
    def reason(self) -> str:
        """Why this one and none before it, in a line."""
        return _reasons(self.passed) or "the first choice"

    @property
    def faults(self) -> str:
        return _reasons(attempt for attempt in self.passed if attempt.fault)

    @property
    def fallback(self) -> str | None:
        """What a person should read where a candidate before this one failed, or where this one lacks a library without
        which it is slow, in a line; None where all is as usual."""
        lines = [self.faults, _slow(self.backend) or ""]
        said = "; ".join(line for line in lines if line)
        return f"computing with {self.backend.name} on {self.backend.device}: {said}" if said else None


@dataclass(frozen=True)
class Status:
    """One line of `partita info`."""

    name: str
    available: bool
    device: str | None
    version: str | None
    reason: str


def names() -> tuple[str, ...]:
    """Every backend there is, installed or not."""
    return tuple(CLASSES)


def load(
    name: str = "auto",
    *,
    device: str | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    needs: Needs = None,
    on_fallback: Callable[[str], None] | None = None,
) -> Backend:
    """A backend by name, or the first of CANDIDATES that can be used. A name or a device leaves those that have it.

    needs: bytes that are going to be put on a backend's device; a GPU with less room is passed over.
    on_fallback: is given one line if something that is installed had to be passed over.
    Raises BackendUnavailable with the reasons where no candidate is left, DataError for a name that does not exist.
    """
    choice = choose(name, device=device, dtype=dtype, threads=threads, needs=needs)
    if on_fallback is not None and choice.fallback is not None:
        on_fallback(choice.fallback)
    return choice.backend


def choose(
    name: str = "auto",
    *,
    device: str | None = None,
    dtype: str = "auto",
    threads: int | None = None,
    needs: Needs = None,
) -> Choice:
    """What `load` gives, with what was passed over on the way."""
    check_options(name, device=device, dtype=dtype, threads=threads)
    candidates, options = _candidates(name, device), {"dtype": dtype, "threads": threads}
    if (together := launched()) is not None:
        return Choice(_together(together[0], name, device, options))
    try:
        return first(_attempts(candidates, needs, options))
    except BackendUnavailable as error:
        named = [flag for flag, value in (("`backend`", name != "auto"), ("`device`", device)) if value]
        if not named:
            raise
        raise BackendUnavailable(f"{error}: leave {' and '.join(named)} out to use what works here") from error


def check_options(
    name: str = "auto", *, device: str | None = None, dtype: str = "auto", threads: int | None = None
) -> None:
    """Check the options of `load` without loading a backend. DataError, BackendUnavailable: a value that no machine
    accepts, or a number of threads out of this machine's range."""
    if dtype not in DTYPES:
        raise DataError(f"unknown `dtype` {dtype!r}; expected one of {', '.join(DTYPES)}", field="dtype")
    _check_threads(threads)
    _candidates(name, device)


def group(ops: Backend) -> Group[Any]:
    """The processes that a launcher started for this backend, joined; `Alone` without one.

    Every process is in the same group however often it is asked for. Raises BackendUnavailable where the others cannot
    be reached.
    """
    if ops.name == "mlx":
        from . import mlx_group

        return mlx_group.join()
    if ops.name == "torch":
        from .torch import group as torch_group

        return torch_group.join(ops.device)
    return Alone()


def first(attempts: Iterable[Attempt]) -> Choice:
    """The first attempt that gave a backend; no further one is made. BackendUnavailable with the reasons for none."""
    passed: list[Attempt] = []
    for attempt in attempts:
        if attempt.backend is not None:
            return Choice(attempt.backend, tuple(passed))
        passed.append(attempt)
    raise BackendUnavailable(_reasons(attempt for attempt in passed if attempt.fault) or passed[-1].reason)


def survey() -> tuple[Attempt, ...]:
    """Every candidate, tried."""
    _check_threads(None)
    return tuple(_attempts(CANDIDATES, None, {}))


def status(attempts: Sequence[Attempt]) -> list[Status]:
    """Of each backend what it would run on, or why it cannot be used."""
    found: list[Status] = []
    for name in CLASSES:
        try:
            choice = first(attempt for attempt in attempts if attempt.name == name)
        except BackendUnavailable as error:
            found.append(Status(name, False, None, _version(name), str(error)))
            continue
        backend = choice.backend
        products = "" if backend.decode_dtype == backend.dtype else f", decoding products in {backend.decode_dtype}"
        if products and _slow(backend) is None:  # of torch on a CPU, with its kernels
            products += ", with packed weights in 8 bits"
        faults = "".join(f"; {line}" for line in (choice.faults, _slow(backend)) if line)
        found.append(Status(name, True, backend.device, _version(name), f"{backend.dtype}{products}{faults}"))
    return found


def _check_threads(threads: int | None) -> None:
    """DataError for a number that a library would end the process over. Threads beyond the cores only wait for each
    other, and some are tried now and then; no machine has several for each core and dozens of them."""
    most = max(4 * (os.cpu_count() or 1), 64)
    if threads is not None and threads < 1:
        raise DataError(f"`threads` must be >= 1, got {threads}", field="threads")
    if threads is not None and threads > most:
        raise DataError(f"`threads` must be <= {most} on this machine, got {threads}", field="threads")
    given = os.environ.get("OMP_NUM_THREADS", "")
    for number in given.split(","):
        if number.strip().isdecimal() and (len(number) > 9 or int(number) > most):
            raise DataError(f"OMP_NUM_THREADS must be <= {most} on this machine, got {given}: change or unset it")


def _candidates(name: str, device: str | None) -> list[tuple[str, str]]:
    """Those of this name and device. DataError, BackendUnavailable for what does not exist anywhere."""
    if name != "auto" and name not in CLASSES:
        raise DataError(f"unknown `backend` {name!r}; expected one of auto, {', '.join(CLASSES)}", field="backend")
    named = [candidate for candidate in CANDIDATES if name in ("auto", candidate[0])]
    if device == "mps":
        raise BackendUnavailable(
            "no device 'mps': Metal is reached through MLX, give `backend` mlx `device` metal", field="device"
        )
    if device is not None and device not in (its for _, its in named):
        owner = "there is" if name == "auto" else f"the {name} backend has"
        known = " or ".join(sorted({its for _, its in named}))
        raise BackendUnavailable(
            f"{owner} no device {device!r}: give `device` {known}, or leave it out", field="device"
        )
    return [candidate for candidate in named if device in (None, candidate[1])]


def _together(launcher: str, name: str, device: str | None, options: dict[str, Any]) -> Backend:
    """For a process that was started with others: what they take, and never another in its place."""
    if name not in ("auto", launcher):
        raise BackendUnavailable(
            f"these processes were started together for backend {launcher}, of which {name} would not know: "
            f"leave `backend` {name} out, or start them with {'mlx.launch' if name == 'mlx' else 'torchrun'}",
            field="backend",
        )
    _candidates(launcher, device)
    if (missing := _missing(launcher)) is not None:
        raise BackendUnavailable(missing)
    with _unavailable(f"{launcher} cannot be used"):
        return _class(launcher)(device=device, **options)


def _attempts(candidates: Iterable[tuple[str, str]], needs: Needs, options: dict[str, Any]) -> Iterator[Attempt]:
    """Each candidate, tried when it is asked for."""
    imported = functools.cache(_imported)  # a library that failed half-way would fail in another way the next time
    for name, device in candidates:
        reason = _never_here(name, device)
        yield Attempt(name, device, reason=reason) if reason else _attempt(name, device, imported(name), needs, options)


def _attempt(name: str, device: str, cls: Any, needs: Needs, options: dict[str, Any]) -> Attempt:
    if isinstance(cls, str):
        return Attempt(name, device, reason=cls, fault=True)
    try:
        with _unavailable(f"{name} cannot use {DEVICES[device]}"):
            backend = cls(device=device, **options)
            _check_room(backend, needs)
    except BackendUnavailable as error:
        return Attempt(name, device, reason=str(error), fault=not isinstance(error, NotBuilt))
    return Attempt(name, device, backend)


def first_use(backend: Backend) -> str | None:
    """What the first reply on this machine waits for, in a line; None where it waits for nothing."""
    return None if (weights := _torch(backend)) is None or backend.device != "cpu" else weights.cold_kernels()


def _slow(backend: Backend) -> str | None:
    """Why a backend is slower than it could be."""
    return None if (weights := _torch(backend)) is None else weights.without_kernels(backend.device)


def _torch(backend: Backend) -> Any:
    """The module of its weights, or None for another backend."""
    if backend.name != "torch":
        return None
    from .torch import weights

    return weights


def _check_room(backend: Backend, needs: Needs) -> None:
    if needs is None or backend.device == "cpu":  # nothing comes after a CPU that would have more room
        return
    memory, needed = backend.memory(), needs(backend)
    # Metal shares the machine's memory: what others use of it, a CPU would lack as well
    free = memory.total - memory.active if backend.device == "metal" else memory.free
    if free < needed:
        wanted, there = memory_size(needed), memory_size(free)
        raise BackendUnavailable(f"the model needs {wanted}, {DEVICES[backend.device]} has {there} free")


def _never_here(name: str, device: str) -> str | None:
    """Why this cannot be, as far as that is known without importing anything."""
    macos, arm = sys.platform == "darwin", platform.machine() == "arm64"
    if device == "metal" and not (macos and arm):
        return "Metal is on Apple Silicon only"
    if device in ("cuda", "rocm") and macos:
        return f"macOS has no {DEVICES[device]}"
    return _missing(name)


def _missing(library: str) -> str | None:
    """A line if the library is not installed. What stands in sys.modules needs no spec."""
    loaded = sys.modules.get(library) is not None
    if loaded or (library not in sys.modules and importlib.util.find_spec(library) is not None):
        return None
    intel_mac = sys.platform == "darwin" and platform.machine() != "arm64"
    nowhere = intel_mac or (library == "mlx" and sys.platform == "win32")
    how = "and is not offered for this platform" if nowhere else f"(pip install 'partita[{library}]')"
    return f"backend {library} needs the {library} package {how}"


def _class(name: str) -> Any:
    module, cls = CLASSES[name]
    return getattr(importlib.import_module(module), cls)


def _imported(name: str) -> Any:
    """The backend's class, or a line that says why its library cannot be imported."""
    try:
        with _unavailable(f"{name} cannot be imported"):
            return _class(name)
    except BackendUnavailable as error:
        return str(error)


@contextmanager
def _unavailable(what: str) -> Generator[None, None, None]:
    """What a library raises as BackendUnavailable, in a line. It can be anything: torch without its native part raises
    OSError, NameError or AttributeError."""
    try:
        yield
    except PartitaError:
        raise
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
        raise BackendUnavailable(f"{what} ({type(error).__name__}{': ' if said else ''}{said})") from error


def _reasons(attempts: Iterable[Attempt]) -> str:
    return "; ".join(dict.fromkeys(attempt.reason for attempt in attempts))


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
