"""A training step on MLX as Metal gets it: its launches, counted in its graph, and its numbers, computed on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import partita
import partita_backends
from partita.adapters.lora import LoraConfig
from partita.checkpoint.open import open_checkpoint
from partita.model.load import load_decoder
from partita.training.trainable import adapted
from partita.training.trainer import Step, TrainConfig, Trainer
from partita_apps.bench.train import Repeated, full_rows
from partita_apps.bench.train_launches import count
from partita_backends import process_memory

from .. import bounds
from ..conftest import LAYERS

TOKENS = [list(range(40, 57))]
LAYER = 82
"""Launches of a layer: eight of each of its seven projections and its adapter, which is added by a product, forward and
back; 14 of attention; norms, gates and rotations one or two each way, and sums of streams."""
STEP = 75
"""Those that no layer has."""


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama packed in 4 bits."""
    made = tmp_path_factory.mktemp("packed") / "model"
    partita.convert(tiny_model, made, quantize="4:32")
    return made


@pytest.mark.parametrize("again", [False, True])
def test_launches_of_a_step(folder: Path, again: bool) -> None:
    found = count(backend="mlx", model=str(folder), tokens=TOKENS, rank=4, dtype="bfloat16", checkpoint=again)
    products = 7 * LAYERS
    assert found["QuantizedMatmul"] == products * (2 + again) + 2 - 3  # nothing is trained below the first three
    assert found["rms_norm"] == 2 * LAYERS * (1 + again) + 1
    assert found["Softmax"] == LAYERS * (2 + again)  # scores are computed again for their gradient
    if not again:
        assert sum(found.values()) <= LAYERS * LAYER + STEP, found
    # integers are taken apart for the rows of the embedding alone: no weight is made dense
    assert sum(number for name, number in found.items() if "Shift" in name) <= 8
    assert not [name for name in found if "Quantize" in name and name != "QuantizedMatmul"]
    assert found.get("AsType", 0) < 7 * LAYERS  # no value is cast by itself


@pytest.fixture
def as_on_metal() -> Iterator[Any]:
    """MLX on a CPU that computes as on Metal; compiled, it would call a C++ compiler for each kernel."""
    mx.disable_compile()
    ops: Any = partita_backends.load("mlx", device="cpu", dtype="float32")
    ops.device, ops.compiles, ops.memory = "metal", True, process_memory.read
    yield ops
    mx.enable_compile()


def steps(ops: Any, folder: Path, *, again: bool = False) -> tuple[list[float], dict[str, np.ndarray]]:
    decoder = load_decoder(ops, open_checkpoint(folder), stack=False)
    trainable, values = adapted(ops, decoder, LoraConfig(rank=4, alpha=8))
    batch = full_rows(np.asarray(TOKENS, np.int32))
    config = TrainConfig(3, 1e-2, schedule="constant", grad_checkpoint=again)
    trainer = Trainer(ops, trainable, values, config, Repeated(batch))
    losses = [event.loss for event in trainer.run() if isinstance(event, Step)]
    return losses, trainer.state().values


@pytest.mark.parametrize("again", [False, True])
def test_steps_as_on_metal_are_those_of_a_cpu(as_on_metal: Any, folder: Path, again: bool) -> None:
    losses, values = steps(as_on_metal, folder, again=again)
    expected, others = steps(partita_backends.load("mlx", device="cpu", dtype="float32"), folder)
    np.testing.assert_allclose(losses, expected, rtol=bounds.drift(200))
    for name, value in others.items():
        np.testing.assert_allclose(values[name], value, rtol=0, atol=2e-4, err_msg=name)
