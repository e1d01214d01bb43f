"""The public models of models.toml, typed. What each field means is said at the head of that file.

Not here: whether a model fits (`fit`). Invariant: reads that one file, and asks neither the network nor the machine.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from partita.files.typed import typed
from partita.model.config import LayerConfig, ModelConfig, RopeConfig

Use = Literal["chat", "code", "tools"]
USES: tuple[Use, ...] = ("chat", "code", "tools")


@dataclass(frozen=True)
class CacheShape:
    """Of the layers that attend. full: those that see everything (None: all); the others see the last `window` tokens.
    state: bytes that the other, recurrent layers keep, with their checkpoints, however long a chat is."""

    layers: int
    kv_heads: int
    head_dim: int
    full: int | None = None
    window: int | None = None
    state: int = 0


@dataclass(frozen=True)
class Model:
    """download, weights: bytes. context: the trained maximum, in tokens."""

    name: str
    model_type: str
    quantization: str
    parameters: int
    download: int
    weights: int
    context: int
    cache: CacheShape
    licence: str
    suits: tuple[Use, ...]
    tried: bool = False

    @property
    def config(self) -> ModelConfig:
        """As much of the model's config as the size of keys and values depends on; every layer rotates here, which
        costs a few kilobytes more than one that does not."""
        shape = self.cache
        full = shape.layers if shape.full is None else shape.full
        rope = RopeConfig(10_000.0, shape.head_dim)
        seeing, sliding = LayerConfig(None, rope), LayerConfig(shape.window, rope)
        return ModelConfig(
            model_type=self.model_type,
            vocab_size=0,
            hidden_size=0,
            intermediate_size=0,
            num_heads=shape.kv_heads,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            layers=(*[seeing] * full, *[sliding] * (shape.layers - full)),
            max_positions=self.context,
            norm_eps=0.0,
            attention_scale=1.0,
            activation="silu",
            tie_embeddings=True,
        )


@dataclass(frozen=True)
class Catalogue:
    """noted: the date of what is said in it."""

    noted: str
    model: tuple[Model, ...]


def read_catalogue() -> Catalogue:
    text = files("partita_apps.suggest").joinpath("models.toml").read_text(encoding="utf-8")
    return typed(tomllib.loads(text), Catalogue)
