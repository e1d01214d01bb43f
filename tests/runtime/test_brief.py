"""What is shown of a model at a Python prompt: a line for each part, never its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import partita
import partita_backends
from partita.adapters.lora import LoraConfig
from partita.brief import Brief, brief
from partita.checkpoint.open import open_checkpoint
from partita.quantization import quantize_weight

from .training.runs import batch_of, documents, lora

SHORT = 200  # characters


def parts(value: Any) -> Iterator[Any]:
    """A dataclass and every one inside it."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from parts(item)


@pytest.mark.parametrize("backend", partita_backends.names())
def test_every_part_of_a_model_is_one_short_line(tiny_model: Path, backend: str) -> None:
    model = partita.load(tiny_model, backend=backend)
    session = model.session()
    list(session.generate(model.encode("the fox"), max_tokens=2))
    for value in (model, session, session.cache, session.cache.spec, session.cache.snapshot(), model.tokenizer):
        assert len(repr(value)) <= SHORT
    weights = (value for value in parts(model.decoder) if not type(value).__name__.endswith("Config"))
    for value in weights:
        assert len(repr(value)) <= SHORT
        assert "\n" not in repr(value)
    assert "layers=<2>" in repr(model.config)  # all its fields are worth reading, thirty layers' are not
    for said in (model.config.model_type, "2 layers", str(model.config.max_positions), f"{backend} on "):
        assert said in repr(model)
    assert f"({model.tokenizer.vocab_size} tokens" in repr(model.tokenizer)


def test_so_is_what_files_and_training_hold(tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    trainable, _ = lora(partita_backends.load("torch"), tiny_model, LoraConfig(rank=4, alpha=8))
    packed = quantize_weight(np.ones((64, 64), np.float32), 4, 32)
    for value in (checkpoint, trainable, batch_of([documents(2, 20, 280)]), packed):
        assert len(repr(value)) <= SHORT
    assert repr(packed).startswith("Packed(weight=uint32[64, 8], scales=")


def test_a_dataclass_does_not_write_its_own() -> None:
    @dataclasses.dataclass(frozen=True)
    class Pair(Brief):
        left: np.ndarray
        right: tuple[int, ...]

    @dataclasses.dataclass(frozen=True)
    class Named(Pair):
        name: str

        def __repr__(self) -> str:
            return self.name

    assert repr(Pair(np.zeros(2, np.float32), (1, 2, 3))) == "Pair(left=float32[2], right=<3>)"
    assert repr(Named(np.zeros(2), (), "a")) == "a"


def test_one_field() -> None:
    assert brief(np.zeros((2, 3), np.float16)) == "float16[2, 3]"
    assert brief("x" * 100) == repr("x" * 19 + "…" + "x" * 20)
    assert brief(Path("a.gguf")) == "'a.gguf'"
    assert (brief([1, 2]), brief(None), brief(0.5)) == ("<2>", "None", "0.5")
