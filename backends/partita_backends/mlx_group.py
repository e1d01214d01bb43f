"""The processes that train together on MLX, as `mlx.launch` or mpirun started them. Alone without their environment.

MLX waits without an end for a process that is there and does nothing, so a thread ends this one instead.
"""

from __future__ import annotations

import os
import sys
import threading

import mlx.core as mx

from partita.errors import BackendUnavailable

from .together import MINUTES, SILENT, ended, launched


def group() -> mx.distributed.Group | None:
    """All of them; None for one alone. Raises BackendUnavailable where they cannot be reached."""
    if (found := launched()) is None or found[0] != "mlx":
        return None
    try:
        return mx.distributed.init(strict=True)
    except RuntimeError as error:
        raise BackendUnavailable(f"the processes that MLX was launched with cannot be joined: {error}") from error


def all_sum(x: mx.array) -> mx.array:
    """x summed over the processes. Computed when this returns. Raises TrainingError where one of them is gone."""
    mx.eval(x)
    total = mx.distributed.all_sum(x, group=group())
    watch = threading.Timer(MINUTES * 60, _leave)
    watch.daemon = True
    watch.start()
    try:
        mx.eval(total)
    except RuntimeError as error:
        raise ended(error) from error
    finally:
        watch.cancel()
    return total


def _leave() -> None:
    print(f"partita: {SILENT}", file=sys.stderr, flush=True)
    os._exit(2)
