"""What tests of training share: tiny models on a backend, batches out of the air, and a source that can be restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from partita.adapters.lora import LoraConfig
from partita.backend import Backend
from partita.checkpoint.open import open_checkpoint
from partita.data.batches import Batch
from partita.model.load import load_decoder
from partita.training.packed import Sequences
from partita.training.trainable import Trainable, adapted, full


def batch_of(rows: Sequence[Sequence[Sequence[int]]], masked: int = 0) -> Batch:
    """rows of documents of token ids, packed. masked: how many first targets of each document are not trained."""
    width = max(sum(len(document) - 1 for document in row) for row in rows)
    shape = (len(rows), width)
    tokens, targets, positions = (np.zeros(shape, np.int32) for _ in range(3))
    weights, segments = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
    for r, row in enumerate(rows):
        at = 0
        for i, document in enumerate(row):
            count = len(document) - 1
            part = (r, slice(at, at + count))
            tokens[part], targets[part] = document[:-1], document[1:]
            weights[part] = np.arange(count) >= masked
            positions[part], segments[part] = np.arange(count), i
            at += count
    return Batch(tokens, targets, weights, positions, segments)


def documents(count: int, length: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random documents of about a length."""
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab_size, length - i % 5).tolist() for i in range(count)]


class Fixed:
    """Batches in turn, for ever."""

    def __init__(self, batches: Sequence[Batch]):
        self.batches, self.index = batches, 0

    def __next__(self) -> Batch:
        self.index += 1
        return self.batches[(self.index - 1) % len(self.batches)]

    def state(self) -> dict[str, Any]:
        return {"index": self.index}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.index = state["index"]


def lora(
    ops: Backend, folder: Path, config: LoraConfig | None = None, spread: float = 0.0
) -> tuple[Trainable, dict[str, Any]]:
    """A tiny model with adapters. spread: of random numbers added to the initial values, so that B is not zero."""
    decoder = load_decoder(ops, open_checkpoint(folder), stack=False)
    model, values = adapted(ops, decoder, config or LoraConfig(rank=4, alpha=8))
    return model, jittered(ops, values, spread)


def full_model(ops: Backend, folder: Path) -> tuple[Trainable, dict[str, Any]]:
    checkpoint = open_checkpoint(folder)
    return full(ops, load_decoder(ops, checkpoint, stack=False), checkpoint)


def jittered(ops: Backend, values: Mapping[str, Any], spread: float) -> dict[str, Any]:
    random, changed = np.random.default_rng(3), {}
    for name in sorted(values):
        host = ops.to_numpy(values[name])
        changed[name] = ops.array((host + spread * random.standard_normal(host.shape)).astype(np.float32), "float32")
    return changed


def gradients(
    ops: Backend, model: Trainable, values: Mapping[str, Any], batch: Batch, **options: Any
) -> tuple[float, dict[str, np.ndarray]]:
    """The mean loss of a batch and the gradients of every trainable, on the host."""
    view = Sequences(ops, model.decoder.config).view(batch.positions, batch.segments)

    def loss(ops: Backend, values: dict[str, Any]) -> tuple[Any, tuple[()]]:
        return model.loss(ops, values, batch, view, **options) * (1 / batch.trained), ()

    (value, _), grads = ops.value_and_grad(loss)(dict(values))
    return float(ops.to_numpy(value)), {name: ops.to_numpy(grad) for name, grad in grads.items()}


def mean_loss(ops: Backend, model: Trainable, values: Mapping[str, Any], batch: Batch) -> float:
    """Without gradients, which numpy can do too."""
    view = Sequences(ops, model.decoder.config).view(batch.positions, batch.segments)
    value, _ = ops.value(lambda ops, values: (model.loss(ops, values, batch, view), ()))(dict(values))
    return float(ops.to_numpy(value)) / batch.trained
