"""Sentencepiece models from strangers: read within bounds, or refused with one line."""

import pytest

from partita.errors import CheckpointError, UnsupportedModel
from partita.text import sentencepiece_model as proto
from partita.text.load import tokenizer_from_folder
from partita.text.vocabulary import MAX_TOKENS

PIECES = ["<unk>", "▁", "a", "b", "ab", "▁ab"]


def written(pieces=PIECES, scores=None, kinds=None, model_type=2, extra=b""):
    kinds = kinds or [2, *[1] * (len(pieces) - 1)]
    scores = scores or [-float(i) for i in range(len(pieces))]
    specs = bytes([0x18, model_type]), b"\x0a\x08identity\x20\x00"
    return proto.write(proto.Model(list(pieces), scores, kinds, *specs), space_prefix=True) + extra


def test_a_written_model_is_read_again(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(written())
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode("ab ab")) == "ab ab"


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"\x0a\x02\x0a\x00" * 3_000_000, CheckpointError, "a piece of 0 characters"),
        (b"\x50\x00" * (MAX_TOKENS + 1), CheckpointError, f"more than {MAX_TOKENS} fields"),
        (written() + (b"\x1a\x1c\x0a\x1a" + b"x" * 26) * 500_000, CheckpointError, "given twice"),
        (written(extra=b"\x12\x02\x18\x02"), CheckpointError, "given twice"),
        (written([*PIECES, "c" * 2000]), CheckpointError, "2000 characters"),
        (written(scores=[float("nan")] * 6), CheckpointError, "score"),
        (written(scores=[float("inf")] * 6), CheckpointError, "score"),
        (written(kinds=[2, 1, 1, 1, 1, 9]), CheckpointError, "unknown types"),
        (written(model_type=3), UnsupportedModel, "type 3"),
        (written(model_type=77), UnsupportedModel, "type 77"),
        (written(kinds=[1] * 6), CheckpointError, "library"),
        (written(["<unk>", "a", "a"]), CheckpointError, "library"),
        (b"\x12" + bytes([0x84, 0x80, 0x08]) + b"\x50\x00" * 65538, CheckpointError, "not a sentencepiece model"),
    ],
)
def test_what_is_damaged_or_without_end_is_one_line(tmp_path, data, error, message):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        tokenizer_from_folder(tmp_path)
    assert str(tmp_path / "tokenizer.model") in str(caught.value)
    assert str(caught.value).isprintable()


def test_its_size_is_bounded_before_it_is_read(tmp_path):
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(proto.FILE + 1)  # sparse
    with pytest.raises(CheckpointError, match="too many"):
        tokenizer_from_folder(tmp_path)
