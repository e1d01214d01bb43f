"""The processes that compute together on torch, as `torchrun` started them. Alone without its environment.

gloo (on the CPU) sums before the call returns; NCCL sums in the device's order. Both give up after MINUTES.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from partita.errors import BackendUnavailable
from partita.group import Alone

from ..together import MINUTES, ended, launched


class TorchGroup:
    """See `partita.group.Group`. The processes have been joined. Sums, too, raise TrainingError."""

    def __init__(self) -> None:
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()

    def all_sum(self, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        with _translated():
            distributed.all_reduce(total)
        return total

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.world_size)]
        with _translated():
            distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def wait(self, *arrays: torch.Tensor) -> None:
        if any(x.is_cuda for x in arrays):
            with _translated():
                torch.cuda.synchronize()


def join(device: str) -> TorchGroup | Alone:
    """All of them, joined as torchrun's environment names them, or this one alone.

    Raises BackendUnavailable where the others cannot be reached."""
    if not distributed.is_available():
        return Alone()
    if not distributed.is_initialized():
        if (found := launched()) is None or found[0] != "torch":
            return Alone()
        try:
            distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=timedelta(minutes=MINUTES))
        except (RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise BackendUnavailable(f"the processes that torchrun started cannot be joined: {said}") from error
        atexit.register(distributed.destroy_process_group)  # its threads would be found running, and abort the process
    return Alone() if distributed.get_world_size() == 1 else TorchGroup()


def local_device() -> int:
    """Which of this machine's GPUs is this process's own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def _translated() -> Generator[None, None, None]:
    try:
        yield
    except RuntimeError as error:
        raise ended(error) from error
