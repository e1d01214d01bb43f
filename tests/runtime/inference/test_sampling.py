"""Sampling rules against their definitions in numpy, on every backend."""

from __future__ import annotations

import numpy as np
import pytest

import partita_backends
from partita.backend import Backend
from partita.errors import DataError
from partita.inference.sampling import Sampler, Sampling, recommended

V = 40


@pytest.fixture(params=partita_backends.names(), scope="module")
def ops(request: pytest.FixtureRequest) -> Backend:
    return partita_backends.load(request.param, dtype="float32")


def logits(seed: int = 0, rows: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, V)) * 2).astype(np.float32)


def draws(ops: Backend, sampling: Sampling, x: np.ndarray, count: int) -> np.ndarray:
    sampler, x_device = Sampler(ops, sampling, V, batch=x.shape[0]), ops.array(x)
    return np.array([ops.to_numpy(sampler(x_device)) for _ in range(count)])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def allowed(x: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities after the rules, straight from their definitions."""
    p = softmax(x / sampling.temperature)
    if sampling.top_k:
        p = np.where(p >= np.sort(p)[-sampling.top_k], p, 0)
        p /= p.sum()
    if sampling.top_p < 1:
        order = np.argsort(-p)
        needed = np.searchsorted(np.cumsum(p[order]), sampling.top_p) + 1
        p[order[needed:]] = 0
        p /= p.sum()
    p = np.where(p >= sampling.min_p * p.max(), p, 0)
    return p / p.sum()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.5, seed=2),
        Sampling(temperature=1.5, top_k=5, seed=3),
        Sampling(temperature=1.0, top_p=0.7, seed=4),
        Sampling(temperature=1.0, min_p=0.2, seed=5),
        Sampling(temperature=2.0, top_k=12, top_p=0.8, min_p=0.1, seed=6),
    ],
)
def test_frequencies_follow_the_rules(ops: Backend, sampling: Sampling) -> None:
    x = logits()
    expected = allowed(x[0], sampling)
    counts = np.bincount(draws(ops, sampling, x, 2000)[:, 0], minlength=V) / 2000
    assert not counts[expected == 0].any()
    assert np.abs(counts - expected).max() < 0.05


def test_greedy(ops: Backend) -> None:
    x = logits(rows=3)
    assert draws(ops, Sampling(), x, 1)[0].tolist() == x.argmax(-1).tolist()


def test_a_seed_gives_the_same_tokens_on_every_backend(ops: Backend) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=7)
    oracle = draws(partita_backends.load("numpy"), sampling, logits(rows=2), 50)
    np.testing.assert_array_equal(draws(ops, sampling, logits(rows=2), 50), oracle)
    assert (draws(ops, Sampling(temperature=1.0, top_p=0.95, seed=8), logits(rows=2), 50) != oracle).any()


def test_penalties_accumulate(ops: Backend) -> None:
    """Frequency counts every occurrence; presence once; repetition covers the prompt, and divides or multiplies."""
    x = np.zeros((1, V), np.float32)
    x[0, 3], x[0, 4], x[0, 5] = 5.0, 4.5, 4.3
    assert draws(ops, Sampling(frequency_penalty=0.3), x, 6)[:, 0].tolist() == [3, 3, 4, 3, 5, 4]
    assert draws(ops, Sampling(presence_penalty=1.0), x, 4)[:, 0].tolist() == [3, 4, 5, 3]
    sampler = Sampler(ops, Sampling(repetition_penalty=1.3), V, prompt=[3, 3])
    assert ops.to_numpy(sampler(ops.array(x))).tolist() == [4]  # 5 / 1.3 < 4.5
    negative = np.full((1, V), -10.0, np.float32)
    negative[0, 3], negative[0, 4] = -1.0, -1.2
    assert ops.to_numpy(
        Sampler(ops, Sampling(repetition_penalty=1.3), V, prompt=[3])(ops.array(negative))
    ).tolist() == [4]


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"frequency_penalty": 1000},
        {"presence_penalty": float("inf")},
        {"seed": -1},
    ],
)
def test_settings_outside_their_range_are_named(setting: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(setting))):
        Sampling(**setting)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"eos_token_id": 2, "temperature": None}, None),
        ({"repetition_penalty": 1.1}, None),
        ({"do_sample": True}, Sampling(temperature=1.0)),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}, Sampling(0.6, 20, 0.95)),
        ({"min_p": 0.1, "repetition_penalty": 1.05}, Sampling(1.0, min_p=0.1, repetition_penalty=1.05)),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.05}, Sampling(repetition_penalty=1.05)),
        ({"temperature": -1, "top_k": 0.5, "top_p": "high", "min_p": True}, None),
        ({"temperature": float("nan"), "top_k": 40}, Sampling(1.0, 40)),
    ],
)
def test_what_a_generation_config_recommends(config: dict[str, object], expected: Sampling | None) -> None:
    assert recommended(config) == expected
