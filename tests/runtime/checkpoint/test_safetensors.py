"""Damaged safetensors files in a folder: broken headers, and files that are cut or changed anywhere."""

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, PartitaError

from .folders import folder, packed_folder

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "dtype": ({"x": GOOD | {"dtype": "F99"}}, "unknown dtype 'F99'"),
    "dtype kind": ({"x": GOOD | {"dtype": ["F32"]}}, "unknown dtype"),
    "shape": ({"x": GOOD | {"shape": [3]}}, "needs 12 bytes"),
    "negative": ({"x": GOOD | {"shape": [-2]}}, "has shape"),
    "float": ({"x": GOOD | {"shape": [2.0]}}, "has shape"),
    "huge": ({"x": GOOD | {"shape": [1 << 62, 1 << 62]}}, "needs"),
    "backwards": ({"x": GOOD | {"data_offsets": [8, 0]}}, "needs 8 bytes"),
    "outside": ({"x": GOOD | {"data_offsets": [60, 68]}}, "cut off"),
    "overlap": ({"x": GOOD, "y": GOOD | {"data_offsets": [4, 12]}}, "overlap"),
    "entry": ({"x": 3}, "no description"),
    "rank": ({"x": GOOD | {"shape": [1] * 40, "data_offsets": [0, 4]}}, "has shape"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_name_file_and_tensor(tmp_path, name):
    table, message = BROKEN[name]
    header = json.dumps(table).encode()
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(CheckpointError, match=f"^model.safetensors: tensor.* '[xy]'.*{message}"):
        open_checkpoint(path)


def test_a_name_without_end_is_refused(tmp_path):
    header = json.dumps({f"model.layers.{'9' * 5000}.x": GOOD}).encode()  # its number could not be read
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"tensor .*5015 characters, .* 1024"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"", b"123", struct.pack("<Q", 1 << 60) + bytes(99), struct.pack("<Q", 4) + b"nope"]
)
def test_files_that_are_not_safetensors(tmp_path, content):
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^model\.safetensors: "):
        open_checkpoint(path)


def test_a_tensor_named_twice_is_refused(tmp_path):
    entry = json.dumps(GOOD)
    header = f'{{"x": {entry}, "x": {entry}}}'.encode()
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match="'x' appears twice"):
        open_checkpoint(path)


def test_a_header_bomb_is_refused_unread(tmp_path):
    path = folder(tmp_path / "m")
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 26 * 1024 * 1024))
        file.truncate(30 * 1024 * 1024)
    with pytest.raises(CheckpointError, match="a header of"):
        open_checkpoint(path)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory) -> tuple[Path, bytes]:
    path, _ = packed_folder(tmp_path_factory.mktemp("fuzz") / "m")
    return path, (path / "model.safetensors").read_bytes()


def read_everything(path: Path) -> None:
    with contextlib.suppress(PartitaError):
        checkpoint = open_checkpoint(path)
        checkpoint.fingerprint()
        for name in checkpoint.names():
            assert tuple(checkpoint.read(name).shape) == checkpoint.shape(name)


def test_a_file_cut_anywhere_is_refused(small_folder):
    path, content = small_folder
    for length in range(0, len(content), 7):
        (path / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_raise_typed_errors_only(small_folder, data):
    path, content = small_folder
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 800))
        digits = st.sampled_from([b"9", b"0", b"-", b'"', b"]", b"{", b"1e9", b"999999999999999999"])
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=2), digits))
        mutated[place : place + len(patch)] = patch
    (path / "model.safetensors").write_bytes(bytes(mutated))
    read_everything(path)
