"""AdamW against torch's on every backend, clipping against torch's, and the learning rates of the schedules."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import partita_backends
from partita.backend import Backend
from partita.errors import DataError
from partita.training.optim import AdamW, clip_factor, global_norm, moments_of, update
from partita.training.schedule import Schedule

from ... import bounds


@pytest.fixture(params=partita_backends.names(), scope="module")
def ops(request: pytest.FixtureRequest) -> Backend:
    return partita_backends.load(request.param, dtype="float32")


SHAPES = {"matrix": (7, 5), "other": (3, 4), "vector": (6,)}


@pytest.mark.parametrize("settings", [AdamW(), AdamW(0.8, 0.95, 1e-6, 0.3), AdamW(weight_decay=0.0)], ids=str)
def test_adamw_is_torchs(ops: Backend, settings: AdamW) -> None:
    import torch

    random = np.random.default_rng(0)
    start = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    theirs = {name: torch.nn.Parameter(torch.from_numpy(x.copy())) for name, x in start.items()}
    groups = [
        {"params": [theirs["matrix"], theirs["other"]], "weight_decay": settings.weight_decay},
        {"params": [theirs["vector"]], "weight_decay": 0.0},
    ]
    judge = torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    values = {name: ops.array(x, "float32") for name, x in start.items()}
    moments = moments_of(ops, values)
    for step in range(1, 51):
        rate = 0.01 * (1 + math.sin(step))
        grads = {name: random.standard_normal(x.shape).astype(np.float32) for name, x in start.items()}
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(grads[name].copy())
        for group in judge.param_groups:
            group["lr"] = rate
        judge.step()
        update(ops, values, {n: ops.array(g, "float32") for n, g in grads.items()}, moments, settings, rate)
        for name in SHAPES:  # each step rounds values twice, and what it adds is a hundredth of them
            bounds.assert_near(ops.to_numpy(values[name]), theirs[name].detach().numpy(), bounds.drift(2 * 2 * step))
    assert moments.updates == 50
    state = judge.state[theirs["matrix"]]
    # means over ten and a thousand steps, each of three roundings
    bounds.assert_near(ops.to_numpy(moments.m["matrix"]), state["exp_avg"].numpy(), bounds.drift(2 * 3 * 10), 4)
    bounds.assert_near(ops.to_numpy(moments.v["matrix"]), state["exp_avg_sq"].numpy(), bounds.drift(2 * 3 * 50))


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_is_torchs(ops: Backend, limit: float) -> None:
    import torch

    random = np.random.default_rng(1)
    grads = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES.values()]
    for parameter, grad in zip(parameters, grads.values(), strict=True):
        parameter.grad = torch.from_numpy(grad.copy())
    expected = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    norm = float(ops.to_numpy(global_norm(ops, {name: ops.array(grad, "float32") for name, grad in grads.items()})))
    assert norm == pytest.approx(expected, rel=bounds.drift(2 * 53))
    first = next(iter(grads.values())) * clip_factor(norm, limit)
    np.testing.assert_allclose(first, parameters[0].grad, rtol=bounds.drift(2 * (53 + 4)))
    assert clip_factor(norm, None) == 1.0


def test_nothing_to_train_is_refused(ops: Backend) -> None:
    with pytest.raises(DataError, match="nothing to train"):
        global_norm(ops, {})


@pytest.mark.parametrize(
    ("change", "said"),
    [({"beta1": 1.0}, "betas"), ({"eps": 0.0}, "eps"), ({"weight_decay": -1.0}, "`weight_decay`")],
)
def test_settings_that_cannot_be_are_refused(change: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        AdamW(**change)


# Schedules


def test_a_rise_ends_at_the_peak_and_the_first_step_moves() -> None:
    rates = [Schedule(1.0, 10, 4, "constant").rate(step) for step in range(1, 11)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_linear_and_cosine_fall_from_the_peak_to_the_floor() -> None:
    linear = [Schedule(2.0, 9, 0, "linear").rate(step) for step in range(1, 10)]
    np.testing.assert_allclose(linear, [2 * (10 - step) / 10 for step in range(1, 10)])
    cosine = Schedule(2.0, 9, 0, "cosine", floor=0.1)
    assert cosine.rate(5) == pytest.approx(2 * (0.1 + 0.9 / 2))
    assert cosine.rate(10) == pytest.approx(0.2)
    assert cosine.rate(11) == pytest.approx(0.2)


@given(
    st.integers(1, 500),
    st.floats(0, 1),
    st.sampled_from(["constant", "linear", "cosine"]),
    st.floats(0, 1),
    st.floats(1e-8, 10),
)
def test_every_rate_is_above_zero_and_at_most_the_peak(
    steps: int, warm: float, kind: str, floor: float, peak: float
) -> None:
    schedule = Schedule(peak, steps, int(steps * warm), kind, floor)  # pyright: ignore[reportArgumentType]
    rates = [schedule.rate(step) for step in range(1, steps + 1)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    after = rates[max(schedule.warmup - 1, 0) :]
    assert all(a >= b for a, b in itertools.pairwise(after))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0.0, 10), "`learning_rate`"),
        ((math.nan, 10), "`learning_rate`"),
        ((1.0, 0), "`steps`"),
        ((1.0, 10, 11), "`warmup`"),
        ((1.0, 10, 0, "step"), "`schedule`"),
        ((1.0, 10, 0, "cosine", 2.0), "floor"),
    ],
)
def test_schedules_that_cannot_be_are_refused(arguments: tuple, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Schedule(*arguments)
