"""Weights that training begins from or has made, as checkpoints: what reads a folder reads them too.

`initialise` draws those of a small config, `Trained` lays new values over a checkpoint.
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

from ..checkpoint.base import Checkpoint
from ..checkpoint.overlay import Derived
from ..errors import UnsupportedModel
from ..model.config import ModelConfig
from ..model.families.parse import family, parse
from ..model.weights import WeightSpec, weights
from ..quantization import Packed

STANDARD_DEVIATION = 0.02  # of GPT-2 and of most that came after


@dataclass(frozen=True, kw_only=True)
class RandomWeights(Checkpoint):
    """Random weights: normal with a deviation of 0.02; projections into the stream divided by sqrt(2 layers), so that
    its size does not grow with depth (the GPT-2 report); norms one, biases zero. float32."""

    specs: Mapping[str, WeightSpec]
    """By the names of the tensors."""
    seed: int
    layers: int
    one: float
    """What a norm that changes nothing holds."""
    plain: frozenset[str] = frozenset({"o_norm", "dt"})
    """Kinds of vectors that begin with 1 all the same: a norm of what a head gives never adds one."""

    def names(self) -> tuple[str, ...]:
        return tuple(self.specs)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.specs:
            raise self.missing(name)
        return self.specs[name].shape

    def read(self, name: str) -> np.ndarray:
        shape, kind = self.shape(name), self.specs[name].kind
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        if kind == "a_log":  # from hardly forgetting to forgetting at once, as transformers draws them
            return np.log(random.uniform(0.01, 16, shape)).astype(np.float32)
        if len(shape) == 1:
            plain = 1.0 if kind in self.plain else self.one
            return np.full(shape, 0.0 if kind == "bias" else plain, np.float32)
        into_stream = kind in ("o", "down")
        deviation = STANDARD_DEVIATION / (math.sqrt(2 * self.layers) if into_stream else 1.0)
        return random.standard_normal(shape, np.float32) * np.float32(deviation)

    def stored_as(self, name: str) -> str:
        self.shape(name)
        return "F32"

    def nbytes(self) -> int:
        return 0

    def weight_bytes(self) -> Mapping[str, int]:
        return dict.fromkeys(self.specs, 0)

    def fingerprint(self) -> str:
        said = json.dumps([self.seed, self.config], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:32]


def untrained(config: ModelConfig) -> str | None:
    """The part of a model that has no gradients here, in a word; None where all has."""
    if config.experts is not None:
        return "experts"
    return "sink logits" if config.sink_logits else None


def initialise(config: Mapping[str, Any], seed: int = 0, path: Path | str = "a new model") -> RandomWeights:
    """Random weights for a Hugging Face config.json. path: what messages call it, and where its tokenizer is read.

    Raises what `families.parse` raises, and UnsupportedModel for a model of which a part cannot be trained.
    """
    parsed = parse(config)
    if part := untrained(parsed):
        raise UnsupportedModel(f"a {parsed.model_type} model has {part}, which cannot be trained from nothing")
    return RandomWeights(
        path=Path(path),
        config=dict(config),
        generation_config={},
        specs={spec.name: spec for spec in weights(parsed, family(config).names)},
        seed=seed,
        layers=parsed.num_layers,
        one=0.0 if parsed.norm_adds_one else 1.0,
        plain=frozenset({"o_norm", "dt", *(["norm"] if parsed.last_norm_plain else [])}),
    )


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
