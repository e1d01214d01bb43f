"""What training will take, told before it is allocated; and every flag that a refusal names makes it fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import partita_backends
from partita.admission import RESERVE
from partita.checkpoint import open_checkpoint
from partita.config import ModelConfig
from partita.errors import MemoryBudgetError
from partita.loading import read_config
from partita.lora import LoraConfig
from partita.optim import moments_of
from partita.train_memory import TrainingShape, admit, estimate

from .training import lora

SHAPE = TrainingShape(rows=8, length=512, trained=100_000)


@pytest.fixture
def config(tiny_model: Path) -> ModelConfig:
    return read_config(open_checkpoint(tiny_model))


def test_moments_and_gradients_are_exact(config: ModelConfig, tiny_model: Path) -> None:
    ops = partita_backends.load("numpy")
    _, values = lora(ops, tiny_model, LoraConfig(rank=4))
    moments = moments_of(ops, values)
    held = sum(int(x.nbytes) for part in (values, moments.m, moments.v) for x in part.values())  # values: as gradients
    count = sum(x.size for x in values.values())
    assert estimate(config, replace(SHAPE, trained=count)).optimizer == held


@pytest.mark.parametrize(
    "change", [{"rows": 4}, {"length": 256}, {"trained": 50_000}, {"grad_checkpoint": True}, {"packing": False}]
)
def test_less_of_anything_takes_less(config: ModelConfig, change: dict) -> None:
    deeper = replace(config, layers=config.layers * 4)
    assert estimate(deeper, replace(SHAPE, **change)).total < estimate(deeper, SHAPE).total


def test_what_fits_is_admitted(config: ModelConfig) -> None:
    needs = estimate(config, SHAPE)
    assert admit(config, SHAPE, needs.total + RESERVE) == needs
    with pytest.raises(MemoryBudgetError):
        admit(config, SHAPE, needs.total + RESERVE - 1)


def test_the_flags_of_a_refusal_make_it_fit(config: ModelConfig) -> None:
    deeper, seen = replace(config, layers=config.layers * 8), set()
    total = estimate(deeper, SHAPE).total
    for share in (0.9, 0.5, 0.2, 0.1, 0.06, 0.01):
        free = int(total * share) + RESERVE
        with pytest.raises(MemoryBudgetError) as caught:
            admit(deeper, SHAPE, free)
        said = str(caught.value)
        changes: dict = {"grad_checkpoint": True} if "--grad-checkpoint" in said else {}
        if "--batch-size 1" in said:
            assert "--accumulate 8" in said or "--max-length" in said
            changes["rows"] = 1
        if match := re.search(r"--max-length (\d+)", said):
            changes["length"] = int(match[1])
        if changes:
            admit(deeper, replace(SHAPE, **changes), free)
        else:
            assert "--rank" in said
        seen.add(tuple(sorted(changes)))
    assert len(seen) >= 3


def test_full_training_that_cannot_fit_is_pointed_to_adapters(config: ModelConfig) -> None:
    with pytest.raises(MemoryBudgetError, match="--method lora"):
        admit(config, replace(SHAPE, trained=10**9), RESERVE + 1000, full=True)
