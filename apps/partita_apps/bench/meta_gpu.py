"""Our training step as a GPU of torch gets it, with Triton's kernels, on tensors of the device "meta": they have shapes
and dtypes, no numbers, and can be differentiated without a GPU.

Not here: what counts (`torch_graph`), decoding (`gpu_steps`).
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import torch

from partita.quantization import Packed, Stored
from partita_backends.torch import TorchBackend, weights

from .torch_graph import Followed, differentiable_attention
from .train_step import taken, trainer_of

Tensor = torch.Tensor


class Unseen(TorchBackend):
    """torch on a GPU, of which there is only what tensors look like. kernels: `partita_backends.torch.cuda`."""

    def __init__(self, dtype: str, kernels: Any):
        super().__init__("cpu", dtype)
        self.device, self._device, self._kernels, self._words = "cuda", torch.device("meta"), None, kernels.Words

    def array(self, x: np.ndarray, dtype: str | None = None) -> Tensor:
        found = _looks(x)
        return found.to(getattr(torch, dtype)) if dtype else found

    def prepare(self, weight: np.ndarray | Packed | Stored) -> Any:
        if isinstance(weight, Stored):
            weight = weight.repacked(self.smallest_group)
        return self._words(weight.map(_looks)) if isinstance(weight, Packed) else _looks(weight).to(self._decode)

    def prepare_vector(self, x: np.ndarray) -> Tensor:
        return _looks(x).to(self._float)


def _looks(x: np.ndarray) -> Tensor:
    signed = {"uint32": torch.int32, "uint16": torch.int16}.get(str(x.dtype))
    return torch.empty(x.shape, dtype=signed or getattr(torch, str(x.dtype)), device="meta")


def followed(checkpoint: Any, tokens: Any, rank: int, dtype: str, again: bool) -> Followed:
    """The first step of training adapters. again: blocks are computed again in the backward pass. BackendUnavailable:
    triton cannot be imported."""
    from partita.errors import BackendUnavailable

    try:
        from partita_backends.torch import cuda
    except ImportError as error:
        raise BackendUnavailable(f"operations of a GPU are counted with triton's kernels: {error}") from error
    attention = mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", differentiable_attention)
    with mock.patch.object(weights, "_found_on_gpu", return_value=(cuda, None)), attention:
        trainer = trainer_of(Unseen(dtype, cuda), checkpoint, tokens, rank, again)
        with Followed() as found:
            taken(trainer)
    return found
