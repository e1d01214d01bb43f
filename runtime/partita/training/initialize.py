"""Weights that training begins from or has made, as checkpoints: what reads a folder reads them too.

`initialise` draws those of a small config, `Trained` lays new values over a checkpoint. Not here: writing folders.
Invariants: a tensor is drawn when it is read, from the seed and its name alone; nothing is held that was not trained.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters.lora import projection_shapes
from ..checkpoint.base import Checkpoint
from ..checkpoint.overlay import Derived
from ..errors import UnsupportedModel
from ..model.config import ModelConfig
from ..model.families.parse import Names, family, parse
from ..quantization import Packed

STANDARD_DEVIATION = 0.02  # of GPT-2 and of most that came after


@dataclass(frozen=True, kw_only=True)
class RandomWeights(Checkpoint):
    """Random weights: normal with a deviation of 0.02; projections into the stream divided by sqrt(2 layers), so that
    its size does not grow with depth (the GPT-2 report); norms one, biases zero. float32."""

    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    layers: int
    one: float

    def names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise self.missing(name)
        return self.shapes[name]

    def read(self, name: str) -> np.ndarray:
        shape = self.shape(name)
        if len(shape) == 1:
            return np.full(shape, self.one if name.endswith(".weight") else 0.0, np.float32)
        into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
        deviation = STANDARD_DEVIATION / (math.sqrt(2 * self.layers) if into_stream else 1.0)
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return random.standard_normal(shape, np.float32) * np.float32(deviation)

    def stored_as(self, name: str) -> str:
        self.shape(name)
        return "F32"

    def nbytes(self) -> int:
        return 0

    def fingerprint(self) -> str:
        said = json.dumps([self.seed, self.config], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:32]


def initialise(config: Mapping[str, Any], seed: int = 0, path: Path | str = "a new model") -> RandomWeights:
    """Random weights for a Hugging Face config.json. path: what messages call it, and where its tokenizer is read.

    Raises what `families.parse` raises, and UnsupportedModel for a model with experts.
    """
    parsed = parse(config)
    if parsed.experts is not None or parsed.sink_logits:
        raise UnsupportedModel(f"a {parsed.model_type} model has experts, which cannot be trained from nothing")
    shapes = _shapes(parsed, family(config).names)
    one = 0.0 if parsed.norm_adds_one else 1.0
    return RandomWeights(
        path=Path(path),
        config=dict(config),
        generation_config={},
        shapes=shapes,
        seed=seed,
        layers=parsed.num_layers,
        one=one,
    )


def _shapes(config: ModelConfig, names: Names) -> dict[str, tuple[int, ...]]:
    """Every tensor that `load_decoder` will ask for."""
    e, width = config.hidden_size, projection_shapes(config)
    matrix = (config.vocab_size, e)
    found: dict[str, tuple[int, ...]] = {f"{names.prefix}{names.embedding}.weight": matrix}
    for i in range(config.num_layers):
        attention, mlp = (names.prefix + place.format(i=i) for place in (names.attention, names.mlp))
        norms = (names.attention_norm, names.attention_post_norm, names.mlp_norm, names.mlp_post_norm)
        found |= {f"{names.prefix}{norm.format(i=i)}.weight": (e,) for norm in norms if norm is not None}
        if config.qk_norm != "none":
            q, k = width["q_proj"][0], width["k_proj"][0]
            sizes = (q, k) if config.qk_norm == "full" else (config.head_dim, config.head_dim)
            found |= {f"{attention}.{kind}_norm.weight": (n,) for kind, n in zip("qk", sizes, strict=True)}
        groups = (
            (attention, (names.qkv,) if names.qkv else ("q_proj", "k_proj", "v_proj"), config.attention_bias),
            (attention, ("o_proj",), config.attention_out_bias),
            (mlp, (names.gate_up,) if names.gate_up else ("gate_proj", "up_proj"), config.mlp_bias),
            (mlp, ("down_proj",), config.mlp_bias),
        )
        for module, kinds, bias in groups:
            found |= {f"{module}.{kind}.weight": width[kind] for kind in kinds}
            found |= {f"{module}.{kind}.bias": width[kind][:1] for kind in kinds if bias}
    found[f"{names.prefix}{names.norm}.weight"] = (e,)
    if not config.tie_embeddings:
        found[f"{names.head}.weight"] = matrix
    return found


@dataclass(frozen=True, kw_only=True)
class Trained(Derived):
    """A checkpoint with trained values in place of its own: float32, by its own names."""

    values: Mapping[str, np.ndarray]

    def read(self, name: str) -> np.ndarray | Packed:
        return self.values[name] if name in self.values else self.base.read(name)

    def stored_as(self, name: str) -> str:
        return "F32" if name in self.values else self.base.stored_as(name)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.base.fingerprint().encode())
        for name in sorted(self.values):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.values[name]).data)
        return digest.hexdigest()[:32]


def trained(base: Checkpoint, values: Mapping[str, np.ndarray]) -> Trained:
    """base: what was trained. values: by its tensor names, as `Trainer.state` gives them after full training."""
    config = {key: value for key, value in base.config.items() if key not in ("quantization", "quantization_config")}
    return Trained.of(base, config=config, values=values)
