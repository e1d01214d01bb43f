"""What the inspector is told of one reply: its tokens, its cache and how its prompt was read; live, and kept for later.

Not here: how a run sends it and where it is kept. Invariants: the tokens of a reply stand at their places in
`Message.ids`, those that it was begun with first, and the one that ended it behind them; probabilities are the model's
own, before any sampling rule; what was not measured is None and never a guess.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from partita.engine.request import Held

from ..asked import Event, Spoken, Waiting

VERSION = 1
RUNNERS_UP = 8
"""As many are told with each token."""
PERIOD = 0.1  # seconds between two reports of tokens
MAX_STATES = 64  # of a cache, that are kept for later
_LEAST = 1.2e-38  # float32's smallest: what is less is 0 there, and its logarithm nothing that can be summed
Row = dict[str, Any]
Told = tuple[str, Row]


class Trace:
    """begun: tokens that the reply was begun with (`inherited`). clock: seconds."""

    def __init__(self, begun: Sequence[Row] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens: list[Row] = list(begun)
        self._states: list[Row] = []
        self._chunks: list[Row] = []
        self._told, self._clock, self._next = 0, clock, -math.inf

    def push(self, event: Event) -> list[Told]:
        """What there is to tell, as kinds and data: tokens at most ten times a second, a cache whenever it is known."""
        if isinstance(event, Spoken):
            self._tokens.append(token(event))
            return self._due()
        if isinstance(event, Held):
            state = cache(event)
            self._states.append(state)
            if len(self._states) > MAX_STATES:
                del self._states[1:-1:2]
            return [*self._due(), ("cache", state)]
        if isinstance(event, Waiting) and event.what == "prompt" and event.done:
            self._chunks.append(self._chunk(event))
        return self._due()

    def flush(self) -> list[Told]:
        """The tokens that have not been told."""
        start, self._told = self._told, len(self._tokens)
        return [("tokens", {"from": start, "tokens": self._tokens[start:]})] if self._told > start else []

    @property
    def surprise(self) -> float | None:
        """The mean of -log p of the tokens that the model chose, in nats; None before there is one. The perplexity is
        its exponential."""
        measured = [row["p"] for row in self._tokens if row["p"] is not None and not row.get("given")]
        if not measured:
            return None
        return sum(-math.log(max(p, _LEAST)) for p in measured) / len(measured)

    @property
    def document(self) -> Row:
        """All of it, to be kept and shown again."""
        return {"version": VERSION, "tokens": self._tokens, "cache": self._states, "prefill": self._chunks}

    def _due(self) -> list[Told]:
        now = self._clock()
        if now < self._next or self._told == len(self._tokens):
            return []
        self._next = now + PERIOD
        return self.flush()

    def _chunk(self, event: Waiting) -> Row:
        before = self._chunks[-1]["done"] if self._chunks else event.reused
        milliseconds = round(event.seconds * 1000, 2)
        return {
            "done": event.done,
            "tokens": event.done - before,
            "total": event.total,
            "reused": event.reused,
            "ms": milliseconds,
        }


def token(event: Spoken) -> Row:
    """A token as it is told. Bytes that are no UTF-8 alone, part of a character or none, are told in hexadecimal."""
    text, data = _text(event.bytes)
    row: Row = {
        "id": event.token,
        "text": text,
        "p": _rounded(event.probability),
        "top": [[id, *_runner_up(data, p)] for id, data, p in event.top],
        "ms": None if event.seconds is None else round(event.seconds * 1000, 2),
        "thought": event.thought,
    }
    marks = {"bytes": data, "control": event.control, "ends": event.ends}
    return row | {name: value for name, value in marks.items() if value}


def cache(event: Held) -> Row:
    """What a cache holds, as it is told."""
    return {
        "seen": event.seen,
        "reached": event.reached,
        "held": event.sinks + event.window,
        "forgotten": event.seen - event.sinks - event.window,
        "sinks": event.sinks,
        "window": event.window,
        "free": event.free,
        "context": event.context,
        "bytes": event.bytes,
        "kv": event.kv,
        "bits": {"keys": event.key_bits, "values": event.value_bits, "sinks": event.sink_bits, "group": event.group},
        "layers": [
            {
                "count": ring.layers,
                "sinks": ring.sinks,
                "window": ring.window,
                "turns": ring.turns,
                "slots": ring.slots,
            }
            for ring in event.rings
        ],
    }


def inherited(
    document: Mapping[str, Any] | None,
    begins: Sequence[int],
    text: Callable[[int], bytes],
    stop_ids: frozenset[int] = frozenset(),
) -> list[Row]:
    """Rows of the tokens that a reply begins with: as they stand in the trace of the reply that they are from, where it
    has one; the last one may be another than that had there, one of its runners-up.

    text: a token's bytes, for those of which nothing is known. stop_ids: tokens that end a reply; nothing follows one.
    """
    before = [] if document is None else [row for row in document["tokens"] if not row.get("ends")]
    found: list[Row] = []
    for place, id in enumerate(begins):
        old = before[place] if place < len(before) else None
        if old is None and document is not None and place < len(document["tokens"]):
            old = document["tokens"][place]  # in place of the token that ended it
        if old is not None and old["id"] == id:
            found.append({**old, "given": True})
        else:
            found.append(_chosen(old, id, text(id)))
        if id in stop_ids:
            found[-1] |= {"control": True, "ends": True}
            break
    return found


def _chosen(old: Mapping[str, Any] | None, id: int, data: bytes) -> Row:
    """A token that a person chose in place of another one."""
    shown, hexadecimal = _text(data)
    top = [] if old is None else old["top"]
    p = next((entry[2] for entry in top if entry[0] == id), None)
    thought = bool(old and old["thought"])
    row: Row = {"id": id, "text": shown, "p": p, "top": top, "ms": None, "thought": thought, "given": True}
    row |= {"chosen": True} if old is not None else {}
    return row | ({"bytes": hexadecimal} if hexadecimal else {})


def part(rows: Iterable[Mapping[str, Any]], start: int, count: int) -> Row:
    """Of what was kept of a reply: everything but tokens, and of those `count` from one on, with how many there are."""
    document = next(iter(rows), None) or {"version": VERSION, "tokens": [], "cache": [], "prefill": []}
    tokens = document["tokens"]
    return {**document, "from": start, "total": len(tokens), "tokens": tokens[start : start + count]}


def _runner_up(data: bytes, p: float) -> list[Any]:
    text, hexadecimal = _text(data)
    return [text, _rounded(p), hexadecimal] if hexadecimal else [text, _rounded(p)]


def _text(data: bytes) -> tuple[str, str]:
    """Text, and in its place bytes in hexadecimal where they are none."""
    try:
        return data.decode(), ""
    except UnicodeDecodeError:
        return "", data.hex()


def _rounded(p: float) -> float:
    return float(f"{p:.5g}")
