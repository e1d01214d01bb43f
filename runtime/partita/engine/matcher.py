"""What holds a reply to a constraint, as the engine needs it. Not here: grammars (`constraint`), how masks are applied
(`row`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from .request import Constraint


class Matcher(Protocol):
    """Of one reply: which tokens may come next. Raises DataError where it cannot go on.

    finished: the reply ends here. warning: a line, where the constraint is given up and the reply goes on without it.
    """

    finished: bool
    warning: str | None

    def begin(self, prompt: Sequence[int]) -> None:
        """The reply to this prompt begins."""
        ...

    def mask(self) -> np.ndarray | None:
        """A bit for each token that may come next, int32 ((V + 31) // 32,), lowest bits first; None: any may. May be
        called in another thread, while nothing else is."""
        ...

    def push(self, token: int) -> None:
        """The next token of the reply is this one."""
        ...

    def forced(self) -> list[int]:
        """The tokens that must come next, as far as there is no other way; they are pushed as they come."""
        ...


Matchers = Callable[[Constraint], Matcher]
"""A matcher of a constraint. Raises DataError for one that cannot be enforced."""
