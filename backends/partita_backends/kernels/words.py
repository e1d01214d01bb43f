"""Bytes as words of 64 or 32 bits, on which a few operations do eight or four at once; and rows turned into lanes.

Not here: what the bytes mean. Words lie anywhere, little-endian.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from .compiled import kernel
from .lanes import WIDTH, address, intrinsic

_INT = ir.IntType(32)
_FOUR = ir.VectorType(_INT, 4)
PIECE = 16
"""Bytes of a row that are turned at once."""


@intrinsic
def load_word(context: Any, array: Any, index: Any) -> Any:
    """Eight bytes from there on, as uint64. index: counts bytes."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = address(context, builder, signature.args[0], values, ir.IntType(64))
        return builder.load(place, align=1)

    return types.uint64(array, types.intp), generate


@intrinsic
def store_word(context: Any, array: Any, index: Any, x: Any) -> Any:
    """Write an uint64 or uint32 from an index on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = address(context, builder, signature.args[0], values[:2], values[2].type)
        builder.store(values[2], place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, x), generate


@intrinsic
def _turn(context: Any, rows: Any, at: Any, stride: Any, lanes: Any, place: Any) -> Any:
    """16 bytes, from `at` on, of each of 32 rows, which begin `stride` bytes apart: as 4 vectors from `place` on, of
    which each holds four bytes of every row."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, start, step, target, to = values

        def row(number: int) -> Any:
            where = builder.add(start, builder.mul(step, ir.Constant(step.type, number)))
            return builder.load(address(context, builder, signature.args[0], (source, where), _FOUR), align=1)

        turned = [_turned(builder, [row(first + i) for i in range(4)]) for first in range(0, WIDTH, 4)]
        for i, parts in enumerate(zip(*turned, strict=True)):
            whole = list(parts)
            while len(whole) > 1:
                whole = [_beside(builder, *pair) for pair in zip(whole[::2], whole[1::2], strict=True)]
            where = builder.add(to, ir.Constant(to.type, 4 * WIDTH * i))
            place = address(context, builder, signature.args[3], (target, where), whole[0].type)
            builder.store(whole[0], place, align=1)
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp, lanes, types.intp), generate


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of four vectors of four: neighbours take turns, one by one, then by twos."""
    for width in (1, 2):
        done: list[Any] = []
        for start in range(0, 4, 2 * width):
            for i in range(width):
                pair = rows[start + i], rows[start + width + i]
                done += [builder.shuffle_vector(*pair, _turns(half, width)) for half in (0, 2)]
        rows = done
    return rows


def _turns(start: int, width: int) -> Any:
    places = [side + i + k for i in range(start, start + 2, width) for side in (0, 4) for k in range(width)]
    return ir.Constant(ir.VectorType(_INT, len(places)), places)


def _beside(builder: Any, a: Any, b: Any) -> Any:
    count = 2 * a.type.count
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, count), list(range(count))))


@kernel
def turn(rows, lanes, start):  # pragma: no cover
    """Rows of bytes, (32 n, size), size a multiple of 4, into lanes from `start` on: of each 32 rows, every four bytes
    side by side."""
    size = rows.shape[1]
    whole = size // PIECE * PIECE
    for block in range(rows.shape[0] // WIDTH):
        first, to = block * WIDTH * size, start + block * WIDTH * size
        for at in range(0, whole, PIECE):
            _turn(rows, first + at, size, lanes, to + at * WIDTH)
        for at in range(whole, size, 4):
            for j in range(WIDTH):
                for i in range(4):
                    lanes[to + at * WIDTH + 4 * j + i] = rows[block * WIDTH + j, at + i]
