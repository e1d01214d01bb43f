"""How much larger the terms of a recurrent layer's sums are than what they add up to: of sums whose terms cancel, the
rounding errors are relative to the terms (Higham 2002, section 3.1), and a norm behind makes a small sum large.

Not here: how many roundings there are (`bounds`). What is measured is exact, in float64, and no error is looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from partita.model.config import ModelConfig
from partita_backends.numpy import NumpyBackend


class Conditioned(NumpyBackend):
    """The oracle in float64, which notes of each output of the gated delta rule how large it is, and its terms."""

    def __init__(self) -> None:
        super().__init__(dtype="float64")
        self._sizes: list[np.ndarray] = []

    def gated_delta(self, q: Any, k: Any, v: Any, decay: Any, beta: Any, state: Any, **options: Any) -> Any:
        outputs = super().gated_delta(q, k, v, decay, beta, state, **options)
        each, fresh = v.shape[2] // k.shape[2], options.get("fresh")
        keys, queries = (np.repeat(part, each, 2) for part in (k, q))
        terms = np.empty(v.shape)
        for i in range(v.shape[1]):
            kept = np.exp(decay[:, i]) if fresh is None else np.where(fresh[:, i, None], 0, np.exp(decay[:, i]))
            state = state * kept[:, :, None, None]
            change = (v[:, i] - np.einsum("bhvk,bhk->bhv", state, keys[:, i])) * beta[:, i, :, None]
            state = state + change[..., None] * keys[:, i, :, None, :]
            terms[:, i] = np.einsum("bhvk,bhk->bhv", np.abs(state), np.abs(queries[:, i]))
        self._sizes.append(np.stack([np.square(part).mean(-1).ravel() for part in (terms, outputs[0])]))
        return outputs

    def conditioning(self, config: ModelConfig) -> float:
        """In the mean square over all heads and tokens seen; 1 for a model without such layers. Outputs count with what
        the norm behind adds to their squares."""
        eps = next((layer.delta.norm_eps for layer in config.layers if layer.delta is not None), None)
        if eps is None:
            return 1.0
        terms, outputs = np.concatenate(self._sizes, 1)
        return float(np.sqrt((terms / (outputs + eps)).mean()))
