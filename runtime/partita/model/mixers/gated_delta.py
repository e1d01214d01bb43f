"""The gated delta rule as a mixer (arXiv 2412.06464): what a token writes, forgets and reads.

Not here: the rule itself (`Backend.gated_delta`), and what is remembered, which is the state's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Array
from ...backend import Backend
from ...brief import Brief
from ..config import DeltaConfig
from ..layers import Linear, Parameter, RMSNorm, Stack
from ..mixer import SequenceState

EPS = 1e-6  # of the lengths of queries and keys, within the root


@dataclass(frozen=True)
class GatedDelta(Brief):
    """A `Mixer` that keeps one matrix a value head, whatever the number of tokens.

    inputs: whose outputs are q, k, v, z, b, a, side by side or as `order` says, int32, where each comes from. conv: of
    q, k and v, weights (C, 1, K), in one or several. a_log, dt_bias: (Hv,): a token keeps exp(-exp(a_log) *
    softplus(a + dt_bias)) of what there was. norm: over each head's output. of_query, of_key: (Dk,), what makes an RMS
    norm one of length, queries divided by the root of Dk too.
    """

    config: DeltaConfig
    inputs: Stack
    conv: tuple[Parameter, ...]
    a_log: Parameter
    dt_bias: Parameter
    norm: RMSNorm
    out: Linear
    of_query: Array
    of_key: Array
    order: Array | None = None

    def __call__(self, ops: Backend, x: Array, state: SequenceState, layer: int) -> Array:
        c, (b, t, _) = self.config, x.shape
        parts = self.inputs.joined(ops, x)
        if self.order is not None:
            parts = ops.take(parts, self.order, -1)
        read, z, beta, a = ops.split(parts, (c.channels, c.value_size, c.value_heads, c.value_heads), -1)
        read = state.causal_conv(layer, read, self._taps(ops))
        q, k, v = ops.split(read * ops.sigmoid(read), (c.key_size, c.key_size, c.value_size), -1)
        q, k = (
            ops.rms_norm(part.reshape(b, t, c.key_heads, c.key_dim), weight, EPS / c.key_dim)
            for part, weight in ((q, self.of_query), (k, self.of_key))
        )
        v, z = (part.reshape(b, t, c.value_heads, c.value_dim) for part in (v, z))
        beta = ops.sigmoid(ops.cast(beta, "float32")) * c.beta_scale
        decay = ops.softplus(ops.cast(a, "float32") + self.dt_bias.value) * -ops.exp(self.a_log.value)
        y = self.norm(ops, state.gated_delta(layer, q, k, v, decay, beta))
        return self.out(ops, ops.glu(z, y, "silu").reshape(b, t, -1))

    def _taps(self, ops: Backend) -> Array:
        """float32 (C, K)."""
        taps = [part.value.reshape(-1, self.config.kernel) for part in self.conv]
        return taps[0] if len(taps) == 1 else ops.concat(taps, 0)
