"""Vectors of numbers for kernels: LLVM's vector types as types of numba, which its optimizer maps to the machine's own.

Lanes hold 32 numbers, of 32 outputs of a product; quads hold 128 bytes, four for each of 32 outputs. A loop that numba
compiles is vectorized when LLVM finds out that it can be, and one line more undoes it: tenfold (docs/experiments.md).
Written with lanes it is vectors to begin with, of whatever width the machine has. Not here: anything that knows
weights.
"""

from __future__ import annotations

import operator
import platform
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils, config
from numba.core.typing import templates
from numba.extending import lower_builtin, models, register_model

WIDTH = 32

intrinsic: Any = extending.intrinsic
"""An intrinsic is called without the context that its definition takes first."""
_config: Any = config  # its attributes come from the environment
_typing: Any = templates

_BYTE, _SHORT, _INT, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_ELEMENTS = {"u8": _BYTE, "i8": _BYTE, "i16": _SHORT, "i32": _INT, "f32": _FLOAT}


class Lanes(types.Type):
    """numba's type of `count` numbers of one kind: u8, i8, i16, i32 or f32."""

    def __init__(self, kind: str, count: int = WIDTH):
        self.kind, self.vector = kind, ir.VectorType(_ELEMENTS[kind], count)
        super().__init__(f"Lanes({kind} x {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes):
        super().__init__(manager, lanes, lanes.vector)


BYTES, SHORTS, INTS, FLOATS = Lanes("u8"), Lanes("i16"), Lanes("i32"), Lanes("f32")
QUADS = Lanes("u8", 4 * WIDTH)

_OF = {types.uint8: BYTES, types.int8: Lanes("i8"), types.int16: SHORTS, types.int32: INTS, types.float32: FLOATS}


def constant(vector: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def broadcast(builder: Any, value: Any, vector: ir.VectorType) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, constant(ir.VectorType(_INT, vector.count), 0))


def address(context: Any, builder: Any, array: Any, given: Any, pointed: Any) -> Any:
    """Where an element lies, for what `pointed` says. given: the array's value and the index."""
    value, index = given
    data = cgutils.create_struct_proxy(array)(context, builder, value=value).data
    return builder.bitcast(builder.gep(data, [index]), pointed.as_pointer())


# Memory. Arrays are contiguous; an index counts their elements from the first on, whatever their shape


def _loading(lanes_of: Callable[[Any], Lanes]) -> Any:
    @intrinsic
    def load(context: Any, array: Any, index: Any) -> Any:
        lanes = lanes_of(array)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = address(context, builder, signature.args[0], values, lanes.vector)
            return builder.load(place, align=1)

        return lanes(array, types.intp), generate

    return load


load = _loading(lambda array: _OF[array.dtype])
"""load(array, index): the 32 numbers from there on."""
load_quads = _loading(lambda array: QUADS)
"""load_quads(bytes, index): the 128 bytes from there on."""


@intrinsic
def load_nibbles(context: Any, array: Any, index: Any) -> Any:
    """32 numbers of 4 bits, of 16 bytes from there on, each byte's low half first."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        half = ir.VectorType(_BYTE, WIDTH // 2)
        found = builder.load(address(context, builder, signature.args[0], values, half), align=1)
        parts = builder.and_(found, constant(half, 15)), builder.lshr(found, constant(half, 4))
        order = [place for pair in zip(range(WIDTH // 2), range(WIDTH // 2, WIDTH), strict=True) for place in pair]
        return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(_INT, WIDTH), order))

    return BYTES(array, types.intp), generate


@intrinsic
def float_at(context: Any, array: Any, index: Any) -> Any:
    """One float32 of an array."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(address(context, builder, signature.args[0], values, _FLOAT))

    return types.float32(array, types.intp), generate


def _loading_floats(kind_of: Callable[[Any], Any]) -> Any:
    @intrinsic
    def load_floats(context: Any, array: Any, index: Any) -> Any:
        kind = kind_of(array)
        stored = {types.uint16: _SHORT, types.int16: _SHORT, types.float32: _FLOAT}[kind]

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = address(context, builder, signature.args[0], values, ir.VectorType(stored, WIDTH))
            found = builder.load(place, align=1)
            if kind == types.uint16:
                return _from_half(builder, found)
            if kind == types.int16:
                upper = builder.shl(builder.zext(found, INTS.vector), constant(INTS.vector, 16))
                return builder.bitcast(upper, FLOATS.vector)
            return found

        return FLOATS(array, types.intp), generate

    return load_floats


load_floats = _loading_floats(lambda array: array.dtype)
"""load_floats(array, index): 32 numbers as floats, of an array that holds float32, the bits of float16 as uint16, or of
bfloat16 as int16."""
load_single = _loading_floats(lambda array: types.float32)
"""load_single(bytes, index): 32 floats that begin at a byte."""
load_half = _loading_floats(lambda array: types.uint16)
load_bfloat = _loading_floats(lambda array: types.int16)


@intrinsic
def store(context: Any, array: Any, index: Any, x: Any) -> Any:
    """Write them from an index on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = address(context, builder, signature.args[0], values[:2], x.vector)
        builder.store(values[2], place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, x), generate


@intrinsic
def prefetch(context: Any, array: Any, index: Any) -> Any:
    """Bring the 64 bytes from there on nearer to the processor; an index beyond the end does nothing."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        byte = ir.PointerType(_BYTE)
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        place = builder.bitcast(address(context, builder, signature.args[0], values, _BYTE), byte)
        builder.call(function, [place, ir.Constant(_INT, 0), ir.Constant(_INT, 2), ir.Constant(_INT, 1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


# Numbers


@intrinsic
def splat(context: Any, x: Any) -> Any:
    """One number 32 times."""
    lanes = _OF[x]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return broadcast(builder, values[0], lanes.vector)

    return lanes(x), generate


@intrinsic
def ints(context: Any, x: Any) -> Any:
    """Shorts with their signs, or bytes without, as ints."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return (builder.zext if x.kind == "u8" else builder.sext)(values[0], INTS.vector)

    return INTS(x), generate


@intrinsic
def floats(context: Any, x: Any) -> Any:
    """Ints, or bytes, as floats."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return (builder.uitofp if x.kind == "u8" else builder.sitofp)(values[0], FLOATS.vector)

    return FLOATS(x), generate


@intrinsic
def byte_of(context: Any, quads: Any, place: Any) -> Any:
    """The first to the fourth byte of each quad, by its place from 0 on, as ints."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        words = builder.bitcast(values[0], INTS.vector)
        shift = builder.shl(builder.trunc(values[1], _INT), ir.Constant(_INT, 3))
        return builder.and_(builder.lshr(words, broadcast(builder, shift, INTS.vector)), constant(INTS.vector, 255))

    return INTS(quads, types.intp), generate


@intrinsic
def fused(context: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z of floats, rounded once where the machine has an instruction for it."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if not _fuses():
            return builder.fadd(builder.fmul(*values[:2]), values[2])
        kind = ir.FunctionType(x.vector, [x.vector] * 3)
        name = f"llvm.fma.v{x.vector.count}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)

    return x(x, x, x), generate


@intrinsic
def from_half(context: Any, bits: Any) -> Any:
    """The float of a float16's bits, uint16."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _from_half(builder, values[0])

    return types.float32(types.uint16), generate


def _from_half(builder: Any, bits: Any) -> Any:
    """Shorts, or one, as the floats whose float16 bits they are. Where there is no instruction for it, the exponent is
    moved by a multiplication, which also makes what is below float16's range right; LLVM would call a library."""
    vector = isinstance(bits.type, ir.VectorType)

    def shaped(element: Any) -> Any:
        return ir.VectorType(element, bits.type.count) if vector else element

    def number(element: Any, value: Any) -> Any:
        return ir.Constant(shaped(element), [value] * bits.type.count if vector else value)

    if "f16c" in features() or not _x86():
        return builder.fpext(builder.bitcast(bits, shaped(ir.HalfType())), shaped(_FLOAT))
    wide = builder.zext(bits, shaped(_INT))
    size = builder.and_(wide, number(_INT, 0x7FFF))
    sign = builder.shl(builder.and_(wide, number(_INT, 0x8000)), number(_INT, 16))
    moved = builder.bitcast(builder.shl(size, number(_INT, 13)), shaped(_FLOAT))
    found = builder.bitcast(builder.fmul(moved, number(_FLOAT, 2.0**112)), shaped(_INT))
    lost = builder.icmp_unsigned(">=", size, number(_INT, 0x7C00))  # infinite, or not a number
    found = builder.select(lost, builder.or_(found, number(_INT, 0x7F800000)), found)
    return builder.bitcast(builder.or_(found, sign), shaped(_FLOAT))


@intrinsic
def total(context: Any, x: Any) -> Any:
    """The sum of floats, in an order that is the machine's and always the same."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(_FLOAT, [_FLOAT, FLOATS.vector])
        name = f"llvm.vector.reduce.fadd.v{WIDTH}f32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [ir.Constant(_FLOAT, -0.0), values[0]], fastmath=("reassoc",))

    return types.float32(FLOATS), generate


def _selecting(comparison: str) -> Any:
    @intrinsic
    def select(context: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.select(builder.fcmp_unordered(comparison, *values), *values)

        return FLOATS(FLOATS, FLOATS), generate

    return select


larger = _selecting(">")
"""The larger of two floats, lane by lane; x where one is not a number."""
smaller = _selecting("<")


@intrinsic
def exponential(context: Any, x: Any) -> Any:
    """e to the floats, to 2e-7 of the value; 0 below -87, above 88 as there."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _exponential(builder, values[0])

    return FLOATS(FLOATS), generate


@intrinsic
def sigmoid(context: Any, x: Any) -> Any:
    """1 / (1 + e to the negative floats)."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        one = ir.Constant(FLOATS.vector, [1.0] * WIDTH)
        return builder.fdiv(one, builder.fadd(one, _exponential(builder, builder.fneg(values[0]))))

    return FLOATS(FLOATS), generate


def _exponential(builder: Any, x: Any) -> Any:
    def number(value: float) -> Any:
        return ir.Constant(FLOATS.vector, [value] * WIDTH)

    def call(name: str, *operands: Any) -> Any:
        if name == "fma" and not _fuses():
            return builder.fadd(builder.fmul(*operands[:2]), operands[2])
        kind = ir.FunctionType(FLOATS.vector, [FLOATS.vector] * len(operands))
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32"), operands)

    lost = builder.fcmp_ordered("<", x, number(-87))
    for comparison, edge in (("<", number(-87)), (">", number(88))):
        x = builder.select(builder.fcmp_ordered(comparison, x, edge), edge, x)
    n = call("rint", builder.fmul(x, number(1.4426950408889634)))
    # ln 2 in two parts, of which the first has few bits: its multiples are exact
    r = call("fma", n, number(-0.693359375), x)
    r = call("fma", n, number(2.12194440054690583e-4), r)
    y = number(1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        y = call("fma", y, r, number(coefficient))
    power = builder.add(builder.fptosi(n, INTS.vector), constant(INTS.vector, 127))
    y = builder.fmul(y, builder.bitcast(builder.shl(power, constant(INTS.vector, 23)), FLOATS.vector))
    return builder.select(lost, number(0), y)


@intrinsic
def bits_of(context: Any, x: Any, shift: Any, mask: Any) -> Any:
    """(x >> shift) & mask of every byte, or x << -shift where that is negative; numbers without signs. No bit of the
    mask comes from a neighbour."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        words = ir.VectorType(_SHORT, x.vector.count // 2)  # machines shift shorts, and no bytes
        shift_, mask_ = (builder.trunc(value, kind) for value, kind in zip(values[1:], (_SHORT, _BYTE), strict=True))
        shorts, zero = builder.bitcast(values[0], words), ir.Constant(_SHORT, 0)
        right = builder.lshr(shorts, broadcast(builder, shift_, words))
        left = builder.shl(shorts, broadcast(builder, builder.sub(zero, shift_), words))
        moved = builder.select(builder.icmp_signed("<", shift_, zero), left, right)  # one, where the shift is constant
        return builder.and_(builder.bitcast(moved, x.vector), broadcast(builder, mask_, x.vector))

    return x(x, types.intp, types.intp), generate


def _x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


def _fuses() -> bool:
    """Whether a multiplication with an addition is one instruction; it would be a call of the C library otherwise."""
    return "fma" in features() or not _x86()


def features() -> frozenset[str]:
    """Of the CPU that numba compiles for: the machine's, or what NUMBA_CPU_FEATURES says."""
    given = _config.CPU_FEATURES
    if given is None:
        return frozenset(name for name, there in llvmlite.binding.get_host_cpu_features().items() if there)
    return frozenset(name[1:] for name in given.split(",") if name.startswith("+"))


def _arithmetic(operation: Callable[..., Any], integer: str, real: str) -> None:
    @_typing.infer_global(operation)
    class OfLanes(templates.AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            x, y = args
            return templates.signature(x, x, x) if isinstance(x, Lanes) and x == y else None

    @lower_builtin(operation, Lanes, Lanes)
    def compute(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return getattr(builder, real if signature.return_type.kind == "f32" else integer)(*values)


_arithmetic(operator.add, "add", "fadd")
_arithmetic(operator.sub, "sub", "fsub")
_arithmetic(operator.mul, "mul", "fmul")
