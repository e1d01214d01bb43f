"""What keys of few bits are stored without: a point that all keys of a head lie around, its centre. Those of 4 bits,
and with a bias of k those of 8.

A vector that every key of a row loses, sinks included, moves all scores of a query by one number, so a softmax over
them gives what it gave. Keys of a head have much in common, in dims that hardly turn; without it their groups are
narrower, and so is a step of 4 bits (docs/experiments.md). The centre is made of the sinks: the mean of their keys
before rotation, of all but the first, turned by the mean rotation of positions 0 … POSITIONS - 1. A row's sinks are
complete before its ring is written, and stay, so each step makes the same centre of them: it is no state, and does not
depend on how a prompt is cut. Not here: where it is subtracted (`state`).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..arrays import Array
from ..backend import Backend
from ..model.config import RopeConfig
from ..model.rope import RopeTable
from .sinks import SinkKeys
from .spec import CacheSpec, LayerSpec, Span

MOST_BITS = 4  # of keys; 8 bits lose nothing that could be gained,
MOST_BITS_BIASED = 8  # but for a bias, which may be a hundred times as large as what keys differ by
POSITIONS = 2048
FURTHEST = 8192  # tokens of context: beyond some 6,000 positions keys have turned away from the centre
LEAST_SINKS = 2  # the first draws attention by a key unlike all others


def is_centred(layer: LayerSpec, spec: CacheSpec) -> bool:
    """Whether a layer's keys are stored less a centre in a cache. Not where a conversation may hold more than is near
    it, and not where scores that are moved change the softmax: with a soft cap, or beside learned ones without keys."""
    if spec.context is None or spec.context > FURTHEST:
        return False
    if layer.softcap is not None or layer.sink_logits:
        return False
    few = spec.kv.key_bits <= (MOST_BITS_BIASED if layer.key_bias else MOST_BITS)
    return few and layer.rope is not None and layer.span.sinks >= LEAST_SINKS


class Centres:
    """Of a cache's layers. ropes: the cache's tables."""

    def __init__(self, ops: Backend, spec: CacheSpec, ropes: Mapping[RopeConfig, RopeTable]):
        self._ops, self._spec = ops, spec
        layers = dict.fromkeys(layer for layer in spec.attention.values() if is_centred(layer, spec))
        self._angles = {layer: ropes[layer.rope].mean_angles(POSITIONS) for layer in layers if layer.rope is not None}

    def of_all(self, span: Span, keys: SinkKeys) -> dict[LayerSpec, Array]:
        """Of all centred layers of a kind: what is to be subtracted from keys and values, zero for values, of layers
        that are alike side by side: (B, layers, 2 * H, D)."""
        return {layer: self._made(layer, keys.all(layer)) for layer in self._angles if layer.span == span}

    def of(self, layer: int, keys: SinkKeys, found: Mapping[LayerSpec, Array]) -> Array | None:
        """A layer's own of what `of_all` gave, (B, 1, 2 * H, D), or made of its sinks as they are now; None where its
        keys are not centred."""
        spec = self._spec.attention[layer]
        if spec not in self._angles:
            return None
        if spec not in found:
            return self._made(spec, keys.own(layer))
        place = self._spec.layers[:layer].count(spec)
        return found[spec][:, place : place + 1]

    def shift(self, q: Array, centre: Array, scale: float) -> Array:
        """What scores of queries q (B, Hq, T, D) lose with keys that lose the centre: float32 (B, Hq, T), negative."""
        b, heads, t, d = q.shape
        keys = self._ops.cast(beside(centre)[:1], "float32")  # 1 B H 1 D
        grouped = self._ops.cast(q, "float32").reshape(1, b, keys.shape[2], -1, d)
        return (grouped @ keys.swapaxes(3, 4)).reshape(b, heads, t) * -scale

    def _made(self, layer: LayerSpec, keys: Array) -> Array:
        """Of sinks' keys before rotation, (B, heads, S + 1, D)."""
        ops, (b, heads, _, d), sinks = self._ops, keys.shape, layer.span.sinks
        mean = ops.sum(ops.cast(keys[:, :, 1:sinks], "float32"), 2) * (1 / (sinks - 1))
        turns = ops.turns(*self._angles[layer], b * heads, 0)
        centre = ops.rotate(mean.reshape(1, 1, b * heads, d), turns)
        centre = ops.hadamard(centre) if self._spec.kv.hadamard else centre
        centre = ops.cast(centre, ops.dtype).reshape(b, -1, layer.kv_heads, d)
        return ops.concat([centre, ops.zeros(centre.shape, ops.dtype)], 2)


def beside(centre: Array) -> Array:
    """A layer's centre (B, 1, 2 * H, D) as a dense ring lies: (2, B, H, 1, D)."""
    b, _, both, d = centre.shape
    return centre.reshape(b, 2, both // 2, 1, d).swapaxes(0, 1)
