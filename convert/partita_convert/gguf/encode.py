"""Tensors as GGUF's blocks: integers kept where a block type holds them exactly, anything else cast or quantized.

Not here: which type a tensor gets for its role (`write`), files. Invariants: `decode` of what `exact_type` allows
is what was read, bit for bit, and K-quants that stay what they are keep their bytes; memory beyond the tensor is that
of a piece of its rows; the same input gives the same bytes.

K-quants and blocks of one scale are rounded by `quants`; Q4_1 and Q5_1, which are our own packed layout with float16
scales, with the scales that `quantize` searches for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import overload

import numpy as np

from partita.checkpoint.gguf import blocks
from partita.errors import DataError
from partita.quantization import AFFINE, MXFP4, Packed, Stored, dequantize, unpack

from ..quantize import quantize
from .file import size
from .quants import search

Value = np.ndarray | Packed
GROUP = 32
K_WIDTHS = {"Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6}
WIDTHS = {"Q4_0": 4, "Q4_1": 4, "MXFP4": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, **K_WIDTHS}
"""Bits of an integer."""
WEIGHED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", *K_WIDTHS)
"""Types of which it matters what their columns are multiplied by; of 8 bits, little."""
_DENSE = ("F32", "F16", "BF16")
_PIECE = 1 << 20  # values


def exact_type(packed: Packed) -> str | None:
    """The block type that holds these integers and scales exactly; None if there is none.

    A group of 64 or 128 is two or four blocks with one scale; fewer than four bits are four.
    """
    if packed.mode == MXFP4:
        return "MXFP4"
    if packed.mode != AFFINE or packed.group_size % GROUP or packed.bits > 8 or packed.bits in (6, 7):
        return None
    scales, biases = (_wide(part) for part in packed.grid)
    if not _is_half(scales):
        return None
    bits = max(packed.bits, 4)
    centred = np.array_equal(biases, scales * np.float32(-(1 << (bits - 1))))
    if centred:
        return f"Q{bits}_0"
    return f"Q{bits}_1" if bits < 8 and _is_half(biases) else None


def _is_half(numbers: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return np.array_equal(numbers.astype(np.float16).astype(np.float32), numbers)


def _wide(numbers: np.ndarray) -> np.ndarray:
    return np.asarray(numbers).astype(np.float32, copy=False)


@overload
def pieces(value: Packed, order: np.ndarray | None = None) -> Iterator[Packed]: ...
@overload
def pieces(value: Value, order: np.ndarray | None = None) -> Iterator[Value]: ...
def pieces(value: Value, order: np.ndarray | None = None) -> Iterator[Value]:
    """Rows of an array or Packed, (rows, n), a few at a time. order: of the rows, all leading axes taken as one."""
    *_, columns = value.shape
    flat = _flat(value)
    rows = math.prod(value.shape[:-1])
    step = max(1, _PIECE // columns)
    for begin in range(0, rows, step):
        chosen = slice(begin, begin + step) if order is None else order[begin : begin + step]
        yield flat.map(lambda part: part[chosen]) if isinstance(flat, Packed) else flat[chosen]  # noqa: B023


def _flat(value: Value) -> Value:
    if isinstance(value, Packed):
        return value.map(lambda part: part.reshape(-1, part.shape[-1]))
    return value.reshape(-1, value.shape[-1])


class Encoder:
    """One tensor on its way: iterate `blocks` and `error` is that of what was written (None before).

    value: blocks as a file has them are of `type_name`. type_name: of `file.TYPES`. order: of the rows. shift: added to
    every value, in float32. importance: of the columns, (n,), or of a stack's (experts, n), for the types whose scales
    are searched for.
    """

    def __init__(
        self,
        name: str,
        value: Value | Stored,
        type_name: str,
        order: np.ndarray | None = None,
        shift: float = 0.0,
        importance: np.ndarray | None = None,
    ):
        self.name, self.value, self.type_name, self.order, self.shift = name, value, type_name, order, shift
        self.importance = importance
        self.exact = isinstance(value, Packed) and type_name in WIDTHS and exact_type(value) == type_name
        self.error: float | None = None

    def blocks(self) -> Iterator[np.ndarray]:
        """Pieces of the tensor's bytes, uint8. DataError, naming the tensor: numbers that are NaN or infinite."""
        if isinstance(self.value, Stored):
            yield from _stored_blocks(self.value, self.order)
            self.error = 0.0
            return
        lost = total = 0.0
        for piece, importance in self._weighed(self.value):
            if self.exact and isinstance(piece, Packed):
                yield exact_blocks(piece, self.type_name)
                continue
            source = dequantize(piece) if isinstance(piece, Packed) else piece.astype(np.float32)
            if self.shift:
                source = source.astype(np.float64) + self.shift
            if not np.isfinite(source).all():
                raise DataError(
                    f"{self.name}: it holds numbers that are not finite; the model is damaged, fetch it again"
                )
            raw, missed = self._rounded(source, piece.shape, importance)
            yield raw
            lost += missed
            total += _squares(source)
        self.error = math.sqrt(lost / total) if total else 0.0

    def _weighed(self, value: Value) -> Iterator[tuple[Value, np.ndarray | None]]:
        """Pieces, and the importance of their columns."""
        if self.importance is None or self.importance.ndim == 1:
            yield from ((piece, self.importance) for piece in pieces(value, self.order))
            return
        for expert, importance in enumerate(self.importance):
            own = value.map(lambda part: part[expert]) if isinstance(value, Packed) else value[expert]  # noqa: B023
            yield from ((piece, importance) for piece in pieces(own))

    def _rounded(
        self, source: np.ndarray, shape: tuple[int, ...], importance: np.ndarray | None
    ) -> tuple[np.ndarray, float]:
        """Blocks of some rows, and their squared error."""
        x = source.astype(np.float32, copy=False)
        if self.type_name in search.KINDS:
            found = search.quantized(x, self.type_name, importance, self.name)
            return found.raw, found.lost
        raw = dense_blocks(x, self.type_name, self.name, importance)
        return raw, _squares(_read_back(raw, self.type_name, shape) - source)


def _squares(x: np.ndarray) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def _stored_blocks(value: Stored, order: np.ndarray | None) -> Iterator[np.ndarray]:
    """Some rows at a time. CheckpointError: a scale is not finite."""
    (part,) = value.parts
    if part.order is not None:
        order = part.order if order is None else part.order[order]
    step = max(1, _PIECE // value.size)
    for begin in range(0, len(part.raw), step):
        chosen = slice(begin, begin + step) if order is None else order[begin : begin + step]
        raw = part.raw[chosen]
        part.decode(raw, blocks.SMALL_GROUP)  # refuses what is damaged
        yield raw
    part.release()


def as_written(name: str, value: Value, type_name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """The float32 numbers that a reader finds of `value` after it was written as `type_name`."""
    encoder = Encoder(name, value, type_name, importance=importance)
    raw = np.concatenate([part.reshape(-1) for part in encoder.blocks()])
    return _read_back(raw, type_name, tuple(value.shape))


def _read_back(raw: np.ndarray, type_name: str, shape: tuple[int, ...]) -> np.ndarray:
    value = blocks.decode(raw.reshape(-1), type_name, shape, "a tensor")
    return dequantize(value) if isinstance(value, Packed) else value.astype(np.float32)


def dense_blocks(x: np.ndarray, type_name: str, name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 (rows, n) as blocks, uint8 (rows, bytes). importance: of the columns."""
    if type_name in _DENSE:
        return _cast(x, type_name).view(np.uint8)
    if type_name in search.KINDS:
        return search.quantized(x, type_name, importance, name).raw
    packed = quantize(x, WIDTHS[type_name], GROUP, importance=importance, scales="float16", name=name)
    return exact_blocks(packed, type_name)


def _cast(x: np.ndarray, type_name: str) -> np.ndarray:
    if type_name == "BF16":
        import ml_dtypes

        return np.ascontiguousarray(x.astype(ml_dtypes.bfloat16))
    return np.ascontiguousarray(x.astype("<f4" if type_name == "F32" else "<f2"))


def too_large(value: Value) -> bool:
    """Whether some number is beyond float16."""
    limit = float(np.finfo(np.float16).max)
    for piece in pieces(value):
        dense = dequantize(piece) if isinstance(piece, Packed) else piece
        if float(np.abs(dense.astype(np.float32)).max(initial=0)) > limit:
            return True
    return False


def exact_blocks(packed: Packed, type_name: str) -> np.ndarray:
    """Packed (rows, n) as blocks of its `exact_type`, uint8 (rows, bytes)."""
    rows, columns = packed.shape
    integers = unpack(packed.weight, packed.bits).reshape(-1, GROUP)
    if packed.mode == MXFP4:
        codes = integers[:, :16] | (integers[:, 16:] << np.uint8(4))
        return np.concatenate([packed.scales.reshape(-1, 1), codes], -1).reshape(rows, size(type_name, (columns,)))
    repeats = packed.group_size // GROUP
    scales, biases = (np.repeat(_wide(part), repeats, axis=-1).reshape(-1) for part in packed.grid)
    parts = [_half_bytes(scales)]
    if type_name.endswith("_1"):
        parts.append(_half_bytes(biases))
    if type_name == "Q8_0":
        parts.append(integers ^ np.uint8(0x80))
    else:
        if type_name[1] == "5":
            parts.append(np.packbits(integers >> np.uint8(4), axis=-1, bitorder="little"))
            integers = integers & np.uint8(15)
        parts.append(integers[:, :16] | (integers[:, 16:] << np.uint8(4)))
    return np.concatenate(parts, axis=-1).reshape(rows, size(type_name, (columns,)))


def _half_bytes(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype("<f2").view(np.uint8).reshape(-1, 2)
