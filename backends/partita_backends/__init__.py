"""The players: one seam (`partita.backend.Backend`), three backends, and the rule by which `auto` picks one.

Nothing here imports mlx or torch until a backend is asked for. Backends never import each other.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from partita.errors import BackendUnavailable, DataError

from .together import launched

if TYPE_CHECKING:
    from partita.backend import Backend

CLASSES = {
    "mlx": ("partita_backends.mlx", "MlxBackend", "mlx"),
    "torch": ("partita_backends.torch", "TorchBackend", "torch"),
    "numpy": ("partita_backends.numpy", "NumpyBackend", "numpy"),
}
DTYPES = ("auto", "float32", "bfloat16", "float16")


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


def load(name: str = "auto", *, device: str | None = None, dtype: str = "auto", threads: int | None = None) -> Backend:
    """A backend by name, or the one that `auto` picks.

    Raises BackendUnavailable when its library or the device is missing, DataError for a name that does not exist.
    """
    if dtype not in DTYPES:
        raise DataError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if threads is not None and threads < 1:
        raise DataError(f"--threads must be at least 1, not {threads}")
    together = launched()
    if name == "auto":
        name = choose()[0] if together is None else together[0]
    if name not in CLASSES:
        raise DataError(f"unknown backend {name!r}: choose one of auto, {', '.join(CLASSES)}")
    if together is not None and name != together[0]:
        raise BackendUnavailable(
            f"these processes were started together for backend {together[0]}, of which {name} would not know: "
            f"leave --backend {name} out, or start them with {'mlx.launch' if name == 'mlx' else 'torchrun'}"
        )
    module, cls, library = CLASSES[name]
    if not _installed(library):
        raise BackendUnavailable(f"backend {name} needs the {library} package: pip install 'partita[{library}]'")
    return getattr(importlib.import_module(module), cls)(device=device, dtype=dtype, threads=threads)


def choose() -> tuple[str, str]:
    """What `auto` means here, and why: Metal, then CUDA, then torch's CPU kernels, then MLX's, then numpy.

    Among CPU paths torch comes before mlx because its matrix products are several times faster there
    (`partita bench decode` measures both). Whether a GPU is there is asked without importing a library where the
    answer can be known from the platform.
    """
    if sys.platform == "darwin" and platform.machine() == "arm64" and _installed("mlx"):
        return "mlx", "Apple Silicon: MLX on Metal"
    if _installed("torch"):
        return "torch", "CUDA or CPU through torch: the fastest path here without Metal"
    if _installed("mlx"):
        return "mlx", "torch is not installed: MLX's CPU device"
    return "numpy", "neither mlx nor torch is installed: the plain oracle, slow"


def status() -> list[Status]:
    """What each backend would run on, found by loading it."""
    found = []
    for name, (_, _, library) in CLASSES.items():
        version = _version(library)
        try:
            backend = load(name)
        except (BackendUnavailable, ImportError, RuntimeError) as error:
            found.append(Status(name, False, None, version, str(error)))
            continue
        products = "" if backend.decode_dtype == backend.dtype else f", decoding products in {backend.decode_dtype}"
        found.append(Status(name, True, backend.device, version, f"{backend.dtype}{products}"))
    return found


def _installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
