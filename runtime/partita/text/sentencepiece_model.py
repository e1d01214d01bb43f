"""Sentencepiece model files, read and written in protobuf's wire format. Segments no text.

The `sentencepiece` library loads a serialized ModelProto but cannot change one (its message classes need a second
dependency). We need to change two things: which pieces are control tokens, and who puts the space in front of a text.
Field numbers are those of sentencepiece_model.proto. Invariants: a damaged file ends in CheckpointError; fields are
counted while they are read, so that no file takes longer than the largest vocabulary does.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import CheckpointError, UnsupportedModel
from .vocabulary import MAX_TOKEN, MAX_TOKENS

FILE = 32 << 20
"""Bytes of a tokenizer.model, at most. The largest published ones have 5 MB."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # piece types; GGUF files use them too
_FLOAT = struct.Struct("<f")


@dataclass
class Model:
    """A sentencepiece model. trainer, normalizer: serialized TrainerSpec and NormalizerSpec, taken over as they are."""

    pieces: list[str] = field(default_factory=list[str])
    scores: list[float] = field(default_factory=list[float])
    types: list[int] = field(default_factory=list[int])
    trainer: bytes = b""
    normalizer: bytes = b""

    def add(self, piece: str, score: float, kind: int) -> None:
        self.pieces.append(piece)
        self.scores.append(score)
        self.types.append(kind)


def bpe_specs(types: Sequence[int]) -> tuple[bytes, bytes]:
    """TrainerSpec and NormalizerSpec of a BPE model that takes text as it is; bytes stand in where all 256 exist."""
    trainer = _integer(3, 2) + _integer(35, int(types.count(BYTE) == 256))  # model_type = BPE, byte_fallback
    return trainer, _message(1, b"identity") + _integer(4, 0)  # name, remove_extra_whitespaces


def trained_as(trainer: bytes) -> int:
    """The model type of a serialized TrainerSpec: 1 for unigrams, which is the default, 2 for BPE."""
    return {number: value for number, value in _fields(trainer) if isinstance(value, int)}.get(3, 1)


def space_rules(normalizer: bytes) -> tuple[bool, bool]:
    """(a space is put in front of a text, runs of spaces are shortened) by a serialized NormalizerSpec."""
    flags = {number: value for number, value in _fields(normalizer) if isinstance(value, int)}
    return bool(flags.get(3, 1)), bool(flags.get(4, 1))  # both default to true


def write(model: Model, *, space_prefix: bool) -> bytes:
    """Serialize; `space_prefix`: the library itself puts the space in front. A repeated scalar field's last value wins,
    so appending is overriding."""
    parts: list[bytes] = []
    for piece, score, kind in zip(model.pieces, model.scores, model.types, strict=True):
        # SentencePiece: piece = 1 (string), score = 2 (float), type = 3 (enum)
        body = _message(1, piece.encode("utf-8", "replace")) + b"\x15" + _FLOAT.pack(score) + b"\x18" + bytes((kind,))
        parts.append(_message(1, body))
    normalizer = model.normalizer + _integer(3, int(space_prefix))
    return b"".join([*parts, _message(2, model.trainer), _message(3, normalizer)])


def read(data: bytes, where: str) -> Model:
    """Parse a serialized ModelProto; CheckpointError naming `where` for anything else, UnsupportedModel for one that
    is neither of unigrams nor of BPE."""
    model = Model()
    try:
        for number, value in _fields(data, MAX_TOKENS):
            if number == 1 and isinstance(value, bytes):
                model.add(*_piece(value))
            elif number == 2:
                model.trainer = _once(model.trainer, value)
            elif number == 3:
                model.normalizer = _once(model.normalizer, value)
        space_rules(model.normalizer)  # asked for later: damaged there is damaged here
        kind = trained_as(model.trainer)
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise CheckpointError(f"{where}: not a sentencepiece model, or a damaged one ({error})") from error
    if not model.pieces or not all(NORMAL <= kind <= BYTE for kind in set(model.types)):
        raise CheckpointError(f"{where}: not a sentencepiece model: no pieces, or pieces of unknown types")
    if kind not in (1, 2):
        raise UnsupportedModel(f"{where}: a sentencepiece model of type {kind} is not supported; unigrams and BPE are")
    return model


def _piece(data: bytes) -> tuple[str, float, int]:
    """(piece, score, type) of a SentencePiece message."""
    fields = dict(_fields(data))
    text, (score,) = _text(fields[1]), _FLOAT.unpack(_raw(fields.get(2, bytes(4))))
    if not 0 < len(text) <= MAX_TOKEN:
        raise ValueError(f"a piece of {len(text)} characters")
    if not math.isfinite(score):
        raise ValueError("a non-finite score")
    return text, score, _number(fields.get(3, 1))


def _once(known: bytes, value: int | bytes) -> bytes:
    """A message that a file has one of: joined, a million parts would take the square of their number."""
    if known:
        raise ValueError("a specification given twice")
    return _raw(value)


def _fields(data: bytes, most: int = 100_000) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of every field of one message; fixed32 and fixed64 come as their bytes.

    ValueError for more than `most` fields.
    """
    at, end, count = 0, len(data), 0
    while at < end:
        count += 1
        if count > most:
            raise ValueError(f"more than {most} fields")
        key, at = _read_varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _read_varint(data, at)
        if size is None or at + size > end:
            raise ValueError("a field that does not end inside its message")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")


def _raw(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _text(value: int | bytes) -> str:
    return _raw(value).decode("utf-8", "replace")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a number belongs")
    return value


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _message(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload
