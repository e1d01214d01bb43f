"""How far the writing of a model is: bytes of the source behind what is written, of all that will be.

Not here: who shows it. Invariants: what is left out of the result (a head beside tied embeddings, the part that sees)
is in no total; every byte counts once; the count never falls, and ends at the total.
"""

from __future__ import annotations

from collections.abc import Mapping

from partita.sources.listener import OnPart


class Moved:
    """Call it with the name of each tensor that is written. sizes: of all of them, in bytes of the source."""

    def __init__(self, sizes: Mapping[str, int], on_bytes: OnPart):
        self._sizes, self._on_bytes = sizes, on_bytes
        self._done, self._total = 0, sum(sizes.values())
        on_bytes(0, self._total)

    def __call__(self, name: str) -> None:
        self._done += self._sizes[name]
        self._on_bytes(self._done, self._total)
