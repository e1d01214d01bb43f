"""How a conversation samples unless told otherwise, who says so, and what is said of a reply that was cut."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import partita
from partita.checkpoint.open import open_checkpoint
from partita.inference.sampling import Sampling
from partita_apps.chat.commands import perform
from partita_apps.conversation.local import CacheOptions, LocalConversation
from partita_apps.conversation.settings import CONVERSATION, Settings, usual_sampling
from partita_convert.gguf.write import write_gguf

from . import command

RECOMMENDED = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9}


@pytest.fixture(scope="module")
def recommending(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a generation_config.json."""
    folder = tmp_path_factory.mktemp("recommending") / "tiny"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps(RECOMMENDED))
    return folder


def run(model: Path, *options: object) -> subprocess.CompletedProcess[str]:
    done = command.run("chat", model, "--backend", "numpy", *options)
    done.check_returncode()
    return done


def shown(model: Path, given: dict[str, object]) -> dict[str, str]:
    """The settings of a conversation as /show tells them."""
    loaded = partita.load(model, backend="numpy")
    conversation = LocalConversation(
        loaded, Settings.over(usual_sampling(loaded.recommended)[0], given), CacheOptions()
    )
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in str(perform(conversation, "/show")).splitlines()}


def test_a_conversation_takes_what_the_model_recommends(recommending: Path) -> None:
    rows = shown(recommending, {"top_p": 0.5})
    assert (rows["temperature"], rows["top_k"]) == ("0.6 (the model's)", "20 (the model's)")
    assert (rows["top_p"], rows["min_p"]) == ("0.5", "0.0")


def test_a_conversation_has_a_default_where_the_model_says_nothing(tiny_model: Path) -> None:
    rows = shown(tiny_model, {})
    assert rows["temperature"] == f"{CONVERSATION.temperature} (default)"
    assert (rows["min_p"], rows["top_p"]) == (f"{CONVERSATION.min_p} (default)", "1.0")


def test_a_temperature_of_0_is_meant_exactly() -> None:
    usual = Sampling(0.6, 20, 0.9, repetition_penalty=1.2)
    assert Settings.over(usual, {"temperature": 0.0, "max_tokens": 9}).sampling == Sampling()
    assert Settings.over(usual, {"temperature": 0.0, "top_k": 5}).sampling == Sampling(top_k=5)
    assert Settings.over(usual, {"temperature": 0.2}).sampling == Sampling(0.2, 20, 0.9, repetition_penalty=1.2)


def test_one_prompt_is_answered_greedily_whatever_the_model_recommends(recommending: Path, tiny_model: Path) -> None:
    found, plain = (
        json.loads(run(model, "-p", "the fox", "-n", 12, "--json").stdout) for model in (recommending, tiny_model)
    )
    assert found["seed"] is None
    assert found["tokens"] == plain["tokens"]
    document = json.loads(
        run(recommending, "-p", "the fox", "-n", 12, "--json", "--temperature", 0.6, "--seed", 1).stdout
    )
    assert document["seed"] == 1
    assert document["tokens"] != plain["tokens"]


def test_a_recommendation_travels_through_gguf(recommending: Path, tmp_path: Path) -> None:
    write_gguf(open_checkpoint(recommending), tmp_path / "tiny.gguf", kind="F32")
    found = partita.load(tmp_path / "tiny.gguf", backend="numpy")
    assert found.recommended == Sampling(0.6, 20, 0.9)


def test_a_reply_that_was_cut_says_so_unless_its_length_was_asked_for(tiny_model: Path) -> None:
    """The tiny model's greedy replies never end by themselves."""
    assert "partita: the reply was cut at 512 tokens: give -n N" in run(tiny_model, "-p", "the fox").stderr
    assert run(tiny_model, "-p", "the fox", "-n", 5).stderr == ""
