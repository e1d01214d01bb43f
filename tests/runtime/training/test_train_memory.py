"""What training is said to take: monotonous in every setting, and refused with flags that do help."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import partita_backends
from partita.cache.budget import RESERVE
from partita.checkpoint.open import open_checkpoint
from partita.errors import MemoryBudgetError
from partita.model.config import ModelConfig
from partita.model.load import read_config
from partita.training.memory import TrainingShape, admit, estimate

from ... import tiny_models
from .runs import batch_of, documents, gradients, lora

SHAPE = TrainingShape(rows=4, length=256, trained=100_000)


@pytest.fixture
def config(tiny_family: Callable[[str], Path]) -> ModelConfig:
    return read_config(open_checkpoint(tiny_family("gemma3")))


def test_more_of_anything_takes_more(config: ModelConfig) -> None:
    total = estimate(config, SHAPE).total
    assert estimate(config, replace(SHAPE, rows=5)).total > total
    assert estimate(config, replace(SHAPE, length=257)).total > total
    assert estimate(config, replace(SHAPE, trained=100_001)).total > total
    assert estimate(config, replace(SHAPE, itemsize=2)).total < total
    assert estimate(config, replace(SHAPE, grad_checkpoint=True)).total < total
    assert estimate(config, replace(SHAPE, accumulate=2)).total > total
    assert estimate(config, SHAPE).optimizer == 12 * SHAPE.trained


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_5", "qwen3_5-alike", "olmo_hybrid", "lfm2", "gemma4"])
def test_what_is_kept_for_the_way_back_is_no_more(tiny_family: Callable[[str], Path], name: str) -> None:
    check_what_is_kept(tiny_family(name))


@pytest.mark.parametrize(("name", "kind"), [("lfm2", "conv"), ("qwen3_5", "linear_attention")])
def test_many_layers_that_do_not_attend_keep_no_more(tmp_path: Path, name: str, kind: str) -> None:
    """So many that what is counted beside them cannot stand in for what is not."""
    made = {**tiny_models.FAMILIES[name], "num_hidden_layers": 12, "layer_types": [kind] * 12}
    check_what_is_kept(tiny_models.write(name, tmp_path, made))


def check_what_is_kept(folder: Path) -> None:
    """Every array that torch saves in the pass forward, the adapted weights too."""
    import torch

    ops, found = partita_backends.load("torch", dtype="float32"), documents(8, 60, 280)
    batch = batch_of([found[:4], found[4:]], masked=3)
    model, values = lora(ops, folder, None, spread=0.05)
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        gradients(ops, model, values, batch)
    rows, length = batch.tokens.shape
    needs = estimate(model.decoder.config, TrainingShape(rows, length, trained=0))
    assert sum(x.untyped_storage().nbytes() for x in kept.values()) <= needs.activations + needs.logits


@pytest.mark.parametrize("grad_checkpoint", [False, True])
def test_settings_that_are_named_do_help(config: ModelConfig, grad_checkpoint: bool) -> None:
    shape = replace(SHAPE, grad_checkpoint=grad_checkpoint)
    helped = set()
    for free in range(RESERVE, RESERVE + estimate(config, shape).total, 200_000):
        with pytest.raises(MemoryBudgetError) as caught:
            admit(config, shape, free)
        said = str(caught.value).partition("try ")[2]
        named = dict(re.findall(r"`(\S+)`(?: (\d+))?", said))
        helped.add(tuple(named))
        if not named:
            continue
        other = replace(
            shape,
            grad_checkpoint=grad_checkpoint or "grad_checkpoint" in named,
            rows=int(named.get("batch_size") or shape.rows),
            length=int(named.get("max_length") or shape.length),
        )
        assert int(named.get("accumulate") or shape.rows) * other.rows in (shape.rows, shape.rows**2)
        assert admit(config, other, free).total <= free - RESERVE
    assert len(helped) > 2


def test_what_fits_is_admitted_and_full_training_may_become_adapters(config: ModelConfig) -> None:
    needs = estimate(config, SHAPE)
    assert admit(config, SHAPE, needs.total + RESERVE) == needs
    with pytest.raises(MemoryBudgetError, match="try `method` lora"):
        admit(config, replace(SHAPE, trained=10**9), 2**30, full=True)
    with pytest.raises(MemoryBudgetError, match="a lower `rank`"):
        admit(config, replace(SHAPE, trained=10**9), 2**30)


def test_batches_that_do_not_fit_are_refused_with_a_number_that_does(config: ModelConfig) -> None:
    shape = replace(SHAPE, accumulate=10**9)
    with pytest.raises(MemoryBudgetError, match=r"batches 18.6 TiB.*try `accumulate` \d+$") as caught:
        admit(config, shape, 2**31)
    admit(config, replace(shape, accumulate=int(str(caught.value).split()[-1])), 2**31)
