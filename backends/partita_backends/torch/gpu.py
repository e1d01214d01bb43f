"""This process's GPU: opened, and read from."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from partita.errors import BackendUnavailable

from .. import DEVICES, NotBuilt
from . import group

Tensor = torch.Tensor


def name() -> str:
    return "rocm" if torch.version.hip else "cuda"


def open_device(device: str) -> None:
    """Make this process's GPU the one that is used, and use it, so that what is missing shows now.

    Raises NotBuilt, BackendUnavailable where there is no GPU, with torch's warning if it gave one, and what torch
    raises for one that does not work.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
        if device != name() or not (available or torch.version.cuda or torch.version.hip):
            raise NotBuilt(f"this torch is built without {DEVICES[device]}")
        if not available:
            why = f" ({' '.join(str(said[-1].message).split())[:200]})" if said else ""
            raise BackendUnavailable(f"torch finds no {DEVICES[device]} device{why}")
        torch.cuda.set_device(group.local_device())
        torch.ones(1, device="cuda").sum().item()  # a kernel, which an old GPU may lack
        torch.cuda.mem_get_info()
    for warning in said:  # it works all the same
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


class Reader:
    """Copies numbers to the host while the device goes on. Pinning memory takes longer than the few bytes of a step, so
    what has been read from is used again."""

    def __init__(self) -> None:
        self._spare: defaultdict[Any, list[Tensor]] = defaultdict(list)

    def fetch(self, x: Tensor) -> Callable[[], np.ndarray]:
        """As `Backend.fetch`."""
        spare = self._spare[x.shape, x.dtype]
        host = spare.pop() if spare else torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        host.copy_(x, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        @cache
        def wait() -> np.ndarray:
            done.synchronize()
            found = host.numpy().copy()
            spare.append(host)
            return found

        return wait
