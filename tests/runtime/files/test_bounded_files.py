"""Files of strangers: what is opened, how much is read, where links may lead, what JSON may be."""

import os
import socket
from pathlib import Path

import pytest

from partita.errors import CheckpointError
from partita.files.bounded import MAX_NESTING, find, map_file, parse, parse_object, read_bytes, read_object, read_text

READERS = (lambda path: read_bytes(path, 9), lambda path: read_text(path, 9), read_object, map_file)


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "f"
    path.write_text("123456789")
    assert read_text(path, 9) == "123456789"
    with pytest.raises(CheckpointError, match=r"9 bytes .*, 8 "):
        read_bytes(path, 8)


def test_a_sparse_file_of_gigabytes_is_refused_by_its_size(tmp_path):
    path = tmp_path / "f.json"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(CheckpointError, match="3221225472 bytes are too many"):
        read_object(path)


@pytest.mark.parametrize("read", READERS)
def test_pipes_sockets_devices_and_folders_are_not_opened(tmp_path, read, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        os.mkdir("folder")
        os.symlink("/dev/zero", "device")
        for name, kind in (("pipe", "a pipe"), ("socket", "a socket"), ("folder", "a folder"), ("device", "a device")):
            with pytest.raises(CheckpointError, match=f"{name} is {kind}, not a file"):
                read(Path(name))
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read(Path("nothing"))


def test_find_gives_regular_files_of_the_folder_alone(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "alias.json").symlink_to("config.json")
    (folder / "gone.json").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    (tmp_path / "secret").write_text("key")
    (folder / "out").symlink_to("../secret")
    (tmp_path / "linked").symlink_to(folder)
    assert find(folder, "config.json") == folder / "config.json"
    assert find(tmp_path / "linked", "alias.json") == tmp_path / "linked" / "alias.json"
    assert find(folder, "nothing") is find(folder, "gone.json") is find(tmp_path / "nothing", "x") is None
    with pytest.raises(CheckpointError, match="out is a link that leads out of its folder"):
        find(folder, "out")
    with pytest.raises(CheckpointError, match="pipe is a pipe"):
        find(folder, "pipe")
    with pytest.raises(CheckpointError, match="circle: cannot be read"):
        find(folder, "circle")


def test_a_snapshot_of_the_hubs_cache_may_link_to_its_blobs_and_nowhere_else(tmp_path):
    storage = tmp_path / "models--owner--name"
    snapshot, blobs = storage / "snapshots" / ("a" * 40), storage / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (tmp_path / "secret").write_text("key")
    (blobs / "0123").write_text("{}")
    (blobs / "4567").symlink_to(tmp_path / "secret")
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    (snapshot / "through.json").symlink_to("../../blobs/4567")
    (snapshot / "beside.json").symlink_to("../../../secret")
    assert find(snapshot, "config.json") == snapshot / "config.json"
    for name in ("through.json", "beside.json"):
        with pytest.raises(CheckpointError, match="leads out of its folder"):
            find(snapshot, name)
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        find(blobs, "4567")


NO_JSON = {
    "[" * 100_000: "nested too deep",
    '{"a":' * 100_000: "nested too deep",
    "9" * 5000: "Exceeds the limit",
    "": "Exp",
}


@pytest.mark.parametrize("raw", NO_JSON)
def test_what_is_not_json_is_a_value_error(raw):
    with pytest.raises(ValueError, match=NO_JSON[raw]):
        parse(raw)
    with pytest.raises(CheckpointError, match="config: not JSON"):
        parse_object(raw, "config")


def test_an_object_has_each_key_once_and_a_depth(tmp_path):
    assert parse_object('{"a": ' * MAX_NESTING + "1" + "}" * MAX_NESTING, "x")
    with pytest.raises(CheckpointError, match="x: tables are nested more than 100 deep"):
        parse_object('{"a": ' + "[" * MAX_NESTING + "]" * MAX_NESTING + "}", "x")
    with pytest.raises(CheckpointError, match="x: the key 'a' appears twice"):
        parse_object('{"a": 1, "a": 2}', "x")
    with pytest.raises(CheckpointError, match="x: not a JSON object"):
        parse_object("[]", "x")
    (tmp_path / "latin1").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(CheckpointError, match="latin1: not JSON text"):
        read_object(tmp_path / "latin1")
    with pytest.raises(CheckpointError, match=r"not UTF-8 text \(at byte 7"):
        read_text(tmp_path / "latin1", 100)
