"""Which requests were being computed when a model's process ended: one that is there twice is not tried a third time.

Nobody can say which of several ended it, so all of them are suspects until they finish. Bounded: the oldest suspicion
is dropped for a new one, and each after a while, since other programs end processes too.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

import msgspec

from partita.engine.request import Request

STRIKES = 2
MOST = 256
SECONDS = 600.0
"""How long a suspicion lasts."""

Mark = bytes
"""Of a request: the same for the same request, whatever its id."""


def mark(request: Request) -> Mark:
    return blake2b(msgspec.msgpack.encode(msgspec.structs.replace(request, id=0)), digest_size=16).digest()


class Suspects:
    def __init__(self) -> None:
        self._strikes: OrderedDict[Mark, tuple[int, float]] = OrderedDict()

    def strike(self, marks: Iterable[Mark]) -> None:
        """These were being computed when the process ended."""
        for each in set(marks):
            self._strikes[each] = self._count(each) + 1, time.monotonic()
            self._strikes.move_to_end(each)
        while len(self._strikes) > MOST:
            self._strikes.popitem(last=False)

    def clear(self, mark: Mark) -> None:
        """This one has finished."""
        self._strikes.pop(mark, None)

    def refused(self, mark: Mark) -> bool:
        return self._count(mark) >= STRIKES

    def _count(self, mark: Mark) -> int:
        count, since = self._strikes.get(mark, (0, 0.0))
        return count if time.monotonic() - since < SECONDS else 0
