"""New arrays inside kernels, not yet set, from a multiple of 64 bytes on: no vector of one crosses a line of the cache.

numba's `np.empty` would be compiled for each kind of argument, a tenth of a second for every kernel.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.np.arrayobj import make_array, populate_array

from .lanes import intrinsic

_INDEX = ir.IntType(64)
_LINE = 64


def _generating(array: types.Array, size: int) -> Any:
    """Code that makes such an array, of elements of `size` bytes, of its lengths."""

    def generate(context: Any, builder: Any, signature: Any, lengths: Any) -> Any:
        strides, count = [], ir.Constant(_INDEX, size)
        for length in reversed(lengths):
            strides.insert(0, count)
            count = builder.mul(count, length)
        line = ir.Constant(ir.IntType(32), _LINE)
        info = context.nrt.meminfo_alloc_aligned(builder, count, line)
        made = make_array(array)(context, builder)
        data = builder.bitcast(context.nrt.meminfo_data(builder, info), context.get_data_type(array.dtype).as_pointer())
        populate_array(made, data, list(lengths), strides, ir.Constant(_INDEX, size), info)
        return made._getvalue()

    return generate


def _new(dtype: Any) -> Any:
    @intrinsic
    def new(context: Any, count: Any) -> Any:
        array = types.Array(dtype, 1, "C")
        return array(types.intp), _generating(array, dtype.bitwidth // 8)

    return new


def _new_rows(dtype: Any) -> Any:
    @intrinsic
    def new(context: Any, rows: Any, size: Any) -> Any:
        array = types.Array(dtype, 2, "C")
        return array(types.intp, types.intp), _generating(array, dtype.bitwidth // 8)

    return new


new_floats, new_bytes, new_indices = _new(types.float32), _new(types.uint8), _new(types.int64)
"""Of so many numbers: float32, uint8, int64."""
new_float_rows, new_int_rows, new_signed_rows = map(_new_rows, (types.float32, types.int32, types.int8))
"""Of (rows, size) numbers: float32, int32, int8."""
