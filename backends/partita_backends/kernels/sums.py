"""Several sums in registers at once, and what holds for all numbers of a vector: for attention's scores and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from .lanes import FLOATS, WIDTH, Lanes, address, intrinsic

SHORTER = Lanes("f32", WIDTH // 2)
"""Half as long, so that the sums of four keys fit in the registers of every machine."""
INT = ir.IntType(32)


@intrinsic
def load_shorter(context: Any, array: Any, index: Any) -> Any:
    """load_shorter(floats, index): the 16 floats from there on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(address(context, builder, signature.args[0], values, SHORTER.vector), align=1)

    return SHORTER(array, types.intp), generate


@intrinsic
def no_floats(context: Any) -> Any:
    """16 zeros."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return ir.Constant(SHORTER.vector, [0.0] * SHORTER.vector.count)

    return SHORTER(), generate


@intrinsic
def store_totals(context: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Write the sums of four times 16 floats from an index on: cheaper than one after the other."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def chosen(x: Any, y: Any, places: list[int]) -> Any:
            return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(INT, len(places)), places))

        def folded(x: Any) -> Any:
            count = x.type.count // 2
            return builder.fadd(chosen(x, x, list(range(count))), chosen(x, x, list(range(count, 2 * count))))

        def neighbours(x: Any, y: Any) -> Any:
            """Sums of neighbours, of x and of y by turns, four numbers at a time: one instruction on x86."""
            even = [0, 2, 8, 10, 4, 6, 12, 14]
            return builder.fadd(chosen(x, y, even), chosen(x, y, [place + 1 for place in even]))

        parts = [folded(x) for x in values[2:]]
        sums = folded(neighbours(neighbours(*parts[:2]), neighbours(*parts[2:])))
        place = address(context, builder, signature.args[0], values[:2], sums.type)
        builder.store(sums, place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, SHORTER, SHORTER, SHORTER, SHORTER), generate


def _comparing(holds: Callable[[Any, Any], Any]) -> Any:
    @intrinsic
    def compare(context: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            lanes = ir.IntType(WIDTH)
            above = builder.bitcast(builder.fcmp_ordered(">", *values), lanes)
            return holds(builder, above)

        return types.boolean(FLOATS, FLOATS), generate

    return compare


any_above = _comparing(lambda builder, lanes: builder.icmp_unsigned("!=", lanes, ir.Constant(lanes.type, 0)))
"""any_above(x, y): whether one of the floats x is above that of y."""
all_above = _comparing(lambda builder, lanes: builder.icmp_unsigned("==", lanes, ir.Constant(lanes.type, -1)))
