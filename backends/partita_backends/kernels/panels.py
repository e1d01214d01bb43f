"""Many rows times a panel of weights: sums of a dozen rows at a time stay in registers until all inputs are read.

A panel is float32 (inputs, 32), in the processor's cache, made for this use out of a weight in whatever form it is
stored; `transpose` turns a tile of one. Not here: what a weight looks like. Invariant: a row is computed by itself, its
products added one after another in the order of inputs, whatever other rows there are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compiled import inner_kernel
from .lanes import WIDTH, features, intrinsic

_FLOAT, _INT, _INDEX = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def _registers() -> tuple[int, int]:
    """Rows and outputs whose sums the machine's registers hold, beside a row of the panel."""
    found = features()
    if "avx512f" in found:
        return 12, 32
    if "avx2" in found:
        return 6, 16
    return 4, 8


def _multiplying(height: int) -> Any:
    @intrinsic
    def multiply(
        context: Any, x: Any, at: Any, across: Any, panel: Any, count: Any, y: Any, place: Any, stride: Any, add: Any
    ) -> Any:
        """Rows of x, from an index on and `across` numbers apart, times `count` inputs of the panel: to y from an index
        on, in rows `stride` apart; onto what is there with add."""

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            x_, at_, across_, panel_, count_, y_, place_, stride_, add_ = values
            arrays = zip((signature.args[0], signature.args[3], signature.args[5]), (x_, panel_, y_), strict=True)
            x_, panel_, y_ = (cgutils.create_struct_proxy(a)(context, builder, value=v).data for a, v in arrays)
            x_, y_ = builder.gep(x_, [at_]), builder.gep(y_, [place_])
            rows, outputs = _registers()
            parts = -(-height // rows)
            bounds = [height * i // parts for i in range(parts + 1)]
            for column in range(0, WIDTH, outputs):
                for first, stop in pairwise(bounds):
                    tile = _Tile(builder, range(first, stop), column, ir.VectorType(_FLOAT, outputs))
                    tile.multiply((x_, across_), (panel_, count_), (y_, stride_), add_)
            return context.get_dummy_value()

        index = types.intp
        return types.void(x, index, index, panel, index, y, index, index, types.boolean), generate

    return multiply


class _Tile:
    """Code for some rows and some outputs, of which every row's are one vector."""

    def __init__(self, builder: Any, rows: range, column: int, vector: ir.VectorType):
        self.builder, self.rows, self.column, self.vector = builder, rows, column, vector

    def multiply(self, x: tuple[Any, Any], panel: tuple[Any, Any], y: tuple[Any, Any], add: Any) -> None:
        builder, vector = self.builder, self.vector
        sums = [cgutils.alloca_once(builder, vector) for _ in self.rows]  # registers, once LLVM has seen them
        places = [self._vector(y[0], builder.mul(y[1], self._number(row))) for row in self.rows]
        with builder.if_else(add) as (onto, begin):
            with onto:
                for place, each in zip(places, sums, strict=True):
                    builder.store(builder.load(place, align=4), each)
            with begin:
                for each in sums:
                    builder.store(ir.Constant(vector, [0.0] * vector.count), each)
        kind = ir.FunctionType(vector, [vector] * 3)
        fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{vector.count}f32")
        starts = [builder.gep(x[0], [builder.mul(x[1], self._number(row))]) for row in self.rows]
        with cgutils.for_range(builder, panel[1]) as loop:
            place = self._vector(panel[0], builder.mul(loop.index, self._number(WIDTH)))
            weights = builder.load(place, align=4)
            for start, each in zip(starts, sums, strict=True):
                number = self._everywhere(builder.load(builder.gep(start, [loop.index])))
                builder.store(builder.call(fused, [number, weights, builder.load(each)]), each)
        for place, each in zip(places, sums, strict=True):
            builder.store(builder.load(each), place, align=4)

    def _number(self, value: int) -> ir.Constant:
        return ir.Constant(_INDEX, value)

    def _vector(self, base: Any, index: Any) -> Any:
        place = self.builder.gep(base, [self.builder.add(index, self._number(self.column))])
        return self.builder.bitcast(place, self.vector.as_pointer())

    def _everywhere(self, x: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, x, ir.Constant(_INT, 0))
        zeros = ir.Constant(ir.VectorType(_INT, self.vector.count), [0] * self.vector.count)
        return self.builder.shuffle_vector(first, undefined, zeros)


_multiply_12, _multiply_8, _multiply_4, _multiply_2, _multiply_1 = (_multiplying(height) for height in (12, 8, 4, 2, 1))


@inner_kernel
def multiply(x, first, stop, start, panel, count, y, top, column, add):  # pragma: no cover
    """Rows `first` to `stop` of x (rows, n), inputs `start` to `start + count`, times a panel: to y (rows, m), from row
    `top` and a column on; onto what is there with add."""
    across, stride, t = x.shape[1], y.shape[1], first
    while t < stop:
        at, place, left = t * across + start, (top + t - first) * stride + column, stop - t
        if left >= 12:
            _multiply_12(x, at, across, panel, count, y, place, stride, add)
            t += 12
        elif left >= 8:
            _multiply_8(x, at, across, panel, count, y, place, stride, add)
            t += 8
        elif left >= 4:
            _multiply_4(x, at, across, panel, count, y, place, stride, add)
            t += 4
        elif left >= 2:
            _multiply_2(x, at, across, panel, count, y, place, stride, add)
            t += 2
        else:
            _multiply_1(x, at, across, panel, count, y, place, stride, add)
            t += 1


@intrinsic
def transpose(context: Any, tile: Any, at: Any, out: Any, place: Any) -> Any:
    """32 rows of 32 floats, tile from an index on, to columns of out, from an index on. The arrays are not one."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        tile_, at_, out_, place_ = values
        arrays = zip((signature.args[0], signature.args[2]), (tile_, out_), strict=True)
        source, target = (cgutils.create_struct_proxy(a)(context, builder, value=v).data for a, v in arrays)
        source, target = builder.gep(source, [at_]), builder.gep(target, [place_])
        side = _registers()[1] // 2
        vector = ir.VectorType(_FLOAT, side)
        order = [place for pair in zip(range(side), range(side, 2 * side), strict=True) for place in pair]
        halves = [ir.Constant(ir.VectorType(_INT, side), order[i : i + side]) for i in (0, side)]

        def row(base: Any, i: int, j: int) -> Any:
            return builder.bitcast(builder.gep(base, [ir.Constant(_INDEX, i * WIDTH + j)]), vector.as_pointer())

        for i in range(0, WIDTH, side):
            for j in range(0, WIDTH, side):
                rows = [builder.load(row(source, i + r, j), align=4) for r in range(side)]
                for _ in range(side.bit_length() - 1):  # each moves the highest bit of a row's number to a column's
                    pairs = list(zip(rows[: side // 2], rows[side // 2 :], strict=True))
                    rows = [builder.shuffle_vector(*pair, half) for pair in pairs for half in halves]
                for r in range(side):
                    builder.store(rows[r], row(target, j + r, i), align=4)
        return context.get_dummy_value()

    return types.void(tile, types.intp, out, types.intp), generate
