"""Trained values side by side in a few flat arrays, so that what goes number by number (the optimizer, the norm of the
gradients, what processes send each other) is a few operations, however many matrices are trained.

Matrices and other values lie apart, as only matrices decay. Not here: what is trained (`trainable.py`).
Invariant: names and shapes alone decide where a value lies, so the same run adds in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..arrays import Array
from ..backend import Backend

BUCKET = 2**20
"""Numbers of a flat array that holds several: 4 MiB, of which a few copies are alive while it is updated."""

Arrays = dict[str, Array]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Buckets:
    """shapes: of every trained array. names: of those in each flat array, in their order there. decayed: the flat
    arrays that hold matrices."""

    shapes: Shapes
    names: Mapping[str, tuple[str, ...]]
    decayed: frozenset[str]

    def flat(self, ops: Backend, values: Arrays) -> Arrays:
        """The flat arrays of named values, which are taken out of the dict one after the other."""
        found: Arrays = {}
        for bucket, names in self.names.items():
            parts = [values.pop(name).reshape(-1) for name in names]
            found[bucket] = parts[0] if len(parts) == 1 else ops.concat(parts, 0)
            ops.launch(found[bucket])
        return found

    def named(self, ops: Backend, flat: Mapping[str, Array], dtype: str = "float32") -> Arrays:
        """Every value by its name, a view; differentiable. dtype: of matrices, the others stay in float32."""
        found: Arrays = {}
        for bucket, names in self.names.items():
            shapes = [self.shapes[name] for name in names]
            parts = ops.unflatten(flat[bucket], shapes, dtype if bucket in self.decayed else "float32")
            found.update(zip(names, parts, strict=True))
        return found


def buckets_of(values: Mapping[str, Array]) -> Buckets:
    shapes = {name: tuple(values[name].shape) for name in sorted(values)}
    found: dict[str, tuple[str, ...]] = {}
    for kind, wide in (("matrices", True), ("vectors", False)):
        sizes = [(name, math.prod(shape)) for name, shape in shapes.items() if (len(shape) > 1) == wide]
        found |= {f"{kind}.{i}": tuple(names) for i, names in enumerate(grouped(sizes, BUCKET))}
    return Buckets(shapes, found, frozenset(name for name in found if name.startswith("matrices")))


def grouped(sizes: Iterable[tuple[str, int]], limit: int) -> Iterator[list[str]]:
    """Names in their order, in groups of at most `limit` numbers or of one."""
    names: list[str] = []
    count = 0
    for name, size in sizes:
        if names and count + size > limit:
            yield names
            names, count = [], 0
        names.append(name)
        count += size
    if names:
        yield names
