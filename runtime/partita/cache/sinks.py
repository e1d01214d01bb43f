"""The sinks' keys as they were before rotation, so that they can be turned to any distance from a query.

A turn always begins from these keys: no error adds up over a conversation. Layers that are alike share an array, so
that one rotation does for all of them. Not here: where a query needs them (`state`), and the slots that they go to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..arrays import Array
from ..backend import Backend
from ..model.config import RopeConfig
from ..model.rope import RopeTable
from .buffers import Change, Store
from .spec import CacheSpec, LayerSpec, Span


class SinkKeys:
    """Of every layer that rotates and has sinks. ropes: the cache's tables."""

    def __init__(self, ops: Backend, spec: CacheSpec, store: Store, ropes: Mapping[RopeConfig, RopeTable], batch: int):
        self._ops, self._spec, self._ropes = ops, spec, ropes
        layers = [layer for layer in spec.attention.values() if layer.span.sinks and layer.rope is not None]
        alike = {layer: layers.count(layer) for layer in layers}
        self._keys = {layer: store.unrotated(layer, count, batch) for layer, count in alike.items()}

    def map(self, change: Change) -> None:
        """Replace every array by what `change` makes of it."""
        self._keys = {layer: change(keys, 0, 2) for layer, keys in self._keys.items()}

    def ropes(self, span: Span) -> list[RopeConfig]:
        """By which layers of a kind rotate."""
        return list(dict.fromkeys(layer.rope for layer in self._keys if layer.span == span and layer.rope))

    def write(self, layer: int, keys: Array, index: Array) -> None:
        """Keep a layer's keys (B, T, H, D) at places (B, T), the last one of which goes nowhere."""
        spec = self._spec.attention[layer]
        if spec in self._keys:
            self._keys[spec] = self._ops.write(self._keys[spec], keys.swapaxes(1, 2), index, self._first_head(layer))

    def turned(self, span: Span, places: Array) -> dict[LayerSpec, Array]:
        """Of all layers of a kind, rotated at places (B, S): (B, S, heads of all that are alike, D)."""
        found: dict[LayerSpec, Array] = {}
        for layer, keys in self._keys.items():
            if layer.span == span and layer.rope is not None:
                turns = self._ops.turns(*self._ropes[layer.rope].angles(places), keys.shape[1], 0)
                found[layer] = self._ops.rotate(keys[:, :, : places.shape[1]].swapaxes(1, 2), turns)
        return found

    def of(self, layer: int, turned: Mapping[LayerSpec, Array]) -> Array | None:
        """A layer's own ones of what `turned` gave, (B, H, S, D); None where it has none."""
        spec, first = self._spec.attention[layer], self._first_head(layer)
        keys = turned.get(spec)
        return None if keys is None else keys[:, :, first : first + spec.kv_heads].swapaxes(1, 2)

    def rotated(self, layer: int, count: int, turns: Any) -> Array:
        """A layer's first ones, by what `Backend.turns` gave: (B, count, H, D)."""
        return self._ops.rotate(self.own(layer)[:, :, :count].swapaxes(1, 2), turns)

    def all(self, layer: LayerSpec) -> Array:
        """Of all layers that are alike, and a place for what goes nowhere: (B, heads of all, S + 1, D)."""
        return self._keys[layer]

    def own(self, layer: int) -> Array:
        """Those of one layer: (B, H, S + 1, D)."""
        spec, first = self._spec.attention[layer], self._first_head(layer)
        return self._keys[spec][:, first : first + spec.kv_heads]

    def _first_head(self, layer: int) -> int:
        """Of a layer among those that are alike."""
        spec = self._spec.attention[layer]
        return self._spec.layers[:layer].count(spec) * spec.kv_heads
