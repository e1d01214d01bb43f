"""Rows of one sampler with settings of their own: each chooses what it chooses alone, whatever rows are beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partita.backend import Backend
from partita.errors import DataError
from partita.inference.sampling import Sampler, Sampling

V = 60
SETTINGS = (
    Sampling(),
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.4, top_k=5, seed=2),
    Sampling(temperature=1.5, top_p=0.7, seed=3),
    Sampling(temperature=2.0, top_k=12, top_p=0.8, min_p=0.1, seed=4),
    Sampling(temperature=1.0, min_p=0.2, seed=5),
    Sampling(repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.5),
    Sampling(temperature=0.9, top_k=V + 9, repetition_penalty=1.2, frequency_penalty=-0.3, seed=6),
)
PROMPTS = ((3, 3, 9), (), (5,), (1, 2, 3), (4,), (7, 8), (11, 12, 13, 14), (20, 21))


def logits(step: int) -> np.ndarray:
    """Of every row at one step, float32 (rows, V)."""
    return (np.random.default_rng(step).standard_normal((len(SETTINGS), V)) * 2).astype(np.float32)


def alone(ops: Backend, row: int, steps: int) -> list[int]:
    sampler = Sampler(ops, SETTINGS[row], V, PROMPTS[row])
    return [int(ops.to_numpy(sampler(ops.array(logits(i)[row : row + 1])))[0]) for i in range(steps)]


def extended(ops: Backend, rows: Sequence[int]) -> Sampler:
    first, *others = (Sampler(ops, SETTINGS[row], V, PROMPTS[row]) for row in rows)
    for other in others:
        first.extend(other)
    return first


@pytest.mark.parametrize(
    "rows",
    [
        range(len(SETTINGS)),
        (0, 1),  # some draw, none orders
        (2, 3),  # all draw in order
        (2, 4),  # two top-k
        (0, 6),  # none draws
        (1, 5, 0),
        (7, 2, 1),
        (4, 4, 4),  # rows that agree
    ],
)
def test_rows_choose_what_they_choose_alone(ops: Backend, rows: Sequence[int]) -> None:
    sampler = extended(ops, rows)
    assert sampler.batch == len(rows)
    found = np.array([ops.to_numpy(sampler(ops.array(logits(i)[list(rows)]))) for i in range(60)])
    assert found.dtype == np.int32
    for place, row in enumerate(rows):
        assert found[:, place].tolist() == alone(ops, row, 60)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.lists(st.booleans(), min_size=len(SETTINGS), max_size=len(SETTINGS)), max_size=8))
def test_rows_are_filtered_and_extended_at_any_step(ops: Backend, turns: list[list[bool]]) -> None:
    """A turn says of each row whether it is to be in the batch; one that left never comes back."""
    expected = [alone(ops, row, 3 * len(turns)) for row in range(len(SETTINGS))]
    sampler: Sampler | None = None
    members: list[int] = []
    said: dict[int, list[int]] = {}
    for turn in turns:
        staying = [place for place, row in enumerate(members) if turn[row]]
        joining = [row for row in range(len(SETTINGS)) if turn[row] and row not in said]
        if sampler is not None:
            sampler.filter(staying)
        members = [members[place] for place in staying]
        if joining:
            others = extended(ops, joining)
            if sampler is None:
                sampler = others
            else:
                sampler.extend(others)
        members += joining
        said |= {row: [] for row in joining}
        if sampler is None or not members:
            continue
        for _ in range(3):
            x = np.stack([logits(len(said[row]))[row] for row in members])
            for row, token in zip(members, ops.to_numpy(sampler(ops.array(x))).tolist(), strict=True):
                said[row].append(token)
    for row, tokens in said.items():
        assert tokens == expected[row][: len(tokens)]


def test_settings_of_each_row_and_one_prompt(ops: Backend) -> None:
    """As for several replies to one prompt."""
    sampler = Sampler(ops, SETTINGS, V, [3, 4])
    single = [Sampler(ops, each, V, [3, 4]) for each in SETTINGS]
    for i in range(20):
        x = logits(i)
        found = ops.to_numpy(sampler(ops.array(x))).tolist()
        assert found == [int(ops.to_numpy(s(ops.array(x[j : j + 1])))[0]) for j, s in enumerate(single)]


def test_rows_of_one_seed_draw_numbers_of_their_own(ops: Backend) -> None:
    sampling = Sampling(temperature=1.5, seed=9)
    both, first = Sampler(ops, sampling, V, batch=2), Sampler(ops, sampling, V)
    x = np.repeat(logits(0)[:1], 2, 0)
    found = np.array([ops.to_numpy(both(ops.array(x))) for _ in range(30)])
    assert (found[:, 0] != found[:, 1]).any()
    assert found[:, 0].tolist() == [int(ops.to_numpy(first(ops.array(x[:1])))[0]) for _ in range(30)]


def test_another_vocabulary_is_refused(ops: Backend) -> None:
    with pytest.raises(DataError, match=f"{V} tokens .* {V + 1}"):
        Sampler(ops, Sampling(), V).extend(Sampler(ops, Sampling(), V + 1))
