"""A short convolution and the gated delta rule: however tokens are fed, they leave the same behind.

Whether each backend computes what the oracle does is in test_operations.py, gradients are in
test_training_operations.py; both take their arrays from here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from partita.backend import Backend
from partita_backends.numpy import NumpyBackend

from .. import bounds

TAPS = 4
SHAPES = {"few": (2, 5), "a chunk and more": (2, 130), "one": (1, 1)}
HEADS, SIZES = (2, 4), (15, 23)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convolved(rows: int, tokens: int) -> dict[str, np.ndarray]:
    channels = 6
    return {
        "x": normal(rows, tokens, channels),
        "weight": normal(channels, TAPS, seed=1),
        "tail": normal(rows, TAPS - 1, channels, seed=2),
        "bias": normal(channels, seed=3),
    }


def delta(rows: int, tokens: int, heads: tuple[int, int] = HEADS, sizes: tuple[int, int] = SIZES) -> dict[str, Any]:
    """Keys of length 1, a decay at most 0, beta from 0 to 2."""
    (keys, values), (of_key, of_value) = heads, sizes
    k = normal(rows, tokens, keys, of_key, seed=1)
    return {
        "q": normal(rows, tokens, keys, of_key) * of_key**-0.5,
        "k": k / np.linalg.norm(k, axis=-1, keepdims=True),
        "v": normal(rows, tokens, values, of_value, seed=2),
        "decay": -np.abs(normal(rows, tokens, values, seed=3)) * 0.2,
        "beta": 2 / (1 + np.exp(-normal(rows, tokens, values, seed=4))),
        "state": normal(rows, values, of_value, of_key, seed=5),
    }


def begins(rows: int, tokens: int) -> np.ndarray:
    """Where documents of a packed row begin: bool (rows, tokens)."""
    return np.random.default_rng(6).random((rows, tokens)) < 0.1


def places(fresh: np.ndarray) -> np.ndarray:
    """The place of each token in its document, the first of which began before the row did: int32."""
    found = np.zeros(fresh.shape, np.int32)
    for at in np.ndindex(fresh.shape):
        row, token = at
        before = found[row, token - 1] if token else TAPS
        found[at] = 0 if fresh[at] else before + 1
    return found


def on(ops: Backend, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: ops.array(x) for name, x in arrays.items()}


def conv_case(ops: Backend) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for rows, tokens in SHAPES.values():
        own = on(ops, convolved(rows, tokens))
        lengths = ops.array(np.arange(rows, dtype=np.int32) * (tokens // 2))
        apart = ops.array(places(begins(rows, tokens)))
        results = (
            ops.causal_conv(**own),
            ops.causal_conv(**own, lengths=lengths),
            ops.causal_conv(**own, positions=apart),
        )
        found += [ops.to_numpy(x) for result in results for x in result]
    return found


def delta_case(ops: Backend) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for rows, tokens in SHAPES.values():
        own = on(ops, delta(rows, tokens))
        for fresh in (None, ops.array(begins(rows, tokens))):
            found += [ops.to_numpy(x) for x in ops.gated_delta(**own, fresh=fresh)]
    return found


def error(tokens: int) -> float:
    """Of the rule: a state is a sum over tokens, each of which reads it by a sum over a key and changes it."""
    return 2 * bounds.drift(tokens * (2 * SIZES[0] + 3))


CASES = {"causal_conv": conv_case, "gated_delta": delta_case}


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_a_sequence_in_chunks_is_the_sequence(ops: Backend, chunk: int) -> None:
    own, tokens = on(ops, delta(2, 130)), 130
    whole, after = ops.gated_delta(**own)
    parts, state = [], own.pop("state")
    for start in range(0, tokens, chunk):
        part, state = ops.gated_delta(**{name: x[:, start : start + chunk] for name, x in own.items()}, state=state)
        parts.append(part)
    bounds.assert_near(ops.to_numpy(ops.concat(parts, 1)), ops.to_numpy(whole), error(tokens))
    bounds.assert_near(ops.to_numpy(state), ops.to_numpy(after), error(tokens))


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_a_convolution_in_chunks_is_the_convolution(ops: Backend, chunk: int) -> None:
    own, tokens = on(ops, convolved(2, 15)), 15
    whole, after = ops.causal_conv(**own)
    parts, x, tail = [], own.pop("x"), own.pop("tail")
    for start in range(0, tokens, chunk):
        part, tail = ops.causal_conv(x[:, start : start + chunk], **own, tail=tail)
        parts.append(part)
    bounds.assert_near(ops.to_numpy(ops.concat(parts, 1)), ops.to_numpy(whole), 2 * bounds.drift(TAPS + 1))
    np.testing.assert_array_equal(ops.to_numpy(tail), ops.to_numpy(after))


def test_padding_leaves_what_a_row_has(ops: Backend) -> None:
    """Rows of 0, 2 and 5 tokens in one step of 5, as each by itself."""
    own, lengths = convolved(3, 5), np.array([0, 2, 5], np.int32)
    _, tail = ops.causal_conv(**on(ops, own), lengths=ops.array(lengths))
    for row, length in enumerate(lengths):
        read = np.concatenate([own["tail"][row], own["x"][row, :length]])
        np.testing.assert_array_equal(ops.to_numpy(tail)[row], read[len(read) - (TAPS - 1) :])
    arrays = delta(3, 5)
    for name in ("decay", "beta"):
        arrays[name] = np.where(np.arange(5)[None, :, None] < lengths[:, None, None], arrays[name], 0)
    _, state = ops.gated_delta(**on(ops, arrays))
    np.testing.assert_array_equal(ops.to_numpy(state)[0], arrays["state"][0])
    for row, length in enumerate(lengths[1:].tolist(), 1):
        alone = {name: x[row : row + 1] if name == "state" else x[row : row + 1, :length] for name, x in arrays.items()}
        _, expected = ops.gated_delta(**on(ops, alone))
        bounds.assert_near(ops.to_numpy(state)[row], ops.to_numpy(expected)[0], error(5))


def test_documents_know_nothing_of_each_other(ops: Backend) -> None:
    arrays, first = delta(1, 100), 41
    fresh = np.arange(100)[None] == first
    both, after = ops.gated_delta(**on(ops, arrays), fresh=ops.array(fresh))
    later = {name: np.zeros_like(x) if name == "state" else x[:, first:] for name, x in arrays.items()}
    alone, expected = ops.gated_delta(**on(ops, later))
    bounds.assert_near(ops.to_numpy(both)[:, first:], ops.to_numpy(alone), error(100))
    bounds.assert_near(ops.to_numpy(after), ops.to_numpy(expected), error(100))


@pytest.mark.parametrize("least", [-30.0, -1000.0, -np.inf])
@pytest.mark.parametrize("documents", [False, True])
def test_a_token_that_forgets_costs_later_ones_no_digits(ops: Backend, least: float, documents: bool) -> None:
    """Sums of decays over many tokens are large where one token forgets nearly all, and differences of large sums have
    few digits left of the small decays behind it."""
    arrays = delta(2, 130)
    arrays["decay"] = np.where(normal(*arrays["decay"].shape, seed=7) > 1, np.float32(least), arrays["decay"] * 0.1)
    fresh = begins(2, 130) if documents else None
    oracle = NumpyBackend(dtype="float64")
    exact = oracle.gated_delta(**{name: x.astype(np.float64) for name, x in arrays.items()}, fresh=fresh)
    found = ops.gated_delta(**on(ops, arrays), fresh=None if fresh is None else ops.array(fresh))
    for part, expected in zip(found, exact, strict=True):
        bounds.assert_near(ops.to_numpy(part), expected, error(130))


def test_a_state_that_is_given_stays(ops: Backend) -> None:
    own, read = on(ops, delta(2, 3)), on(ops, convolved(2, 3))
    kept = ops.to_numpy(own["state"]).copy(), ops.to_numpy(read["tail"]).copy()
    ops.gated_delta(**own)
    ops.causal_conv(**read)
    np.testing.assert_array_equal(ops.to_numpy(own["state"]), kept[0])
    np.testing.assert_array_equal(ops.to_numpy(read["tail"]), kept[1])


def test_the_rule_reads_back_what_it_wrote() -> None:
    """With beta 1 and no decay a key gives its value, whatever was there before."""
    ops, arrays = NumpyBackend(dtype="float64"), delta(1, 1)
    arrays = {name: x.astype(np.float64) for name, x in arrays.items()} | {
        "decay": np.zeros((1, 1, 4)),
        "beta": np.ones((1, 1, 4)),
    }
    arrays["q"] = arrays["k"] = arrays["k"] / np.linalg.norm(arrays["k"], axis=-1, keepdims=True)
    found, _ = ops.gated_delta(**arrays)
    np.testing.assert_allclose(found, arrays["v"], atol=1e-12)


def test_functions_of_large_numbers(ops: Backend) -> None:
    x = np.array([-1000, -90, -20, 0, 20, 90, 1000], np.float32)
    found = ops.to_numpy(ops.softplus(ops.array(x))), ops.to_numpy(ops.sigmoid(ops.array(x)))
    np.testing.assert_allclose(found[0], np.logaddexp(x.astype(np.float64), 0), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(found[1], np.exp(-np.logaddexp(-x.astype(np.float64), 0)), rtol=1e-6, atol=1e-30)
