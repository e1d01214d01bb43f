"""A model on a GPU that is not there: tensors with shapes and dtypes alone, to follow what a step computes.

Not here: what a step must be (`backends/test_gpu_step.py`). To be used within the fixture `fake_cuda`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.overlay import Derived
from partita.model.load import load_decoder
from partita.quantization import Packed, quantize_weight
from partita.training.initialize import initialise
from partita_backends import torch as backend
from partita_backends.torch import gpu, weights

Tensor = torch.Tensor

LAYERS = 30
CONFIG = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 192,
    "vocab_size": 320,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
"""Of SmolLM2's shape, narrower."""


@dataclass(frozen=True, kw_only=True)
class FourBits(Derived):
    """Matrices packed, in groups of 32."""

    def read(self, name: str) -> np.ndarray | Packed:
        value = self.base.read(name)
        return quantize_weight(value, 4, 32) if isinstance(value, np.ndarray) and value.ndim == 2 else value

    def stored_as(self, name: str) -> str:
        return "4-bit:32" if len(self.base.shape(name)) == 2 else self.base.stored_as(name)


@dataclass(frozen=True)
class Model:
    ops: backend.TorchBackend
    decoder: Any
    cache: Cache


def model(monkeypatch: pytest.MonkeyPatch, kernels: Any, *, packed: bool, kv: str, context: int, read: int) -> Model:
    """A model on the GPU with a cache that has read so many tokens, as far as the host knows. kernels: the module."""
    monkeypatch.setattr(weights, "_found_on_gpu", lambda: (kernels, None))
    monkeypatch.setattr(gpu, "open_device", lambda device: None)
    checkpoint: Any = initialise(CONFIG)
    with monkeypatch.context() as sending:
        sending.setattr(weights, "from_numpy", _on_gpu)
        sending.setattr(Tensor, "to", _sent)
        ops = backend.TorchBackend("cuda")
        decoder = load_decoder(ops, FourBits.of(checkpoint) if packed else checkpoint)
        spec = plan(decoder.config, KVFormat.parse(kv), context=context, chunk=64)
        cache = Cache(ops, spec)
        for start in range(0, read, spec.chunk):
            cache.reserve(min(spec.chunk, read - start))
        cache.reserve(1)
    return Model(ops, decoder, cache)


def _on_gpu(x: np.ndarray) -> Tensor:
    dtype = torch.int32 if x.dtype == np.uint32 else torch.from_numpy(np.empty(0, x.dtype)).dtype
    return torch.empty(x.shape, dtype=dtype, device="cuda")


def _sent(x: Tensor, device: Any, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=device)


class Followed(TorchDispatchMode):
    """Operations that compute something, in order: neither views nor memory that nothing has been written to.

    An operation of our own is one, however many kernels it launches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Tensor], list[Tensor]]] = []
        """Name, tensors read or written, tensors given."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        given, results = tensors((args, kwargs)), tensors(found)
        view = not function._schema.is_mutable and {memory(x) for x in results} <= {memory(x) for x in given}
        if not view and not function.name().startswith(("aten::empty", "aten::new_empty")):
            self.calls.append((function.name(), given, results))
        return found


def memory(x: Tensor) -> int:
    """Equal for tensors of one piece of memory."""
    return x.untyped_storage()._cdata


def tensors(x: Any) -> list[Tensor]:
    """All in it, of containers and of packed arrays."""
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, Packed):
        return [x.weight, *x.grid]
    if isinstance(x, dict):
        x = tuple(x.values())
    return [found for each in x for found in tensors(each)] if isinstance(x, (list, tuple)) else []
