"""Every family through the commands a person types: a chat, its session, a fine-tuned adapter, a converted folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .. import tiny_models
from .finetuning import partita, write_chats

_ATTEND = ["granite_swa", "exaone4", "seed_oss", "glm4", "ernie4_5", "hunyuan", "ministral3", "cohere2", "mellum"]
_RECURRENT = ["qwen3_5", "qwen3_5_moe", "qwen3_next", "olmo_hybrid", "lfm2", "lfm2_moe", "lfm3"]
LATER = [
    *_ATTEND,
    *_RECURRENT,
    "gemma4",
    "gemma4-experts",
    "laguna",
    "laguna-elements",
    "muse_glimmer",
    "muse_glimmer-odd",
]
"""Families without tests of their own elsewhere in tests/apps."""
BY_SMALL_STEPS = {"muse_glimmer", "muse_glimmer-odd"}
"""Losses of which go up again after the first steps of 0.2."""
QUICK = (("hunyuan", "torch"), ("qwen3_5", "mlx"), ("gemma4", "mlx"), ("laguna", "torch"), ("muse_glimmer", "mlx"))
CASES = [
    pytest.param(name, backend, marks=[pytest.mark.slow] * ((name, backend) not in QUICK))
    for name in LATER
    for backend in ("mlx", "torch")
]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_chat_session_adapter_and_conversion(
    tiny_family: Callable[[str], Path], tmp_path: Path, name: str, backend: str
) -> None:
    model, own = tiny_family(name), ("--backend", backend, "--dtype", "float32")
    asked = ("--prompt", "the quick fox", "--temperature", 0, "--max-tokens", 12, "--no-history")
    first = partita("chat", model, *own, *asked).stdout
    assert len(first) > 1
    session = ("--session", tmp_path / "talk.st")
    for said in ("the quick fox", "and then the dog"):
        partita("chat", model, *own, *session, "--prompt", said, "--temperature", 0, "--max-tokens", 8)
    assert (tmp_path / "talk.st").stat().st_size > 0

    chats, adapter = write_chats(tmp_path / "chats.jsonl", 8), tmp_path / "adapter"
    rate = 0.05 if name in BY_SMALL_STEPS else 0.2
    quick = ("--steps", 8, "--max-length", 64, "--rank", 2, "--learning-rate", rate, "--sample-tokens", 0)
    trained = partita("finetune", model, chats, "--out", adapter, *quick, "--backend", backend, "--json").stdout
    losses = [loss for _, loss in json.loads(trained)["train_loss"]]
    assert losses[-1] < losses[0]
    assert partita("chat", model, *own, *asked, "--adapter", adapter).stdout != first

    partita("convert", model, tmp_path / "mlx", "--quantize", 8, "--calibration", "none")
    assert len(partita("chat", tmp_path / "mlx", *own, *asked).stdout) > 1
    partita("convert", tmp_path / "mlx", tmp_path / "dense", "--to", "huggingface")
    assert len(partita("chat", tmp_path / "dense", *own, *asked).stdout) > 1


def test_they_are_families() -> None:
    assert set(LATER) <= set(tiny_models.NAMES)
