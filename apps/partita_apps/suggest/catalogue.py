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
class Layers:
    """So many layers that keep keys and values of one shape. window: how many tokens they see; None: all."""

    layers: int
    kv_heads: int
    head_dim: int
    window: int | None = None


@dataclass(frozen=True)
class Model:
    """download, weights: bytes. context: the trained maximum, in tokens. cache: layers that keep keys and values of
    their own. state: bytes that recurrent layers keep, with their checkpoints, however long a chat is."""

    name: str
    model_type: str
    quantization: str
    parameters: int
    download: int
    weights: int
    context: int
    cache: tuple[Layers, ...]
    licence: str
    suits: tuple[Use, ...]
    tried: bool = False
    state: int = 0

    @property
    def config(self) -> ModelConfig:
        """As much of the model's config as the size of keys and values depends on; every layer rotates here, which
        costs a few kilobytes more than one that does not."""
        first = self.cache[0]
        layers = (layer for each in self.cache for layer in [_layer(each)] * each.layers)
        return ModelConfig(
            model_type=self.model_type,
            vocab_size=0,
            hidden_size=0,
            intermediate_size=0,
            num_heads=first.kv_heads,
            num_kv_heads=first.kv_heads,
            head_dim=first.head_dim,
            layers=tuple(layers),
            max_positions=self.context,
            norm_eps=0.0,
            attention_scale=1.0,
            activation="silu",
            tie_embeddings=True,
        )


def _layer(of: Layers) -> LayerConfig:
    return LayerConfig(of.window, RopeConfig(10_000.0, of.head_dim), kv_heads=of.kv_heads, head_dim=of.head_dim)


@dataclass(frozen=True)
class Catalogue:
    """noted: the date of what is said in it."""

    noted: str
    model: tuple[Model, ...]


def read_catalogue() -> Catalogue:
    text = files("partita_apps.suggest").joinpath("models.toml").read_text(encoding="utf-8")
    return typed(tomllib.loads(text), Catalogue)
