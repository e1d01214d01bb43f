"""Where a model's name leads: paths, checked names, the caches, removal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partita.errors import SourceError
from partita.sources import hub_files, pypi
from partita.sources import resolve as sources

from . import loopback
from .loopback import (
    refused,
)

isolated = loopback.isolated  # each test of this module has its own caches and settings


def test_a_folder_and_a_gguf_are_themselves(tmp_path):
    file = tmp_path / "a model.gguf"
    file.write_bytes(b"x")
    assert sources.resolve(str(tmp_path)) == tmp_path
    assert sources.resolve(str(file)) == file
    assert sources.resolve("~/a model.gguf") == file


def test_an_existing_folder_wins_over_a_repository_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    assert sources.resolve("owner/name") == Path("owner/name")


@pytest.mark.parametrize("name", ["./nothing", "~/nothing", "nothing.gguf", "folder/nothing.gguf", "/nothing", "word"])
def test_a_path_that_is_not_there_is_named(name):
    refused(name, name, "does not exist", "partita models list")


def test_other_files_empty_names_and_strange_names_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    refused(str(tmp_path / "notes.txt"), "neither a folder nor a GGUF file")
    refused("", "empty name")
    refused("a\0b", "is not a model's name")
    refused("x" * 5000, "cannot be a path")


@pytest.mark.parametrize(
    "name",
    [
        *("pypi:", "pypi:demo", "pypi:demo==", "pypi:demo==..", "pypi:demo==1/2", "pypi:../x==1", "pypi:demo>=1"),
        *("pypi:-r==1", "pypi:demo==1:../x.gguf", "pypi:demo==1:x.bin"),
        *("hf:one", "hf:a/b/c", "hf:a/../b", "hf:a--b/c", "hf:a/b@../x"),
    ],
)
def test_names_are_checked_before_anything_happens(name, tmp_path):
    refused(name, "is not a model's name")
    assert not (tmp_path / "cache").exists()


@given(
    st.text(alphabet="abAZ01.-_=+!@:/~\\ \0\u00e9", max_size=24),
    st.sampled_from(["", "pypi:", "pypi:a==", "hf:", "hf:a/"]),
)
def test_no_name_leads_out_of_the_caches(text, prefix):
    try:
        what = sources.parse(prefix + text)
    except SourceError:
        return
    if isinstance(what, hub_files.HubModel):
        assert what.storage.resolve().parent == hub_files.hub_cache().resolve()
        assert what.note.resolve().parent == (sources.cache_dir() / "hub").resolve()
        assert hub_files.parse(what.name) == what
    elif isinstance(what, pypi.WheelModel):
        assert what.folder.resolve().parent.parent == (sources.cache_dir() / "pypi").resolve()
        assert pypi.parse(what.name) == what


def test_the_default_is_pinned():
    model = pypi.parse(sources.DEFAULT_MODEL)
    pinned = [key for key in pypi.PINNED if key[:2] == (model.distribution, model.version)]
    assert len(pinned) == 1
    assert len(pypi.PINNED[pinned[0]]) == 64
    refused(None, sources.DEFAULT_MODEL, "offline", offline=True)


def test_the_cache_follows_the_variable_else_the_platform(monkeypatch, tmp_path):
    assert sources.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("PARTITA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert sources.cache_dir().name == "partita"
    assert tmp_path in sources.cache_dir().parents


def test_removal_stays_inside(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    (mine / "snapshots").mkdir(parents=True)
    (mine / "x.gguf").write_bytes(b"x")
    for name in (str(mine), str(mine / "x.gguf")):
        with pytest.raises(SourceError, match="a path of your own"):
            sources.remove(name)
    hub_files.hub_cache().mkdir(parents=True)
    (hub_files.hub_cache() / "models--owner--name").symlink_to(mine)
    with pytest.raises(SourceError, match="outside the cache"):
        sources.remove("hf:owner/name")
    for name in ("hf:owner/none", "pypi:demo==1"):
        with pytest.raises(SourceError, match="is not in"):
            sources.remove(name)
    with pytest.raises(SourceError, match="removed as a whole"):
        sources.remove("hf:owner/name@v1")
    assert (mine / "x.gguf").exists()


def test_finding_a_model_loads_no_library():
    code = (
        "import sys; from partita.sources import resolve; resolve.list_models(); resolve.find('hf:a/b'); "
        "print(*sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"huggingface_hub", "torch", "mlx", "rich", "filelock"} & set(out)
