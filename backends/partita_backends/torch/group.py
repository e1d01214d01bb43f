"""The processes that train together on torch, as `torchrun` started them. Alone without its environment."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta

import torch
from torch import distributed

from partita.errors import BackendUnavailable

from ..together import MINUTES, ended, launched


def join(device: str) -> tuple[int, int]:
    """(rank, world) of this process, after joining the group that torchrun's environment names, if it names one.

    Raises BackendUnavailable where the others cannot be reached."""
    if not distributed.is_available():
        return 0, 1
    if not distributed.is_initialized():
        if (found := launched()) is None or found[0] != "torch":
            return 0, 1
        try:
            distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=timedelta(minutes=MINUTES))
        except (RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise BackendUnavailable(f"the processes that torchrun started cannot be joined: {said}") from error
        atexit.register(distributed.destroy_process_group)  # its threads would be found running, and abort the process
    return distributed.get_rank(), distributed.get_world_size()


def local_device() -> int:
    """Which of this machine's GPUs is this process's own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def all_sum(x: torch.Tensor) -> torch.Tensor:
    """x summed over the processes, in a new tensor. The group has been joined. Raises TrainingError where one of them
    is gone, or has not answered for MINUTES."""
    total = x.clone()
    try:
        distributed.all_reduce(total)
    except RuntimeError as error:
        raise ended(error) from error
    return total
