"""Vectors of float32 as a type of numba: a number of each of WIDTH groups, computed with as if it were one number.

A loop over the values of one group ends in sums across a vector, and what is computed of a group is no vector at all.
With a group in each lane neither happens, on machines of any vector width: LLVM splits what is too wide. Operands of
arithmetic, comparisons and `where` may be plain numbers, which every lane then has. Not here: anything that knows
weights. No sum is reordered: a product and a sum may become one instruction, nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.ir as llvm  # pyright: ignore[reportMissingTypeStubs]
import numba.core.cgutils as _cgutils
import numba.core.types as _types
import numba.core.typing.templates as _templates
import numba.extending as _extending

WIDTH = 16
"""A vector of AVX-512, two of AVX2, four of NEON. Measured: with 32 the search of 4 bits takes a
third longer with AVX2, a tenth less with AVX-512."""

ir: Any = llvm  # this and what follows: libraries without types
types: Any = _types
cgutils: Any = _cgutils
templates: Any = _templates
extending: Any = _extending
intrinsic: Any = extending.intrinsic
"""An intrinsic is called without the context that its definition takes first."""
_operator: Any = operator
_INT, _FLOAT = ir.IntType(32), ir.FloatType()
_ELEMENTS = {"float": _FLOAT, "int": _INT, "bool": ir.IntType(1)}
_FLAGS = ("contract", "nsz")


class Lanes(types.Type):
    """numba's type of WIDTH numbers of one kind: float, int (32 bits, no sign) or bool."""

    def __init__(self, kind: str):
        self.kind, self.vector = kind, ir.VectorType(_ELEMENTS[kind], WIDTH)
        super().__init__(f"Lanes({kind} x {WIDTH})")  # pyright: ignore[reportUnknownMemberType]


@extending.register_model(Lanes)
class _LanesModel(extending.models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes):
        super().__init__(manager, lanes, lanes.vector)  # pyright: ignore[reportUnknownMemberType]


FLOATS, INTS, BOOLS = Lanes("float"), Lanes("int"), Lanes("bool")


def _constant(vector: Any, value: int) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _broadcast(builder: Any, value: Any, vector: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, _constant(ir.VectorType(_INT, vector.count), 0))


def _as_floats(context: Any, builder: Any, kinds: Any, values: Any) -> list[Any]:
    """Lanes as they are, and numbers in every lane."""
    return [
        value
        if kind == FLOATS
        else _broadcast(builder, context.cast(builder, value, kind, types.float32), FLOATS.vector)
        for kind, value in zip(kinds, values, strict=True)
    ]


def _call(builder: Any, name: str, values: Any) -> Any:
    kind = ir.FunctionType(FLOATS.vector, [FLOATS.vector] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{WIDTH}f32"), values)


# Memory. Arrays are contiguous; an index counts their elements from the first on, whatever their shape


def _place(context: Any, builder: Any, array: Any, given: Any, vector: Any) -> Any:
    """given: the array's value and an index."""
    data = cgutils.create_struct_proxy(array)(context, builder, value=given[0]).data
    return builder.bitcast(builder.gep(data, [given[1]]), vector.as_pointer())


@intrinsic
def load(context: Any, array: Any, index: Any) -> Any:
    """Of an array of float32, the numbers from there on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(_place(context, builder, signature.args[0], values, FLOATS.vector), align=4)

    return FLOATS(array, types.intp), generate


@intrinsic
def store(context: Any, array: Any, index: Any, x: Any) -> Any:
    """Write floats or ints from an index on, into an array of float32 or of uint32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _place(context, builder, signature.args[0], values[:2], x.vector)
        builder.store(values[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, x), generate


@intrinsic
def transpose(context: Any, x: Any, index: Any, pitch: Any, count: Any, out: Any, place: Any) -> Any:
    """WIDTH values each of WIDTH rows of float32, `pitch` apart, of which `count` are there and the last is taken again
    beyond it: from a place on, the first value of every row, the second ..."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        x, index, pitch, count, *target = values
        last = builder.sub(count, ir.Constant(count.type, 1))
        rows: list[Any] = []
        for i in range(WIDTH):
            own = ir.Constant(count.type, i)
            row = builder.select(builder.icmp_signed("<", own, last), own, last)
            start = builder.add(index, builder.mul(row, pitch))
            rows.append(builder.load(_place(context, builder, signature.args[0], (x, start), FLOATS.vector), align=4))
        for _ in range(WIDTH.bit_length() - 1):  # each moves the upper bit of a row's number below those of the column
            halves = zip(rows[: WIDTH // 2], rows[WIDTH // 2 :], strict=True)
            rows = [_interleaved(builder, *pair, first) for pair in halves for first in (0, WIDTH // 2)]
        for i, row in enumerate(rows):
            start = builder.add(target[1], ir.Constant(count.type, i * WIDTH))
            place = _place(context, builder, signature.args[4], (target[0], start), FLOATS.vector)
            builder.store(row, place, align=4)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, types.intp, out, types.intp), generate


def _interleaved(builder: Any, x: Any, y: Any, first: int) -> Any:
    """One lane of each in turn, from the lane `first` on."""
    order = [first + i // 2 + i % 2 * WIDTH for i in range(WIDTH)]
    return builder.shuffle_vector(x, y, ir.Constant(INTS.vector, order))


# Numbers


@intrinsic
def splat(context: Any, x: Any) -> Any:
    """One number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _as_floats(context, builder, signature.args, values)[0]

    return FLOATS(x), generate


@intrinsic
def where(context: Any, mask: Any, x: Any, y: Any) -> Any:
    """x in the lanes where the mask holds, else y."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.select(values[0], *_as_floats(context, builder, signature.args[1:], values[1:]))

    return FLOATS(mask, x, y), generate


@intrinsic
def any_of(context: Any, mask: Any) -> Any:
    """Whether the mask holds in any lane."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        bits = builder.bitcast(values[0], ir.IntType(WIDTH))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(BOOLS), generate


def _of_one(name: str) -> Any:
    @intrinsic
    def call(context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return _call(builder, name, values)

        return FLOATS(FLOATS), generate

    return call


nearest = _of_one("rint")
"""The nearest integer, an even one of two."""
magnitude = _of_one("fabs")


def _selecting(comparison: str) -> Any:
    @intrinsic
    def select(context: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            x, y = _as_floats(context, builder, signature.args, values)
            return builder.select(builder.fcmp_ordered(comparison, x, y), x, y)

        return FLOATS(x, y), generate

    return select


maximum = _selecting(">")
"""The larger of two; y where one is not a number."""
minimum = _selecting("<")


@intrinsic
def power_of_two(context: Any, x: Any) -> Any:
    """The largest that is not above the magnitude; 0 of numbers below the smallest normal one."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        exponent = builder.and_(builder.bitcast(values[0], INTS.vector), _constant(INTS.vector, 0x7F800000))
        return builder.bitcast(exponent, FLOATS.vector)

    return FLOATS(FLOATS), generate


@intrinsic
def ints(context: Any, x: Any) -> Any:
    """Floats that are integers from 0 on, as ints."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fptosi(values[0], INTS.vector)

    return INTS(FLOATS), generate


def _shifting(operation: str) -> Any:
    @intrinsic
    def shift(context: Any, x: Any, places: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            places = _broadcast(builder, builder.trunc(values[1], _INT), INTS.vector)
            return getattr(builder, operation)(values[0], places)

        return INTS(INTS, types.intp), generate

    return shift


shift_left = _shifting("shl")
"""Of ints, by 0 to 31 bits."""
shift_right = _shifting("lshr")


def _is_number(kind: Any) -> bool:
    return kind == FLOATS or isinstance(kind, types.Number)


def _typed(operation: Any, result: Lanes, takes: Callable[[Any, Any], bool]) -> None:
    @templates.infer_global(operation)
    class OfLanes(templates.AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            return templates.signature(result, *args) if len(args) == 2 and takes(*args) else None


def _of_floats(operation: Any, result: Lanes, make: Callable[..., Any]) -> None:
    """An operator of floats, or of floats and a number."""
    _typed(operation, result, lambda x, y: FLOATS in (x, y) and _is_number(x) and _is_number(y))

    def compute(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return make(builder, *_as_floats(context, builder, signature.args, values))

    for pair in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        extending.lower_builtin(operation, *pair)(compute)


def _arithmetic(operation: Any, name: str) -> None:
    def make(builder: Any, x: Any, y: Any) -> Any:
        return getattr(builder, name)(x, y, flags=_FLAGS)

    _of_floats(operation, FLOATS, make)


def _comparison(operation: Any, sign: str) -> None:
    def make(builder: Any, x: Any, y: Any) -> Any:
        return builder.fcmp_ordered(sign, x, y)

    _of_floats(operation, BOOLS, make)


def _bitwise(operation: Any, lanes: Lanes, name: str) -> None:
    _typed(operation, lanes, lambda x, y: x == y == lanes)

    @extending.lower_builtin(operation, Lanes, Lanes)
    def _(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return getattr(builder, name)(*values)


for _name, _made in (("add", "fadd"), ("iadd", "fadd"), ("sub", "fsub"), ("mul", "fmul"), ("truediv", "fdiv")):
    _arithmetic(getattr(_operator, _name), _made)
for _name, _made in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "==")):
    _comparison(getattr(_operator, _name), _made)
_bitwise(_operator.and_, BOOLS, "and_")
_bitwise(_operator.or_, INTS, "or_")
