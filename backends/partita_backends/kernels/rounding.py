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
from .lanes import BYTES, FLOATS, WIDTH, Lanes, intrinsic


def _recast(given: Any, wanted: Any) -> Any:
    @intrinsic
    def recast(context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.bitcast(values[0], context.get_value_type(wanted))

        return wanted(given), generate

    return recast


float_bits = _recast(types.float32, types.uint32)
"""The bits of a float32."""


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
