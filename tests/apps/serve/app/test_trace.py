"""What the inspector is told of a reply, from a scripted engine's events to what is kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from partita.engine.request import Held, Ring
from partita_apps.serve.app.trace import MAX_STATES, Trace, cache, inherited, part
from partita_apps.serve.asked import Spoken, Waiting

from ..scripted import Script, ScriptedRegistry
from ..test_replies import asked, told

Make = Callable[..., ScriptedRegistry]


def traced(made: ScriptedRegistry, trace: Trace, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    """Everything that is told of a reply."""
    found = [each for event in told(made, asked(trace=3, **more)) for each in trace.push(event)]
    return found + trace.flush()


def joined(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(bytes.fromhex(row["bytes"]) if "bytes" in row else row["text"].encode() for row in rows)


def test_what_is_told_live_is_what_is_kept(registry: Make) -> None:
    trace = Trace()
    events = traced(registry(Script("the quick brown fox", chunk=4)), trace)
    tokens = [row for kind, data in events if kind == "tokens" for row in data["tokens"]]
    places = [data["from"] + i for kind, data in events if kind == "tokens" for i in range(len(data["tokens"]))]
    assert places == list(range(len(tokens)))
    assert tokens == trace.document["tokens"]
    assert [data for kind, data in events if kind == "cache"] == trace.document["cache"]
    assert joined(tokens[:-1]) == b"the quick brown fox"
    assert [row.get("ends", False) for row in tokens] == [False] * (len(tokens) - 1) + [True]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(trace.document)) == trace.document


def test_tokens_are_told_ten_times_a_second(registry: Make) -> None:
    now = 0.0
    trace, told_at = Trace(clock=lambda: now), list[float]()
    for _ in range(100):
        now += 0.013
        told_at += [now for kind, _ in trace.push(Spoken(5, b"x", 0.5)) if kind == "tokens"]
    assert 12 <= len(told_at) <= 14
    assert all(after - before >= 0.1 for before, after in itertools.pairwise(told_at))


def test_a_character_that_is_cut_between_tokens_is_kept_byte_for_byte(registry: Make) -> None:
    trace = Trace()
    traced(registry(Script("a🎼b")), trace)
    rows = [row for row in trace.document["tokens"] if not row.get("ends")]
    assert joined(rows).decode() == "a🎼b"
    assert {row["text"] for row in rows if "bytes" in row} == {""}
    assert all("�" not in row["text"] for row in rows)


def test_the_surprise_of_a_reply_is_the_mean_of_its_tokens() -> None:
    trace = Trace([{"id": 1, "text": "a", "p": 0.01, "top": [], "ms": None, "thought": False, "given": True}])
    assert trace.surprise is None
    for p in (0.5, 0.25, 0.0):
        trace.push(Spoken(5, b"x", p))
    assert trace.surprise == pytest.approx((math.log(2) + math.log(4) - math.log(1.2e-38)) / 3)


def test_chunks_of_a_prompt_are_kept_with_their_times() -> None:
    trace = Trace()
    for done in (8, 24, 30):
        trace.push(Waiting("prompt", done, 30, reused=3, seconds=done / 1000))
    trace.push(Waiting("loading", 1, 2))
    chunks = trace.document["prefill"]
    assert [(row["tokens"], row["done"], row["reused"], row["ms"]) for row in chunks] == [
        (5, 8, 3, 8.0),
        (16, 24, 3, 24.0),
        (6, 30, 3, 30.0),
    ]


def test_a_cache_is_told_in_its_own_numbers() -> None:
    rings = (Ring(1, 4, 60, 91, 91), Ring(5, 0, 16, 47, 47))
    state = cache(Held(1, 100, 110, 4, 60, 0, 64, 5000, "k8v4", 8, 4, 32, 32, rings))
    assert (state["held"], state["forgotten"], state["reached"]) == (64, 36, 110)
    assert state["bits"] == {"keys": 8, "values": 4, "sinks": 32, "group": 32}
    assert [layer["count"] for layer in state["layers"]] == [1, 5]
    assert [layer["window"] for layer in state["layers"]] == [60, 16]


def test_few_states_of_a_cache_are_kept_the_first_and_the_last_among_them() -> None:
    trace = Trace()
    for seen in range(1000):
        trace.push(Held(1, seen, seen, 0, seen, 0, None, 1, "16", 16, 16, 16, 32, ()))
    kept = [state["seen"] for state in trace.document["cache"]]
    assert len(kept) <= MAX_STATES
    assert (kept[0], kept[-1]) == (0, 999)
    assert kept == sorted(kept)


def test_a_branch_inherits_the_tokens_that_it_begins_with(registry: Make) -> None:
    trace = Trace()
    traced(registry(Script("the quick brown fox")), trace)
    old = trace.document
    ids = [row["id"] for row in old["tokens"]]
    other = old["tokens"][3]["top"][2][0]
    rows = inherited(old, [*ids[:3], other], lambda token: b"?")
    assert [row["id"] for row in rows] == [*ids[:3], other]
    assert all(row["given"] for row in rows)
    assert [row["p"] for row in rows] == [0.5, 0.5, 0.5, 0.125]
    assert rows[3]["chosen"]
    assert rows[3]["top"] == old["tokens"][3]["top"]
    behind = inherited(old, [*ids[:-1], 7], lambda token: b"\xf0\x9f")  # in place of the end of the reply
    assert (behind[-1]["id"], behind[-1]["bytes"], behind[-1]["chosen"]) == (7, "f09f", True)
    unknown = inherited(None, [7, 8], lambda token: b"x%d" % token)
    assert [(row["text"], row["p"], row["top"]) for row in unknown] == [("x7", None, []), ("x8", None, [])]


def test_a_long_trace_is_given_in_parts(registry: Make) -> None:
    trace = Trace()
    traced(registry(Script("the quick brown fox")), trace)
    total = len(trace.document["tokens"])
    found = part([trace.document], 2, 3)
    assert (found["from"], found["total"]) == (2, total)
    assert found["tokens"] == trace.document["tokens"][2:5]
    assert found["prefill"] == trace.document["prefill"]
    assert part([], 0, 10)["tokens"] == []
