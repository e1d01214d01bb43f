"""Whole files and folders: replaced or new, permissions, links, leftovers, two writers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from partita.errors import DataError
from partita.files.atomic import (
    refuse_unwritable,
    remove_leftovers,
    remove_whole,
    scratch_folder,
    whole_file,
    whole_folder,
)
from partita.files.safetensors import open_file
from partita.files.safetensors_writer import write_tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def killed(program: str, folder: Path) -> None:
    """A process that dies at the end of this program."""
    lines = f"import os, signal\nfrom pathlib import Path\nfrom partita.files.atomic import *\n{program}"
    lines += "\n    os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", lines], cwd=folder, check=False).returncode == -signal.SIGKILL


def test_a_new_file_has_the_usual_permissions_and_a_replaced_one_keeps_its_own(tmp_path: Path) -> None:
    usual, path = tmp_path / "usual", tmp_path / "deep" / "x.bin"
    usual.touch()
    with whole_file(path) as partial:
        assert partial.suffix == ".bin"
        partial.write_bytes(b"1")
    assert mode(path) == mode(usual)
    path.chmod(0o640)
    with whole_file(path) as partial:
        partial.write_bytes(b"2")
    assert (path.read_bytes(), mode(path), names(path.parent)) == (b"2", 0o640, ["x.bin"])
    with whole_file(path, private=True):
        pass
    assert mode(path) == 0o600
    with pytest.raises(DataError, match="cannot be written"), whole_file(tmp_path / "no" / "x", private=True):
        pass


def test_a_place_is_judged_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "new" / "deep" / "x"
    refuse_unwritable(place)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="exists already"):
        refuse_unwritable(tmp_path / "file")
    with pytest.raises(DataError, match=r"x cannot be written: .*file is not a folder"):
        refuse_unwritable(tmp_path / "file" / "deep" / "x")
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, how: asked.append(path))  # root may write everywhere
    with pytest.raises(DataError, match=f"x cannot be written: no permission to write in {tmp_path}"):
        refuse_unwritable(place)
    assert asked == [tmp_path]
    assert names(tmp_path) == ["file"]


def test_tensors_have_them_too(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_tensors(tmp_path / "x", {"a": np.arange(6.0).reshape(2, 3).T})
    assert mode(tmp_path / "x") == mode(tmp_path / "usual")
    assert np.array_equal(open_file(tmp_path / "x").read("a"), np.arange(6.0).reshape(2, 3).T)
    with whole_file(tmp_path / "mine", private=True) as partial:
        write_tensors(partial, {"a": np.zeros(1)}, {"key": "value"})
    assert mode(tmp_path / "mine") == 0o600
    assert names(tmp_path) == ["mine", "usual", "x"]


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_what_must_be_new_is_never_replaced(tmp_path: Path, whole) -> None:
    with whole(tmp_path / "x", replace=False):
        pass
    before = (tmp_path / "x").stat().st_ino
    with pytest.raises(DataError, match="exists already"), whole(tmp_path / "x", replace=False):
        pass
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(DataError, match="exists already"), whole(tmp_path / "broken", replace=False):
        pass
    with pytest.raises(DataError, match="exists already"), whole(tmp_path / "y", replace=False):
        (tmp_path / "y").touch()  # somebody else's, meanwhile
    assert (tmp_path / "x").stat().st_ino == before
    assert names(tmp_path) == ["broken", "x", "y"]


def test_a_folder_is_replaced_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "before").touch()
    (tmp_path / "link").symlink_to("real")
    with whole_folder(tmp_path / "link") as partial:
        (partial / "after").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["after"]
    assert names(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("whole", [whole_file, whole_folder, scratch_folder])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, whole) -> None:
    with pytest.raises(KeyError), whole(tmp_path / "x"):
        raise KeyError
    with (
        pytest.raises(DataError, match="x cannot be written: No space left on device: free some space"),
        whole(tmp_path / "x"),
    ):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_a_killed_writer_is_swept_up_and_a_living_one_is_not_touched(tmp_path: Path) -> None:
    killed("with whole_file(Path('x')) as partial:\n    partial.write_text('half')", tmp_path)
    killed("with whole_folder(Path('y')) as partial:\n    (partial / 'half').touch()", tmp_path)
    assert len(names(tmp_path)) == 2
    with whole_file(tmp_path / "x") as living:
        living.write_text("first")
        assert len(names(tmp_path)) == 2  # y's leftover, and the living one
        with whole_file(tmp_path / "x") as second:
            second.write_text("second")
        remove_leftovers(tmp_path)
        assert living.exists()
        assert len(names(tmp_path)) == 2  # x, and the living one
    assert (names(tmp_path), (tmp_path / "x").read_text()) == (["x"], "first")


def test_a_folder_is_removed_whole(tmp_path: Path) -> None:
    (tmp_path / "x" / "deep").mkdir(parents=True)
    remove_whole(tmp_path / "x")
    assert names(tmp_path) == []
    with pytest.raises(DataError, match="x cannot be"):
        remove_whole(tmp_path / "x")


def test_a_name_that_is_used_inside_is_a_name_like_others(tmp_path: Path) -> None:
    for name in ("lock", "old", "new", "[x]*"):
        with whole_folder(tmp_path / name) as partial:
            (partial / "a").touch()
        with whole_folder(tmp_path / name) as partial:
            (partial / "b").touch()
        assert os.listdir(tmp_path / name) == ["b"]
