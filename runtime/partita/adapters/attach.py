"""A finished adapter on a loaded decoder, beside its weights: packed ones stay packed, and one base serves several.

Not here: reading adapters (`read`), training them (`lora`), fusing (`read.fused`). Invariants: the base decoder is not
changed and shares every weight with what is made of it, stacked ones too: each projection's change is added to its own
outputs. What cannot be done beside the weights is refused and the way to fuse it named.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..brief import Brief
from ..checkpoint.names import Index, part_beside_text
from ..errors import CheckpointError, UnsupportedModel
from ..model.decoder import Decoder
from ..model.layers import Linear, Stack
from ..model.tree import replace_at, walk
from ..model.weights import PROJECTIONS, WeightSpec
from .lora import LoraLinear, weight_rows
from .read import Adapter, LowRank, resolved


@dataclass(frozen=True)
class Update(Brief):
    """What an adapter makes of one output y of a stack: (y + h Bᵀ) * factor + shift.

    output: its number. ranks: the rows of the stack's A that h (..., r) comes from. b: (out, r), with the scale in it.
    DoRA: factor (out,), the trained length of each row over the length that W + B A gives it; shift (out,) is what
    keeps the bias, which y has already, unscaled.
    """

    output: int
    ranks: tuple[int, int]
    b: Array
    factor: Array | None = None
    shift: Array | None = None

    def __call__(self, ops: Backend, y: Array, h: Array) -> Array:
        first, last = self.ranks
        y = y + ops.linear(h[..., first:last], self.b)
        y = y if self.factor is None else y * self.factor
        return y if self.shift is None else y + self.shift


@dataclass(frozen=True)
class AdaptedStack(Stack):
    """A stack some of whose outputs are changed. a: (ranks, in), every change's A, one below the other."""

    a: Array
    updates: tuple[Update, ...]

    def __call__(self, ops: Backend, x: Array) -> list[Array]:
        outputs = super().__call__(ops, x)
        h = ops.linear(x, self.a)
        for update in self.updates:
            outputs[update.output] = update(ops, outputs[update.output], h)
        return outputs

    def joined(self, ops: Backend, x: Array) -> Array:
        return ops.concat(self(ops, x), -1)


_MATRIX = re.compile(r"(?:_proj(?:_[a-z]+)?|\.w[123]|lm_head)\.weight$")  # in_proj_qkv, w1 too


@dataclass(frozen=True)
class _Place:
    """Where a projection is. path: its own, or that of its stack. linear: has its rows from row `start` on. outputs:
    those of the stack that it makes; none for a projection by itself."""

    path: str
    linear: Linear
    spec: WeightSpec
    start: int = 0
    outputs: range = range(0)


@dataclass(frozen=True)
class _Arrays:
    """A change on the device, float32. b: with the scale in it. factor: of DoRA, (out,)."""

    a: Array
    b: Array
    factor: Array | None


def with_adapter(ops: Backend, decoder: Decoder, adapter: Adapter) -> Decoder:
    """The decoder, which has no adapter, with its adapted projections.

    CheckpointError: a module or a shape that this model does not have. UnsupportedModel: a change of something that is
    no projection (embeddings, whole layers, experts). What it changes in a part that sees does not matter to a text.
    """
    places = {place.spec.name: place for place in _places(decoder)}
    present = Index(places)
    changes: dict[str, LowRank] = {}
    for name in (*adapter.replaced, *adapter.changes):
        if (
            part_beside_text(name) is not None
        ):  # adapted along with the text decoder, as its projections are called alike
            continue
        change = adapter.changes.get(name)
        if change is None or change.a.ndim != 2 or _MATRIX.search(name) is None:
            raise UnsupportedModel(_only_fused(name, adapter))
        if name.endswith("lm_head.weight") and decoder.config.tie_embeddings:
            raise UnsupportedModel(_only_fused(name, adapter))
        changes[resolved(name, present, adapter)] = change
    found: dict[str, list[tuple[_Place, _Arrays]]] = {}
    for name, change in changes.items():
        place = places[name]
        found.setdefault(place.path, []).append((place, _arrays(ops, place, change, adapter)))
    nodes = dict(walk(decoder))
    return replace_at(decoder, {path: _adapted(ops, nodes[path], each) for path, each in found.items()})


def identity(adapter: Adapter) -> str:
    """A stable identity of what an adapter does, in hexadecimal: every byte of it counts."""
    digest = hashlib.sha256()
    for name, change in sorted(adapter.changes.items()):
        digest.update(f"{name}\0{change.scale!r}\0".encode())
        for part in (change.a, change.b, change.magnitude):
            digest.update(b"" if part is None else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:32]


def _only_fused(name: str, adapter: Adapter) -> str:
    return (
        f"{adapter.path.name}: the adapter changes {name}, which is not a single projection of this model: fuse it "
        f"with `convert(MODEL, DEST, adapter={adapter.path})` and use DEST"
    )


def _places(decoder: Decoder) -> Iterator[_Place]:
    """Every projection, and the head where it is not the embedding."""
    for path, node in walk(decoder):
        if isinstance(node, Stack):
            output = 0
            for part in node.parts:
                start = 0
                for spec in part.specs:
                    yield _Place(path, part, spec, start, range(output, output + len(spec.outputs)))
                    start, output = start + spec.shape[0], output + len(spec.outputs)
        elif isinstance(node, Linear) and ".parts." not in path:  # a stack's parts came with it
            yield from (_Place(path, node, spec) for spec in node.specs if spec.kind in (*PROJECTIONS, "head"))


def _arrays(ops: Backend, place: _Place, change: LowRank, adapter: Adapter) -> _Arrays:
    shape, module = place.spec.shape, place.spec.module
    if change.shape != shape:
        raise CheckpointError(
            f"{adapter.path.name}: {module} is {shape} in this model and {change.shape} in the adapter, which was "
            f"made for {adapter.base_model or 'another model'}"
        )
    parts = [x.astype(np.float32) for x in (change.a, change.b, change.magnitude) if x is not None]
    if not all(np.isfinite(part).all() for part in parts):
        raise CheckpointError(f"{adapter.path.name}: {module} has values that are not finite")
    a, b, *magnitude = (ops.array(part, "float32") for part in parts)
    b = b * change.scale
    return _Arrays(a, b, magnitude[0] / _lengths(ops, place, a, b) if magnitude else None)


def _lengths(ops: Backend, place: _Place, a: Array, b: Array) -> Array:
    """Lengths of the rows of W + B A, float32 (out,), of which a few are formed at a time."""
    squares: list[Array] = []
    start, wide = 0, a.swapaxes(0, 1)  # in, r
    for rows in weight_rows(ops, place.linear, place.start, place.spec.shape[0]):
        changed = rows + ops.linear(b[start : start + rows.shape[0]], wide)
        squares.append(ops.sum(changed * changed, 1))
        ops.launch(squares[-1])
        start += rows.shape[0]
    found = ops.concat(squares, 0)
    return ops.where(found > 1e-20, found, 1e-20) ** 0.5


def _adapted(ops: Backend, node: Linear | Stack, each: Sequence[tuple[_Place, _Arrays]]) -> LoraLinear | AdaptedStack:
    if isinstance(node, Linear):
        ((_, change),) = each
        a, b = (ops.cast(x, ops.dtype) for x in (change.a, change.b))
        return LoraLinear(node, a, b, 1.0, factor=change.factor)
    updates: list[Update] = []
    rank = 0
    for place, change in each:
        ranks = rank, rank + change.a.shape[0]
        updates += _updates(ops, place, change, ranks)
        rank = ranks[1]
    a = ops.cast(ops.concat([change.a for _, change in each], 0), ops.dtype)
    return AdaptedStack(node.parts, node.sizes, a, tuple(updates))


def _updates(ops: Backend, place: _Place, change: _Arrays, ranks: tuple[int, int]) -> Iterator[Update]:
    """One for each output that the projection makes."""
    start = 0
    for output, width in zip(place.outputs, place.spec.outputs, strict=True):
        own, held = slice(start, start + width), slice(place.start + start, place.start + start + width)
        factor = None if change.factor is None else change.factor[own]
        bias = place.linear.bias
        shift = None if factor is None or bias is None else ops.cast(bias[held], "float32") * (1 - factor)
        factor, shift = (None if x is None else ops.cast(x, ops.dtype) for x in (factor, shift))
        yield Update(output, ranks, ops.cast(change.b[own], ops.dtype), factor, shift)
        start += width
