"""Damaged GGUF files: headers that lie, files cut or changed anywhere; and a header written by hand that is whole."""

import contextlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, PartitaError

from .gguf_files import Llama, header

Type = gguf.GGMLQuantizationType


def nested(depth: int) -> bytes:
    return struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 0, 0)


DAMAGED = {
    "empty": (b"", "empty"),
    "magic": (b"GGML" + bytes(60), "not a GGUF"),
    "short": (b"GGUF\3\0\0\0", "not a GGUF"),
    "version": (header(version=9), "version 9"),
    "old": (header(version=1), "version 1"),
    "big endian": (header(version=3 << 24), "big-endian"),
    "many tensors": (header(counts=(1 << 60, 0)), "do not fit"),
    "many keys": (header(counts=(0, 1 << 60)), "do not fit"),
    "more keys than any model": (header(counts=(0, 70_000)) + bytes(1 << 20), "the limits are"),
    "arrays together": (
        header(keys=[(b"%d" % i, struct.pack("<IIQ", 9, 0, 1 << 21) + bytes(1 << 21)) for i in range(3)]),
        "2: .*2097152 items, .* 4194304 ",
    ),
    "key length": (header(keys=[(b"", b"")] * 0, counts=(0, 1))[:24] + struct.pack("<Q", 1 << 62) + bytes(90), "limit"),
    "string length": (header(keys=[(b"k", struct.pack("<IQ", 8, 1 << 63))]), "needs"),
    "array length": (header(keys=[(b"k", struct.pack("<IIQ", 9, 4, 1 << 22))]), "needs"),
    "array bomb": (header(keys=[(b"k", struct.pack("<IIQ", 9, 0, 1 << 40))]), "limit"),
    "string array": (header(keys=[(b"k", struct.pack("<IIQQ", 9, 8, 2, 1 << 62))]), "beyond the end"),
    "nesting": (header(keys=[(b"k", nested(20))]), "nested"),
    "value type": (header(keys=[(b"k", struct.pack("<I", 77))]), "value type 77"),
    "array type": (header(keys=[(b"k", struct.pack("<IIQ", 9, 77, 1))]), "array type 77"),
    "key twice": (header(keys=[(b"k", struct.pack("<IB", 0, 1))] * 2), "twice"),
    "not text": (header(keys=[(b"\xff", struct.pack("<IB", 0, 1))]), "UTF-8"),
    "alignment": (header(keys=[(b"general.alignment", struct.pack("<II", 4, 24))]), "alignment"),
    "name": (header([(b"blk." + b"9" * 5000, (4,), 0, 0)]), "tensor .*5004 characters, .* 1024"),
    "no dimensions": (header([(b"t", (), 0, 0)]), "0 dimensions"),
    "five dimensions": (header([(b"t", (1,) * 5, 0, 0)]), "5 dimensions"),
    "zero": (header([(b"t", (0, 4), 0, 0)]), "divide"),
    "overflow": (header([(b"t", (1 << 32, 1 << 32, 1 << 32), 0, 0)]), "ends at"),
    "type": (header([(b"t", (4,), 77, 0)]), "unknown type 77"),
    "block": (header([(b"t", (31,), 2, 0)]), "divide"),
    "offset": (header([(b"t", (4,), 0, 4)]), "multiple"),
    "outside": (header([(b"t", (4,), 0, 64)]), "ends at"),
    "twice": (header([(b"t", (4,), 0, 0), (b"t", (4,), 0, 32)]), "twice"),
    "overlap": (header([(b"t", (12,), 0, 0), (b"u", (4,), 0, 32)]), "overlap"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_headers_are_refused(tmp_path, name):
    content, message = DAMAGED[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"bad.gguf.*{message}"):
        open_gguf(path)


def test_a_hand_written_file_is_read(tmp_path):
    values = [
        (b"b", struct.pack("<I?", 7, True)),
        (b"n", struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ2h", 3, 2, -1, 5)),
    ]
    path = tmp_path / "good.gguf"
    path.write_bytes(header([(b"t", (4, 2), 0, 0)], values, version=2))
    file = open_gguf(path)
    assert dict(file.metadata) == {"b": True, "n": [[-1, 5]]}
    assert file.tensors["t"].shape == (2, 4)


def read_everything(path: Path) -> None:
    """All that a user can reach, with only typed errors let through."""
    with contextlib.suppress(PartitaError), np.errstate(all="ignore"):
        checkpoint = open_checkpoint(path)
        checkpoint.fingerprint()
        for name in checkpoint.names():
            value = checkpoint.read(name)
            assert tuple(value.shape) == checkpoint.shape(name)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    model = Llama()
    model.layers = 1
    model.tensors = {name: value for name, value in model.tensors.items() if "blk.1" not in name}
    model.write(path, types={"blk.0.attn_q.weight": Type.Q4_0, "blk.0.ffn_up.weight": Type.Q5_1})
    return path, path.read_bytes()


def test_a_file_cut_anywhere_is_refused(small_file):
    path, content = small_file
    cut = path.with_name("cut.gguf")
    (end,) = open_gguf(path).header_bytes
    for length in [*range(0, end, 5), *range(end, len(content), 997)]:
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(cut)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_headers_raise_typed_errors_only(small_file, data):
    path, content = small_file
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 2200))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from([b"\xff" * 8, bytes(8)])))
        mutated[place : place + len(patch)] = patch
    target = path.with_name("mutated.gguf")
    target.write_bytes(bytes(mutated))
    read_everything(target)
