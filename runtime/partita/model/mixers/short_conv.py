"""A short convolution between two gates as a mixer (arXiv 2511.23404): the last few tokens of each channel.

Not here: the convolution (`Backend.causal_conv`), and the inputs that it remembers, which are the state's.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...arrays import Array
from ...backend import Backend
from ...brief import Brief
from ..layers import Linear, Parameter, Stack
from ..mixer import SequenceState


@dataclass(frozen=True)
class ShortConv(Brief):
    """A `Mixer`: out(c * conv(b * x)), without an activation.

    inputs: whose outputs are b, c and x, (B, T, C) each. conv: weights (C, 1, kernel). bias: (C,), or None.
    """

    kernel: int
    inputs: Stack
    conv: Parameter
    bias: Parameter | None
    out: Linear

    def __call__(self, ops: Backend, x: Array, state: SequenceState, layer: int) -> Array:
        before, behind, x = self.inputs(ops, x)
        taps = self.conv.value.reshape(-1, self.kernel)
        y = state.causal_conv(layer, before * x, taps, None if self.bias is None else self.bias.value)
        return self.out(ops, behind * y)
