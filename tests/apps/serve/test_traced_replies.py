"""What a traced reply says beside its text: every token with its bytes and runners-up, and what the cache holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from partita.engine.request import Held
from partita_apps.serve.asked import Event, Spoken, Waiting

from .scripted import Script, ScriptedRegistry
from .test_replies import CALL, TOOLS, asked, request_of, said, told

Make = Callable[..., ScriptedRegistry]


def spoken(events: list[Event]) -> list[Spoken]:
    return [event for event in events if isinstance(event, Spoken)]


def test_every_token_is_told_with_its_runners_up(registry: Make) -> None:
    made = registry(Script("the quick brown fox"))
    events = told(made, asked(trace=3))
    tokenizer = made.models["tiny"].text.tokenizer
    ids = tokenizer.encode("the quick brown fox", bos=False)
    tokens = spoken(events)
    assert [each.token for each in tokens] == [*ids, request_of(made).stop_ids[-1]]
    assert b"".join(each.bytes for each in tokens[:-1]) == b"the quick brown fox"
    assert [(each.ends, each.control) for each in tokens] == [(False, False)] * len(ids) + [(True, True)]
    assert {(each.probability, each.seconds) for each in tokens} == {(0.5, 0.02)}
    for each in tokens:
        expected = [(max(each.token - i, 0), 0.5 / 2**i) for i in range(3)]
        assert [(token, p) for token, _, p in each.top] == expected
        assert [data for _, data, _ in each.top] == [tokenizer.token_bytes(token) for token, _ in expected]


def test_the_text_is_that_of_a_reply_which_is_not_traced(registry: Make) -> None:
    for text in ("the quick brown fox", "<think>\nbrown\n</think>fox"):
        made = registry(Script(text), form="thinking")
        events: list[Event] = [event for event in told(made, asked(trace=0)) if not isinstance(event, Spoken | Held)]
        plain = told(made, asked())
        assert [type(event) for event in events] == [type(event) for event in plain]
        assert said(events) == said(plain)
        assert said(events, "thought") == said(plain, "thought")


def test_only_what_is_asked_for_is_computed(registry: Make) -> None:
    made = registry(Script("fox"))
    events = told(made, asked())
    assert not any(isinstance(event, Spoken | Held) for event in events)
    assert (request_of(made).trace, request_of(made).alternatives) == (False, 0)
    told(made, asked(trace=0))
    assert (request_of(made).trace, request_of(made).alternatives) == (True, 1)
    told(made, asked(trace=2, logprobs=5))
    assert request_of(made).alternatives == 5
    assert {len(each.top) for each in spoken(told(made, asked(trace=2, logprobs=5)))} == {2}


def test_a_thought_is_marked(registry: Make) -> None:
    made = registry(Script("<think>\nbrown\n</think>fox"), form="thinking")
    tokens = spoken(told(made, asked(trace=1)))
    thought = b"".join(each.bytes for each in tokens if each.thought)
    assert b"<think>\nbrown\n</think>".endswith(thought)  # the marks of this form are text, certain with their end
    assert b"brown\n</think>" in thought
    assert b"".join(each.bytes for each in tokens if not each.thought and not each.ends).endswith(b"fox")


def test_the_tokens_of_a_call_come_as_they_are_chosen(registry: Make) -> None:
    made = registry(Script(CALL), form="thinking")
    events = told(made, asked(trace=1, tools=TOOLS))
    first = next(place for place, event in enumerate(events) if getattr(event, "kind", "") == "tool_call")
    before = [event for event in events[:first] if isinstance(event, Spoken)]
    assert b"".join(each.bytes for each in before).decode() == CALL


def test_a_character_that_is_cut_between_tokens_is_told_as_its_bytes(registry: Make) -> None:
    made = registry(Script("a🎼b"))
    tokens = spoken(told(made, asked(trace=1)))
    assert b"".join(each.bytes for each in tokens if not each.ends).decode() == "a🎼b"
    assert any(not _valid(each.bytes) for each in tokens)


def test_prompt_and_cache_are_told_in_chunks(registry: Make) -> None:
    made = registry(Script("the quick brown fox", reused=2, chunk=5))
    events: list[Any] = told(made, asked("the quick brown fox " * 4, trace=1))
    total = len(request_of(made).prompt)
    chunks = [event for event in events if isinstance(event, Waiting) and event.what == "prompt"]
    assert [(each.done, each.total, each.reused) for each in chunks] == [
        (min(done + 5, total), total, 2) for done in range(2, total, 5)
    ]
    held = [event for event in events if isinstance(event, Held)]
    assert [each.seen for each in held] == [total, total + len(spoken(events)) - 1]


def _valid(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
