"""Queries, keys and values (B, H, T, D) as a cache and its backend take them."""

from __future__ import annotations

from typing import Any

import numpy as np

from partita.backend import Backend, Sinks
from partita.cache.state import Cache


def attend(
    cache: Cache, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, sink_logits: Any = None
) -> np.ndarray:
    """What `Cache.attend` gives, (B, Hq, T, D)."""
    x = np.concatenate([part.swapaxes(1, 2) for part in (q, k, v)], 2)
    return cache.ops.to_numpy(cache.attend(layer, cache.ops.array(x), q.shape[1], sink_logits))


def sinks(ops: Backend, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray, other: np.ndarray) -> Sinks[Any]:
    """Sinks with their mask, and the other slots' mask."""
    parts = q, np.stack([k, v]), mask, np.concatenate([mask, other], 2)
    return Sinks(*map(ops.array, parts))
