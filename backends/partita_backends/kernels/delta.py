"""The gated delta rule of a few tokens: each number of the state is read and written once a token, while it is near.

Not here: longer steps, which are products (`torch/recurrent.py`). A row of a state belongs to one number of the values
and depends on no other row.
"""

from __future__ import annotations

import numpy as np

from .compiled import kernel
from .lanes import WIDTH, fused, load, splat, store, total


@kernel
def gated_delta(q, k, v, kept, beta, state, y, after):  # pragma: no cover
    """As `Backend.gated_delta`, float32, into y and after. q, k: (B, T, Hk, Dk). v, y: (B, T, Hv, Dv). kept: exp of the
    decay, and beta: (B, T, Hv). state, after: (B, Hv, Dv, Dk)."""
    rows, tokens, heads, values = v.shape
    size, each = q.shape[3], heads // q.shape[2]
    whole = size // WIDTH * WIDTH
    for b in range(rows):
        for h in range(heads):
            for d in range(values):
                row = after[b, h, d]
                row[:] = state[b, h, d]
                for t in range(tokens):
                    key, query = k[b, t, h // each], q[b, t, h // each]
                    share, acc = kept[b, t, h], splat(np.float32(0))
                    for i in range(0, whole, WIDTH):
                        acc = fused(load(row, i), load(key, i), acc)
                    known = total(acc)
                    for i in range(whole, size):
                        known += row[i] * key[i]
                    change = (v[b, t, h, d] - share * known) * beta[b, t, h]
                    acc = splat(np.float32(0))
                    for i in range(0, whole, WIDTH):
                        new = fused(load(key, i), splat(change), load(row, i) * splat(share))
                        store(row, i, new)
                        acc = fused(new, load(query, i), acc)
                    found = total(acc)
                    for i in range(whole, size):
                        row[i] = row[i] * share + key[i] * change
                        found += row[i] * query[i]
                    y[b, t, h, d] = found
