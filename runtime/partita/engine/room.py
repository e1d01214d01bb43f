"""How much room rows get, and whether there is memory for another one. Plain numbers; allocates nothing.

Rows of like length share a cache (`bucket`), each with room for as many tokens as its class: a row that outgrows its
class is moved, so that buffers never grow in place and a short row is never padded to a long one. Classes lie a factor
of four apart: padding costs memory, not time, and every further bucket reads the weights again (docs/experiments.md).
"""

from __future__ import annotations

from ..cache.budget import RESERVE
from ..cache.spec import CacheSpec, cache_bytes
from ..units import memory_size

FIRST = 512  # tokens
FACTOR = 4
AHEAD = 64  # tokens; a row that is closer to the end of its class begins in the next one
BUCKET_BYTES = 256 << 20  # a bucket that is larger than this is not doubled: its copy would be felt
MAX_ROWS = 16
"""Rows that are computed at once: as far as kernels for a few rows reach."""


def full(spec: CacheSpec) -> int | None:
    """The tokens of a row whose every ring has turned: it needs no more room than these. None: there is no such end."""
    rings = [(span, spec.ring(span)) for span in spec.spans]
    return (
        None
        if any(ring is None for _, ring in rings)
        else max((span.sinks + (ring or 0) for span, ring in rings), default=0)
    )


def room(spec: CacheSpec, tokens: int) -> int:
    """The class of a row of so many tokens: how many it has room for."""
    size, most = FIRST, full(spec)
    while size < tokens and (most is None or size < most):
        size *= FACTOR
    return size if most is None else min(size, most)


def row_bytes(spec: CacheSpec, tokens: int) -> int:
    """Bytes of a row once it has so many tokens, room that it does not fill and checkpoints
    included."""
    return cache_bytes(spec, room(spec, tokens)) + spec.checkpoints * spec.state_bytes


def refusal(spec: CacheSpec, tokens: int, budget: int) -> str:
    """Why a row of so many tokens can never be, and what helps."""
    needed, usable, kept = (memory_size(size) for size in (row_bytes(spec, tokens), max(budget, 0), RESERVE))
    return (
        f"a prompt and reply of {tokens} tokens need {needed} of cache at `kv` {spec.kv}, {usable} can be used "
        f"({kept} are kept back): ask for a smaller `max_tokens`, or load the model with a smaller `context` or fewer "
        "bits for `kv`"
    )
