"""Products of bytes, added up: what rows in 8 bits and integers of a weight need, by whatever the machine has for it.

Sums are ints where an instruction adds four products to one, else shorts, two for each output. Not here: what a weight
looks like (`blocks`).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from .lanes import INTS, QUADS, WIDTH, Lanes, address, broadcast, constant, features, intrinsic

_BYTE, _SHORT, _INT = ir.IntType(8), ir.IntType(16), ir.IntType(32)

_FOUR_PRODUCTS = "llvm.x86.avx512.vpdpbusd.512"
_TWO_PRODUCTS = (
    ("avx512bw", "llvm.x86.avx512.pmaddubs.w.512", 64),
    ("avx2", "llvm.x86.avx2.pmadd.ub.sw", 32),
    ("ssse3", "llvm.x86.ssse3.pmadd.ub.sw.128", 16),
)
_TWO_SHORTS = (
    ("avx512bw", "llvm.x86.avx512.pmaddw.d.512", 64),
    ("avx2", "llvm.x86.avx2.pmadd.wd", 32),
    ("sse2", "llvm.x86.sse2.pmadd.wd", 16),
)
"""What a CPU must have, the instruction, and the bytes that it takes; the widest first."""


def _sums() -> Lanes:
    return INTS if "avx512vnni" in features() else Lanes("i16", 2 * WIDTH)


def holds_bytes() -> bool:
    """Whether `dot` takes any bytes of a weight: whether sums are ints."""
    return _sums() == INTS


@intrinsic
def no_sums(context: Any) -> Any:
    """Nothing yet."""
    sums = _sums()

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return constant(sums.vector, 0)

    return sums(), generate


@intrinsic
def dot(context: Any, sums: Any, quads: Any, array: Any, index: Any) -> Any:
    """sums, and for each quad, numbers without signs, its product with four signed bytes of array from index on.

    Shorts hold the products of 32 numbers below 16 with any bytes but -128; what they cannot hold is lost.
    Ints hold those of any bytes.
    """
    assert array.dtype == types.int8

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        four = builder.load(address(context, builder, signature.args[2], values[2:], _INT), align=1)
        given = builder.bitcast(broadcast(builder, four, INTS.vector), QUADS.vector)
        if sums == INTS:
            ints = ir.VectorType(_INT, 16)
            words = [builder.bitcast(each, INTS.vector) for each in (values[1], given)]
            return _by_parts(builder, _FOUR_PRODUCTS, ir.FunctionType(ints, [ints] * 3), (values[0], *words), 16)
        found = _widest(_TWO_PRODUCTS)
        if found is None:
            return builder.add(values[0], _plain_dot(builder, values[1], given, sums.vector))
        name, width = found
        kind = ir.FunctionType(ir.VectorType(_SHORT, width // 2), [ir.VectorType(_BYTE, width)] * 2)
        return builder.add(values[0], _by_parts(builder, name, kind, (values[1], given), width))

    return sums(sums, quads, array, types.intp), generate


@intrinsic
def summed(context: Any, sums: Any) -> Any:
    """One int for each output."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if sums == INTS:
            return values[0]
        found = _widest(_TWO_SHORTS)
        if found is None:
            both, half = builder.bitcast(values[0], INTS.vector), constant(INTS.vector, 16)
            return builder.add(builder.ashr(builder.shl(both, half), half), builder.ashr(both, half))
        name, width = found
        shorts = ir.VectorType(_SHORT, width // 2)
        kind = ir.FunctionType(ir.VectorType(_INT, width // 4), [shorts] * 2)
        return _by_parts(builder, name, kind, (values[0], constant(sums.vector, 1)), width // 2)

    return INTS(sums), generate


def _plain_dot(builder: Any, quads: Any, given: Any, shorts: Any) -> Any:
    """Of neighbours, where there is no instruction for it."""
    words, both, eight = builder.bitcast(quads, shorts), builder.bitcast(given, shorts), constant(shorts, 8)
    first = builder.and_(words, constant(shorts, 255)), builder.ashr(builder.shl(both, eight), eight)
    second = builder.lshr(words, eight), builder.ashr(both, eight)
    return builder.add(builder.mul(*first), builder.mul(*second))


def _by_parts(builder: Any, name: str, kind: Any, operands: Any, width: int) -> Any:
    """An instruction called for so many elements of its operands at a time."""
    instruction = cgutils.get_or_insert_function(builder.module, kind, name)
    parts = [
        builder.call(instruction, [_part(builder, each, start, width) for each in operands])
        for start in range(0, operands[0].type.count, width)
    ]
    return _joined(builder, parts)


def _part(builder: Any, x: Any, start: int, width: int) -> Any:
    places = ir.Constant(ir.VectorType(_INT, width), list(range(start, start + width)))
    return builder.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), places)


def _joined(builder: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        places = ir.Constant(ir.VectorType(_INT, count), list(range(count)))
        parts = [builder.shuffle_vector(a, b, places) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _widest(instructions: tuple[tuple[str, str, int], ...]) -> tuple[str, int] | None:
    """The first that the machine has, and the bytes that it takes."""
    found = features()
    return next(((name, width) for feature, name, width in instructions if feature in found), None)
