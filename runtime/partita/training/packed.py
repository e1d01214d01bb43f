"""Sequences in training: a `SequenceState`, so that the decoder's blocks are the same, and nothing stored.

A batch holds rows of several documents. A token sees the tokens of its own document at or before it, within its layer's
window; what recurrent layers remember begins with each document. Not here: gradients, which are the seam's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..arrays import Array
from ..backend import MASKED, Backend
from ..cache.kv_format import KVFormat
from ..cache.spec import LayerSpec, RecurrentSpec, plan
from ..errors import DataError
from ..model.config import ModelConfig, RopeConfig
from ..model.rope import RopeTable, grown


@dataclass(frozen=True)
class PackedView:
    """One batch's view: angles and queries' growth by rope, and one mask a window, None where plain causal attention is
    the same. places: int32 (B, T), of each token in its document; begins: bool (B, T), the first ones of documents
    behind a row's first. None where a row is one document."""

    layers: tuple[LayerSpec | RecurrentSpec, ...]
    angles: dict[RopeConfig, tuple[Array, Array]]
    growth: dict[RopeConfig, Array | None]
    masks: dict[int, Array | None]
    places: Array | None
    begins: Array | None

    @cached_property
    def shared(self) -> frozenset[int]:
        """Layers whose keys and values others read."""
        shares = (layer.shares for layer in self.layers if isinstance(layer, LayerSpec))
        return frozenset(layer for layer in shares if layer is not None)

    def state(self, ops: Backend) -> PackedSequences:
        """What a loss hands to the decoder's blocks. ops: the loss's."""
        return PackedSequences(ops, self)


@dataclass(frozen=True)
class PackedSequences:
    """The rows of a batch as the blocks see them within one loss, whose operations it computes with.

    kept: keys and values that later layers read, by their layer. turns: what rotations take, made when a layer first
    asks, for all that have the same rope and heads.
    """

    ops: Backend
    view: PackedView
    kept: dict[int, tuple[Array, Array]] = field(default_factory=dict[int, tuple[Array, Array]])
    turns: dict[tuple[RopeConfig, int, int], Any] = field(default_factory=dict[tuple[RopeConfig, int, int], Any])

    def advance(self, tokens: int, lengths: Sequence[int] | None = None) -> None:
        """Nothing is left to do: a batch is one step, and its positions are known."""

    def attend(
        self,
        layer: int,
        x: Array,
        heads: int,
        sink_logits: Array | None = None,
        query_norm: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Rotate and attend: (B, heads, T, D) of x (B, T, heads + 2 * Hkv, D), before rotation."""
        ops, spec = self.ops, self.view.layers[layer]
        assert isinstance(spec, LayerSpec)
        kept = spec.kv_heads if spec.shares is None else 0
        if spec.rope is not None:
            x = grown(ops, x, heads, self.view.growth[spec.rope])
            key = spec.rope, heads + kept, kept
            if key not in self.turns:
                self.turns[key] = ops.turns(*self.view.angles[spec.rope], *key[1:])
            x = ops.rotate(x, self.turns[key])
        if spec.shares is None:
            x, k, v = ops.split(x, (heads, kept, kept), 2)
            if layer in self.view.shared:
                self.kept[layer] = k, v
        else:
            k, v = self.kept[spec.shares]
        q, k, v = (part.swapaxes(1, 2) for part in (x if query_norm is None else query_norm(x), k, v))
        mask = self.view.masks[spec.span.window or q.shape[2]]
        return ops.attention(q, k, v, mask, scale=spec.scale, softcap=spec.softcap, sink_logits=sink_logits)

    def causal_conv(self, layer: int, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """Of x (B, T, C), each document by itself."""
        spec = self.view.layers[layer]
        assert isinstance(spec, RecurrentSpec)
        tail = self.ops.zeros((x.shape[0], *spec.tail), "float32")
        return self.ops.causal_conv(x, weight, tail, bias=bias, positions=self.view.places)[0]

    def gated_delta(self, layer: int, q: Array, k: Array, v: Array, decay: Array, beta: Array) -> Array:
        """(B, T, Hv, Dv), of matrices that are empty where a document begins."""
        spec = self.view.layers[layer]
        assert isinstance(spec, RecurrentSpec)
        matrix = self.ops.zeros((v.shape[0], *spec.matrix), "float32")
        return self.ops.gated_delta(q, k, v, decay, beta, matrix, fresh=self.view.begins)[0]


class Sequences:
    """Makes views of batches for one model: its rotary tables, which grow with the longest document.

    Longrope's factors are those of a conversation of the trained maximum, what a chat uses unless another is given.
    """

    def __init__(self, ops: Backend, config: ModelConfig):
        self.ops, self.max_positions = ops, config.max_positions
        self._spec = plan(config, KVFormat.parse("32"), sinks=0)  # full attention: a window of the maximum
        ropes = dict.fromkeys(layer.rope for layer in self._spec.attention.values())
        self._ropes = {rope: RopeTable(ops, rope) for rope in ropes if rope}

    def view(self, positions: np.ndarray, segments: np.ndarray) -> PackedView:
        """positions: int32 (B, T), from 0 in each document. segments: int32 (B, T), the document of each token within
        its row; -1 for padding, which stands at a row's end. DataError for rows longer than the trained maximum."""
        ops, length = self.ops, positions.shape[1]
        if length > self.max_positions:
            raise DataError(
                f"rows of {length} tokens are longer than the {self.max_positions} this model was trained on: "
                f"use `max_length` {self.max_positions} or less",
                field="max_length",
            )
        for table in self._ropes.values():
            table.reserve(int(positions.max()) + 1)
        places = ops.array(positions)
        angles = {rope: table.angles(places) for rope, table in self._ropes.items()}
        growth = {rope: table.growth(places) for rope, table in self._ropes.items()}
        # later tokens are never seen, so padding at the end needs no mask, and neither does a row of one document
        several = bool(((segments != segments[:, :1]) & (segments >= 0)).any())
        windows = dict.fromkeys(span.window or length for span in self._spec.spans)
        masks = {window: self._mask(segments, window) if several or window < length else None for window in windows}
        begins = ops.array((positions == 0) & (segments != segments[:, :1])) if several else None
        return PackedView(self._spec.layers, angles, growth, masks, places if several else None, begins)

    def _mask(self, segments: np.ndarray, window: int) -> Array:
        """float32 (B, T, T), 0 where visible and MASKED elsewhere, made on the device."""
        ops, length = self.ops, segments.shape[1]
        documents, index = ops.array(segments), ops.array(np.arange(length, dtype=np.int32))
        q, k = index[:, None], index[None]
        seen = (documents[:, :, None] == documents[:, None, :]) & ((k <= q) & (k > q - window))[None]
        return ops.where(seen, 0.0, MASKED)
