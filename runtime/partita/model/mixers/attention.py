"""Attention as a mixer: projections and norms of queries, keys and values. Not here: rotation, what is seen, and where
keys and values are kept, which is the state's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ...arrays import Array
from ...backend import Backend
from ...brief import Brief
from ..layers import Linear, RMSNorm, Stack
from ..mixer import SequenceState


@dataclass(frozen=True)
class Attention(Brief):
    """Grouped-query attention, a `Mixer`. q_norm, k_norm: before rotation, over each head or over all at once.

    v_norm: of values, over each head. A layer whose qkv holds queries and keys alone has values made of its keys as
    they were before their norm; one that holds queries alone reads what another layer has kept.

    gated: a head's outputs of q are its query, and what the sigmoid of multiplies what the head gives.

    sink_logits: float32 (heads,), learned scores without values, or None. order: int32, where each output of qkv comes
    from, for models whose rotation pairs neighbours. ones: (D,), where the norms come after rotation. Since a rotation
    keeps a head's length, and scores are products, keys are then normed before it, without their weights, and queries
    after it, with the weights of both.
    """

    qkv: Stack
    out: Linear
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    head_dim: int
    full_norms: bool = False
    sink_logits: Array | None = None
    order: Array | None = None
    ones: Array | None = None
    gated: bool = False
    v_norm: RMSNorm | None = None

    def __call__(self, ops: Backend, x: Array, state: SequenceState, layer: int) -> Array:
        b, t, _ = x.shape
        heads = self.qkv.widths[0] // self.head_dim // (2 if self.gated else 1)
        stacked, gate = self._stacked(ops, x)
        if self.order is not None:
            stacked = ops.take(stacked, self.order, -1)
        stacked = stacked.reshape(b, t, -1, self.head_dim)
        out = state.attend(layer, stacked, heads, self.sink_logits, self._query_norm(ops))
        out = out.swapaxes(1, 2).reshape(b, t, -1)
        return self.out(ops, out if gate is None else out * ops.sigmoid(gate))

    def _stacked(self, ops: Backend, x: Array) -> tuple[Array, Array | None]:
        """Queries, keys and values side by side, the former two normed, (B, T, H * D); and the gate of what comes of
        them, (B, T, heads * D)."""
        if len(self.qkv.widths) == 1:
            q = self.qkv.joined(ops, x)
            return (q if self.q_norm is None else self._normed(ops, self.q_norm, q)), None
        if not self.gated and (self.q_norm is None or self.k_norm is None):
            return self.qkv.joined(ops, x), None
        (q, k, v), gate = self._values(ops, self.qkv(ops, x)), None
        if self.gated:
            both = q.reshape(*q.shape[:2], -1, 2, self.head_dim)
            q, gate = (both[:, :, :, i].reshape(*q.shape[:2], -1) for i in range(2))
        if self.q_norm is None or self.k_norm is None:
            return ops.concat([q, k, v], -1), gate
        if self.ones is not None:
            k = self._normed(ops, replace(self.k_norm, weight=self.ones), k)
            return ops.concat([q, k, v], -1), gate
        return ops.concat([self._normed(ops, self.q_norm, q), self._normed(ops, self.k_norm, k), v], -1), gate

    def _values(self, ops: Backend, outputs: list[Array]) -> list[Array]:
        """Queries, keys and values, the latter normed."""
        q, k, v = outputs if len(outputs) == 3 else (*outputs, outputs[1])
        return [q, k, v if self.v_norm is None else self._normed(ops, self.v_norm, v)]

    def _query_norm(self, ops: Backend) -> Callable[[Array], Array] | None:
        """Of norms that come after rotation: both, on the queries."""
        if self.ones is None or self.q_norm is None or self.k_norm is None:
            return None
        both = replace(self.q_norm, weight=self.q_norm.weight * self.k_norm.weight)
        return lambda q: both(ops, q)

    def _normed(self, ops: Backend, norm: RMSNorm, y: Array) -> Array:
        """Over each head, or over all at once."""
        return (
            norm(ops, y) if self.full_norms else norm(ops, y.reshape(*y.shape[:2], -1, self.head_dim)).reshape(y.shape)
        )
