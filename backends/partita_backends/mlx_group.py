"""The processes that compute together on MLX, as `mlx.launch` or mpirun started them. Alone without their environment.

Sums and gathers are lazy, as everything in MLX. It waits without an end for a process that is there and does nothing,
so in `MlxGroup.wait` a thread ends this one instead.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

import mlx.core as mx

from partita.errors import BackendUnavailable
from partita.group import Alone

from .together import MINUTES, SILENT, ended, launched


class MlxGroup:
    """See `partita.group.Group`."""

    def __init__(self, group: mx.distributed.Group):
        self._group = group
        self.rank, self.world_size = group.rank(), group.size()

    def all_sum(self, x: mx.array) -> mx.array:
        return mx.distributed.all_sum(x, group=self._group)

    def all_gather(self, x: mx.array) -> mx.array:
        return mx.distributed.all_gather(x, group=self._group)

    def wait(self, *arrays: mx.array) -> None:
        with _watched():
            try:
                mx.eval(*arrays)
            except RuntimeError as error:
                raise ended(error) from error


def join() -> MlxGroup | Alone:
    """All of them, or this one alone. Raises BackendUnavailable where they cannot be reached."""
    if (found := launched()) is None or found[0] != "mlx":
        return Alone()
    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        raise BackendUnavailable(f"the processes that MLX was launched with cannot be joined: {error}") from error
    return Alone() if group.size() == 1 else MlxGroup(group)


@contextmanager
def _watched() -> Generator[None, None, None]:
    """End this process if what is inside takes longer than MINUTES."""
    watch = threading.Timer(MINUTES * 60, _leave)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _leave() -> None:
    print(f"partita: {SILENT}", file=sys.stderr, flush=True)
    os._exit(2)
