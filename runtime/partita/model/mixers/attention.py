"""Attention as a mixer: projections and norms of queries, keys and values. Not here: rotation, what is seen, and where
keys and values are kept, which is the state's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ...arrays import Array
from ...backend import Backend
from ...brief import Brief
from ..config import GateConfig
from ..layers import Linear, RMSNorm, Stack
from ..mixer import SequenceState


@dataclass(frozen=True)
class Attention(Brief):
    """Grouped-query attention, a `Mixer`. q_norm, k_norm: before rotation, over each head or over all at once.

    v_norm: of values, over each head. A layer whose qkv holds queries and keys alone has values made of its keys as
    they were before their norm; one that holds queries alone reads what another layer has kept.

    gate: of what heads give. What it is made of is the last output of qkv, or comes behind each head's query.

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
    gate: GateConfig | None = None
    v_norm: RMSNorm | None = None

    def __call__(self, ops: Backend, x: Array, state: SequenceState, layer: int) -> Array:
        b, t, _ = x.shape
        heads = self.qkv.widths[0] // self._query_rows
        stacked, gate = self._stacked(ops, x)
        if self.order is not None:
            stacked = ops.take(stacked, self.order, -1)
        stacked = stacked.reshape(b, t, -1, self.head_dim)
        out = state.attend(layer, stacked, heads, self.sink_logits, self._query_norm(ops))
        out = out.swapaxes(1, 2)
        return self.out(ops, (out if gate is None else out * gate).reshape(b, t, -1))

    @property
    def _query_rows(self) -> int:
        """Outputs of q that belong to one head."""
        return self.head_dim + (0 if self.gate is None else self.gate.query_rows(self.head_dim))

    def _stacked(self, ops: Backend, x: Array) -> tuple[Array, Array | None]:
        """Queries, keys and values side by side, the former two normed, (B, T, H * D); and what multiplies what comes
        of them, (B, T, heads, D or 1)."""
        if self.gate is None and self.q_norm is None:
            return self.qkv.joined(ops, x), None
        outputs, gate = self._gate_apart(ops, self.qkv(ops, x))
        if len(outputs) == 1:
            return (outputs[0] if self.q_norm is None else self._normed(ops, self.q_norm, outputs[0])), gate
        q, k, v = self._values(ops, outputs)
        if self.q_norm is None or self.k_norm is None:
            return ops.concat([q, k, v], -1), gate
        if self.ones is not None:
            k = self._normed(ops, replace(self.k_norm, weight=self.ones), k)
            return ops.concat([q, k, v], -1), gate
        return ops.concat([self._normed(ops, self.q_norm, q), self._normed(ops, self.k_norm, k), v], -1), gate

    def _gate_apart(self, ops: Backend, outputs: list[Array]) -> tuple[list[Array], Array | None]:
        """Outputs without what the gate is made of, and the gate, (B, T, heads, D or 1)."""
        c = self.gate
        if c is None:
            return outputs, None
        shape = *outputs[0].shape[:2], -1
        if c.own:
            *outputs, made = outputs
            made = made.reshape(*shape, c.size(self.head_dim))
        else:
            heads = outputs[0].reshape(*shape, self._query_rows)
            outputs = [heads[..., : self.head_dim].reshape(*shape), *outputs[1:]]
            made = heads[..., self.head_dim :]
        if c.activation == "sigmoid":
            return outputs, ops.sigmoid(made)
        return outputs, ops.cast(ops.softplus(ops.cast(made, "float32")), ops.dtype)

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
