"""Replies drawn at random under a constraint, for tests: every token by chance among those that the mask allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from partita.engine.constraint import Matcher
from partita.engine.grammars import Mask


def allowed(mask: Mask | None) -> list[int]:
    """The tokens of a mask."""
    assert mask is not None
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def drawn(
    matcher: Matcher,
    rng: np.random.Generator,
    *,
    prompt: Sequence[int] = (),
    free: Sequence[int] = (),
    ends: Sequence[int] = (),
    most: int = 2000,
) -> list[int]:
    """A reply's tokens. free: what is said where all tokens are allowed, in order, and a stop id behind that.

    ends: tokens that are taken half of the time where they are allowed, so that strings and lists come to an end.
    """
    matcher.begin(prompt)
    said, free = list[int](), list(free)
    while not matcher.finished and len(said) < most:
        mask = matcher.mask()
        forced = matcher.forced()
        if forced:
            assert mask is None or forced[0] in allowed(mask)
        if free and (mask is None or free[0] in allowed(mask)):
            token = free.pop(0)
        elif mask is None:
            return said
        else:
            choice = allowed(mask)
            nearer = [token for token in choice if token in ends]
            token = int(rng.choice(nearer if nearer and rng.random() < 0.5 else choice))
        said.append(token)
        matcher.push(token)
    return said
