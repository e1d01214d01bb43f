"""Floats rounded to what takes less room: bits of float16, and the points of a grid that integers stand for.

Written in integers where a machine may lack the instruction: LLVM would call a library that nobody has linked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compiled import inner_kernel
from .lanes import BYTES, FLOATS, WIDTH, Lanes, address, intrinsic
from .sums import SHORTER

SHORTER_INTS = Lanes("i32", SHORTER.vector.count)


def _recast(given: Any, wanted: Any) -> Any:
    @intrinsic
    def recast(context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.bitcast(values[0], context.get_value_type(wanted))

        return wanted(given), generate

    return recast


float_bits = _recast(types.float32, types.uint32)
"""The bits of a float32."""
float_of = _recast(types.uint32, types.float32)
"""The float32 of such bits."""


@inner_kernel
def to_half(x):  # pragma: no cover
    """The bits of the nearest float16, ties to even; infinite beyond its range."""
    bits = np.int64(float_bits(x))
    size, sign = bits & 0x7FFFFFFF, (bits >> 16) & 0x8000
    if size > 0x7F800000:  # not a number
        return sign | 0x7E00 | ((size >> 13) & 0x3FF)
    if size >= 0x477FF000:  # 65520: what is nearer to infinity than to the largest
        return sign | 0x7C00
    if size < 0x38800000:  # below the normal ones: in steps of 2 ** -24, as the sum with 0.5 is
        return sign | (np.int64(float_bits(abs(x) + np.float32(0.5))) - 0x3F000000)
    return sign | ((size + 0xFFF + ((size >> 13) & 1) - (112 << 23)) >> 13)


@intrinsic
def largest_bits(context: Any, x: Any) -> Any:
    """The bits of the largest of 16 floats, uint32, signs left out; what is no number is larger than any."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        bits = builder.bitcast(values[0], SHORTER_INTS.vector)
        sizes = builder.and_(bits, ir.Constant(SHORTER_INTS.vector, [0x7FFFFFFF] * SHORTER_INTS.vector.count))
        return _reduced(builder, "umax", sizes)

    return types.uint32(SHORTER), generate


@intrinsic
def nearest(context: Any, x: Any, factor: Any) -> Any:
    """16 ints: floats times a factor, to the nearest integer, ties to even."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        count = SHORTER.vector.count
        undefined = ir.Constant(SHORTER.vector, ir.Undefined)
        first = builder.insert_element(undefined, values[1], ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
        kind = ir.FunctionType(SHORTER.vector, [SHORTER.vector])
        rint = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{count}f32")
        product = builder.fmul(values[0], builder.shuffle_vector(first, undefined, zeros))
        return builder.fptosi(builder.call(rint, [product]), SHORTER_INTS.vector)

    return SHORTER_INTS(SHORTER, types.float32), generate


@intrinsic
def store_bytes(context: Any, array: Any, index: Any, x: Any) -> Any:
    """Write 16 ints as bytes from an index on; their sum, int32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        narrow = builder.trunc(values[2], ir.VectorType(ir.IntType(8), SHORTER_INTS.vector.count))
        place = address(context, builder, signature.args[0], values[:2], narrow.type)
        builder.store(narrow, place, align=1)
        return _reduced(builder, "add", values[2])

    return types.int32(array, types.intp, SHORTER_INTS), generate


def _reduced(builder: Any, operation: str, x: Any) -> Any:
    kind = ir.FunctionType(ir.IntType(32), [x.type])
    name = f"llvm.vector.reduce.{operation}.v{x.type.count}i32"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x])


@intrinsic
def grid_points(context: Any, x: Any, bias: Any, step: Any, most: Any) -> Any:
    """Bytes: (x - bias) / step to the nearest integer, ties to even, from 0 to `most`; 0 for what is no number."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x, bias, step, most = values
        kind = ir.FunctionType(FLOATS.vector, [FLOATS.vector])
        rint = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{WIDTH}f32")
        q = builder.call(rint, [builder.fdiv(builder.fsub(x, bias), step)])
        zero = ir.Constant(FLOATS.vector, [0.0] * WIDTH)
        undefined = ir.Constant(FLOATS.vector, ir.Undefined)
        first = builder.insert_element(undefined, most, ir.Constant(ir.IntType(32), 0))
        edge = builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))
        q = builder.select(builder.fcmp_ordered(">", q, zero), q, zero)
        q = builder.select(builder.fcmp_ordered("<", q, edge), q, edge)
        return builder.trunc(builder.fptosi(q, ir.VectorType(ir.IntType(32), WIDTH)), BYTES.vector)

    return BYTES(FLOATS, FLOATS, FLOATS, types.float32), generate


@intrinsic
def joined_nibbles(context: Any, x: Any) -> Any:
    """Neighbours of 4 bits in one byte, the first in its low half: 16 bytes of 32."""
    joined = Lanes("u8", WIDTH // 2)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def every_second(first: int) -> Any:
            places = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH // 2), list(range(first, WIDTH, 2)))
            return builder.shuffle_vector(values[0], values[0], places)

        four = ir.Constant(joined.vector, [4] * (WIDTH // 2))
        return builder.or_(every_second(0), builder.shl(every_second(1), four))

    return joined(BYTES), generate
