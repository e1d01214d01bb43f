"""A model on a GPU that is not there: tensors with shapes and dtypes alone, to follow what a step computes.

Not here: what a step must be (`backends/test_gpu_step.py`), and how it is followed (`partita_apps.bench.gpu_steps`). To
be used within the fixture `fake_cuda`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from partita.checkpoint.overlay import Derived
from partita.quantization import Packed, quantize_weight
from partita.training.initialize import initialise
from partita_apps.bench.gpu_steps import Model, loaded, with_cache

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


def model(*, packed: bool, kv: str, context: int, read: int) -> Model:
    """A model with a cache that has read so many tokens, as far as the host knows."""
    checkpoint: Any = initialise(CONFIG)
    ops, decoder = loaded(FourBits.of(checkpoint) if packed else checkpoint)
    return with_cache(ops, decoder, kv=kv, context=context, read=read)
