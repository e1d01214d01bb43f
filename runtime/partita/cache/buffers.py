"""The arrays of a cache: rings of keys and values of a layer, positions of a kind of layer; made and lengthened.

Not here: which slots are written and what a query sees (`state`). Slots of a layer are counted in one row: its sinks,
its ring, and a spare one. A dense ring (`rings`) holds all of them; beside a packed one the sinks are a dense ring of
their own, with a spare slot too. Invariant: the arrays are always met in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..arrays import Array
from ..backend import Backend
from ..brief import Brief
from ..quantization import Packed
from ..rings import PackedPair, Sides, mapped
from .kv_format import KVFormat
from .spec import CacheSpec, LayerSpec, Span, bytes_per_token

Change = Callable[[Array, int, int], Array]
"""Of an array, its axis of rows and its axis of slots."""


@dataclass
class Buffers(Brief):
    """Keys and values of one layer. kv: `rings.Ring`. sinks: (2, B, H, S + 1, D), None where they are slots of kv."""

    kv: Any
    sinks: Array | None

    def map(self, change: Change, sinks: Change) -> None:
        """Replace every array of the ring by what `change` makes of it, and that of the sinks by what `sinks` does."""
        self.kv = mapped(self.kv, change)
        self.sinks = None if self.sinks is None else sinks(self.sinks, 1, 3)


@dataclass(frozen=True)
class Store:
    """What makes and lengthens the arrays of one format on one backend."""

    ops: Backend
    kv: KVFormat

    @cached_property
    def dense(self) -> dict[int, str]:
        """dtype of what is stored in 32 and in 16 bits."""
        return {32: "float32", 16: "float16" if self.ops.decode_dtype == "float32" else self.ops.decode_dtype}

    # Made

    def positions(self, slots: int, batch: int) -> Array:
        """Of `batch` rows that hold nothing yet: int32 (B, slots)."""
        return self.ops.full((batch, slots), -1, "int32")

    def unrotated(self, layer: LayerSpec, layers: int, batch: int) -> Array:
        """For the sinks' keys of so many layers that are alike, before rotation: (B, layers * H, S + 1, D)."""
        shape = (batch, layers * layer.kv_heads, layer.span.sinks + 1, layer.head_dim)
        return self.ops.zeros(shape, self.dense[self.kv.sink_bits])

    def buffers(self, layer: LayerSpec, slots: int, batch: int) -> Buffers:
        """Of `batch` rows of zeros. slots: of the ring, the spare one included."""
        sinks, zeros = layer.span.sinks, self.ops.zeros
        if self.kv.joint:
            return Buffers(self._ring(layer, sinks + slots, batch), None)
        shape = (2, batch, layer.kv_heads, sinks + 1, layer.head_dim)
        return Buffers(self._ring(layer, slots, batch), zeros(shape, self.dense[self.kv.sink_bits]) if sinks else None)

    def _ring(self, layer: LayerSpec, slots: int, batch: int) -> Any:
        zeros, kv, group = self.ops.zeros, self.kv, self.kv.group_size
        lead, size = (batch, layer.kv_heads, slots), layer.head_dim
        if kv.joint:
            return zeros((2, *lead, size), self.dense[kv.key_bits])
        if max(kv.key_bits, kv.value_bits) < 16:
            k, v = (zeros((*lead, size * bits // 32), "uint32") for bits in (kv.key_bits, kv.value_bits))
            scales, biases = (zeros((2, *lead, size // group), "float16") for _ in range(2))
            return PackedPair(k, v, scales, biases, (kv.key_bits, kv.value_bits), group)
        return Sides(self._side(kv.key_bits, lead, size), self._side(kv.value_bits, lead, size))

    def _side(self, bits: int, lead: tuple[int, ...], size: int) -> Array | Packed[Array]:
        zeros, group = self.ops.zeros, self.kv.group_size
        if bits >= 16:
            return zeros((*lead, size), self.dense[bits])
        scales, biases = (zeros((*lead, size // group), "float16") for _ in range(2))
        return Packed(zeros((*lead, size * bits // 32), "uint32"), scales, biases, bits, group)

    # Lengthened

    def room(self, spec: CacheSpec, span: Span, tokens: int, batch: int) -> int:
        """Slots that layers of a kind get for a step of one token that theirs are too few for. Where the step is
        captured, those of twice as many tokens, if that leaves half of the free memory."""
        least, ahead = spec.slots(span, tokens), spec.slots(span, 2 * tokens)
        if not self.ops.captures:
            return least
        layers = replace(spec, layers=tuple(layer for layer in spec.attention.values() if layer.span == span))
        more = (ahead - least) * batch * bytes_per_token(layers)
        return ahead if more <= self.ops.memory().free / 2 else least

    def lengthen(self, buffers: Buffers, layer: LayerSpec, more: int, batch: int) -> None:
        """Add so many slots of zeros to the ring."""
        new = iter(arrays(self._ring(layer, more, batch)))
        buffers.kv = mapped(buffers.kv, lambda array, _, slots: self.ops.concat([array, next(new)], slots))


def arrays(kv: Any) -> list[Array]:
    """Those of a ring, in order."""
    found: list[Array] = []
    mapped(kv, lambda array, rows, slots: found.append(array) or array)
    return found
