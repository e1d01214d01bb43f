"""The arrays of a cache: keys and values of a layer, positions of a kind of layer; made, written and lengthened.

Not here: which slots are written and what a query sees (`state`). Invariants: one path writes, and quantizes where a
ring is packed; the last slot of every array is the spare one; `map` meets the arrays always in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ..arrays import Array
from ..backend import Backend
from ..brief import Brief
from ..quantization import Packed, joined
from .kv_format import KVFormat
from .spec import LayerSpec, Span

Side = Array | Packed[Array]
"""The keys, or the values, of one layer's ring."""
Change = Callable[[Array], Array]


@dataclass
class Buffers(Brief):
    """Keys and values of one layer: the ring (array or Packed) and the sinks (arrays)."""

    k: Side
    v: Side
    sink_k: Array | None
    sink_v: Array | None

    def map(self, change: Change) -> None:
        """Replace every array by what `change` makes of it."""
        self.k, self.v = (side.map(change) if isinstance(side, Packed) else change(side) for side in (self.k, self.v))
        self.sink_k, self.sink_v = _changed(self.sink_k, change), _changed(self.sink_v, change)


@dataclass
class Track(Brief):
    """Positions held by the slots of one kind of layer, shared by its layers: int32 (B, C) and (B, S + 1); -1: none."""

    ring: Array
    sinks: Array | None

    def map(self, change: Change) -> None:
        """Replace every array by what `change` makes of it."""
        self.ring, self.sinks = change(self.ring), _changed(self.sinks, change)


def _changed(array: Array | None, change: Change) -> Array | None:
    return None if array is None else change(array)


@dataclass(frozen=True)
class Store:
    """What makes, writes and lengthens the arrays of one format on one backend. slots: the spare one included."""

    ops: Backend
    kv: KVFormat

    @cached_property
    def dense(self) -> dict[int, str]:
        """dtype of what is stored in 32 and in 16 bits."""
        return {32: "float32", 16: "float16" if self.ops.decode_dtype == "float32" else self.ops.decode_dtype}

    # Made

    def track(self, span: Span, slots: int, batch: int) -> Track:
        """Of `batch` rows that hold nothing yet."""
        sinks = self.ops.full((batch, span.sinks + 1), -1, "int32") if span.sinks else None
        return Track(self.ops.full((batch, slots), -1, "int32"), sinks)

    def buffers(self, layer: LayerSpec, slots: int, batch: int) -> Buffers:
        """Of `batch` rows of zeros."""
        sink_k = sink_v = None
        if layer.span.sinks:
            shape = (batch, layer.kv_heads, layer.span.sinks + 1, layer.head_dim)
            dtype = self.dense[self.kv.sink_bits]
            sink_k, sink_v = self.ops.zeros(shape, dtype), self.ops.zeros(shape, dtype)
        return Buffers(
            self._side(self.kv.key_bits, layer, slots, batch),
            self._side(self.kv.value_bits, layer, slots, batch),
            sink_k,
            sink_v,
        )

    def _side(self, bits: int, layer: LayerSpec, slots: int, batch: int) -> Side:
        zeros, group = self.ops.zeros, self.kv.group_size
        lead = (batch, layer.kv_heads, slots)
        if bits >= 16:
            return zeros((*lead, layer.head_dim), self.dense[bits])
        scales = (*lead, layer.head_dim // group)
        weight = zeros((*lead, layer.head_dim * bits // 32), "uint32")
        return Packed(weight, zeros(scales, "float16"), zeros(scales, "float16"), bits, group)

    # Lengthened

    def lengthen_track(self, track: Track, more: int, batch: int) -> None:
        """Add so many empty slots to the ring."""
        track.ring = self.ops.concat([track.ring, self.ops.full((batch, more), -1, "int32")], 1)

    def lengthen(self, buffers: Buffers, layer: LayerSpec, more: int, batch: int) -> None:
        """Add so many slots of zeros to the ring."""
        buffers.k = self._longer(buffers.k, self._side(self.kv.key_bits, layer, more, batch))
        buffers.v = self._longer(buffers.v, self._side(self.kv.value_bits, layer, more, batch))

    def _longer(self, side: Side, new: Side) -> Side:
        concat = self.ops.concat
        if isinstance(side, Packed) and isinstance(new, Packed):
            return joined([side, new], lambda pair: concat(pair, 2))
        assert not isinstance(side, Packed)  # both are made for the same bits
        assert not isinstance(new, Packed)
        return concat([side, new], 2)

    # Written

    def write(self, side: Side, x: Array, index: Array) -> Side:
        """The one write path: quantize if the ring is packed, then put every part of x (B, H, T, D) at slots (B, T)."""
        if isinstance(side, Packed):
            return self.ops.write_packed(side, x, index)
        return self.ops.write(side, x, index)

    def mark(self, positions: Array, new: Array, index: Array) -> Array:
        """Positions (B, C) with `new` (B, T) at slots index (B, T), through the same write as keys and values."""
        written = self.ops.write(positions[:, None, :, None], new[:, None, :, None], index)
        return written[:, 0, :, 0]
