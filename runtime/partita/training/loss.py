"""Cross-entropy of the next token without the logits of a whole batch: a chunk of rows at a time.

Written over the seam's `chunked_sum`, which differentiates each chunk as soon as it is computed. Rows that are not
trained cost no logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..arrays import Array
from ..backend import Backend

CHUNK_VALUES = 2**22  # logits of a chunk: 16 MiB in float32; a few such arrays are alive at once
FEWEST_ROWS, MOST_ROWS = 128, 1024

Logits = Callable[[Mapping[str, Array], Array], Array]
"""(trainables of the head, rows (n, E)) to float32 logits (n, V)."""


def chunk_rows(vocab_size: int) -> int:
    """Rows whose logits are computed together. Not too few: a packed head is unpacked for every chunk."""
    return min(max(CHUNK_VALUES // vocab_size, FEWEST_ROWS), MOST_ROWS)


def cross_entropy(
    ops: Backend,
    logits: Logits,
    head: dict[str, Array],
    hidden: Array,
    targets: np.ndarray,
    weights: np.ndarray,
    rows: int,
) -> Array:
    """Sum over all rows of weight * -log p(target): float32 scalar.

    hidden: (B, T, E), after the last norm. targets: int32 (B, T). weights: float32 (B, T); 0: not trained. head: those
    of its trainables that are to be differentiated. rows: of a chunk.
    """
    trained = np.flatnonzero(weights.reshape(-1)).astype(np.int32)
    flat = hidden.reshape(-1, hidden.shape[-1])
    if len(trained) < flat.shape[0]:
        flat = ops.take(flat, ops.array(trained), 0)

    def losses(head: dict[str, Array], x: Array, targets: Array, weights: Array) -> Array:
        scores = logits(head, x)
        return ops.sum(ops.cross_entropy(scores, targets) * weights, 0)

    chosen_targets = ops.array(targets.reshape(-1)[trained].astype(np.int32))
    chosen_weights = ops.array(weights.reshape(-1)[trained].astype(np.float32))
    return ops.chunked_sum(losses, rows)(head, flat, chosen_targets, chosen_weights)
