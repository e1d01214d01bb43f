"""What a decoder is, as frozen data: everything that differs between families is a field here.

Parsed once from a checkpoint's own config (`families.py`) and validated; the model then asks no dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding of one kind of layer.

    theta: the base. dims: rotated dims of each head. scaling: "default", "linear", "llama3" or "factors".
    """

    theta: float
    dims: int
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    factors: tuple[float, ...] = ()
    """One divisor per frequency (dims / 2), where a file carries them ready-made."""


@dataclass(frozen=True)
class LayerConfig:
    """window: keys a query sees, itself included; None for full attention."""

    window: int | None
    rope: RopeConfig


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    max_positions: int
    """The trained maximum, in tokens."""
    norm_eps: float
    attention_scale: float
    activation: str
    """"silu" or "gelu_tanh"."""
    tie_embeddings: bool
    norm_adds_one: bool = False
    """Norms multiply by 1 + w."""
    embedding_scale: float | None = None
    qk_norm: bool = False
    post_norms: bool = False
    """Norms after attention and after the MLP as well, before the residual sum."""
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None

    @property
    def num_layers(self) -> int:
        return len(self.layers)
