"""How far what is computed may be from what is exact, on any CPU.

A library may add the terms of a sum in any order, in lanes of any width, with fused products or without. Whatever it
does, each rounding is off by at most the unit of its dtype, relative to what it rounds. So a bound is a number of
roundings, which follows from the lengths of the sums, times the size of what is rounded. Not here: what is compared.
Invariant: no bound rests on what one machine was seen to do, and none is relative to a number that may be zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from partita.checkpoint.open import open_checkpoint
from partita.model.config import ConvConfig, DeltaConfig, ModelConfig
from partita.model.load import read_config

UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half the distance from 1 to the next number of a dtype."""


def gamma(roundings: int, dtype: str = "float32") -> float:
    """The relative error after so many roundings, whatever their signs: γ_n of Higham, "Accuracy and Stability of
    Numerical Algorithms" (2002), lemma 3.1. For sums of numbers of one sign, where small ones can be lost."""
    return roundings * UNIT[dtype] / (1 - roundings * UNIT[dtype])


def drift(roundings: int, dtype: str = "float32") -> float:
    """The same where signs have nothing to do with each other, so that errors add up as the steps of a random walk
    (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019). A rounding is off by 0.41 units
    in the mean square: 4 √n units are ten standard deviations."""
    return min(gamma(roundings, dtype), 4 * sqrt(roundings) * UNIT[dtype])


def assert_near(found: Any, exact: Any, error: float, size: float | None = None) -> None:
    """Every entry within error · size. size: of the largest term that is added; of the largest exact value if None.

    Where both are computed, their roundings add up: drift(2 * n)."""
    size = float(np.abs(exact).max(initial=0)) if size is None else size
    np.testing.assert_allclose(found, exact, rtol=0, atol=error * size)


def assert_all_near(found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], error: float) -> None:
    """Arrays by name, such as gradients: the length of each difference within error times the length of the array."""
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        away, length = np.linalg.norm(found[name] - value), np.linalg.norm(value)
        assert away <= error * length, f"{name}: {away / length:.1e} away, {error:.1e} allowed"


def attention(depth: int, keys: int, *, score: float, value: float) -> float:
    """The absolute error of softmax(scores) · values: sums of `depth` products and over `keys` keys. The absolute error
    of a score is a relative one of its weight; what comes of it is a covariance with the values, so at most the largest
    of either. score, value: the largest."""
    return value * (drift(keys) + score * drift(depth))


# Whole models. source: a config, or the folder or file of a model.


def decoder(source: Path | ModelConfig, tokens: int = 96) -> int:
    """Roundings on the way from a token to a logit: the lengths of the sums that follow each other."""
    config = read_config(open_checkpoint(source)) if isinstance(source, Path) else source
    width, size = config.hidden_size, config.head_dim
    mlp = width + width + config.intermediate_size
    mixers = [
        # norm, queries, scores, softmax, values, output
        _mixer(layer.mixer, width + width + size + 2 * tokens + config.heads_of(i) * size, width, tokens)
        for i, layer in enumerate(config.layers)
    ]
    return sum(mixers) + len(config.layers) * mlp + width + width


def _mixer(c: DeltaConfig | ConvConfig | None, attention: int, width: int, tokens: int) -> int:
    if isinstance(c, ConvConfig):
        return width + width + c.kernel + 2 + c.channels  # norm, inputs, convolution, gates, output
    return attention if c is None else _delta(c, width, tokens)


def _delta(c: DeltaConfig, width: int, tokens: int) -> int:
    """Norm, inputs, convolution, lengths of keys; then every token reads what those before it have left, which decays,
    and no change is longer than what it changes: their roundings add up and do not grow; output."""
    return width + width + c.kernel + c.key_dim + tokens * (2 * c.key_dim + 3) + c.value_dim + c.value_size


def logits(source: Path | ModelConfig, tokens: int = 96) -> float:
    """Between the logits of two computations, relative to the largest."""
    return drift(2 * decoder(source, tokens))


def loss(source: Path | ModelConfig, trained: int, tokens: int = 96) -> float:
    """Between two mean losses, relative. A token's loss is as large as a logit and as exact; the mean of `trained` of
    them is more so, by the root of their number, and is itself a sum of so many terms.

    After some steps of AdamW too: it makes as much of a gradient that is nothing but rounding as of any other, but
    where the gradient is nothing, the loss does not depend on the value that is moved."""
    return logits(source, tokens) / sqrt(trained) + drift(2 * trained)


def gradients(source: Path | ModelConfig, tokens: int = 96) -> float:
    """Between two gradients, relative to the length of each: the way there and back."""
    return drift(4 * decoder(source, tokens))
