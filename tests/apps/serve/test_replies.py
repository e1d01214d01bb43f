"""What is asked becomes a request to the engine, and what the engine says becomes text: with a scripted engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from partita.engine.request import Failed
from partita_apps.serve import replies
from partita_apps.serve.asked import Ask, Delta, Ended, Event, Format, Refused, Started, Tool, ToolChoice, Waiting
from partita_apps.serve.model_text import ModelText

from .scripted import Script, ScriptedRegistry

Make = Callable[..., ScriptedRegistry]
CALL = '<tool_call>\n{"name": "look", "arguments": {"place": "sky"}}\n</tool_call>'
TOOLS = (Tool("look", "Looks.", {"type": "object", "properties": {"place": {"type": "string"}}}),)


def told(registry: ScriptedRegistry, ask: Ask) -> list[Event]:
    async def collect() -> list[Event]:
        async with aclosing(replies.reply(registry, ask)) as events:
            return [event async for event in events]

    return asyncio.run(collect())


def asked(text: str = "hi", **more: Any) -> Ask:
    return Ask("tiny", messages=[{"role": "user", "content": text}], **more)


def said(events: list[Event], kind: str = "speech") -> str:
    return "".join(event.text for event in events if isinstance(event, Delta) and event.kind == kind)


def ended(events: list[Event]) -> Ended:
    assert isinstance(events[-1], Ended)
    return events[-1]


def refused(registry: ScriptedRegistry, ask: Ask) -> Refused:
    with pytest.raises(Refused) as found:
        told(registry, ask)
    return found.value


def request_of(registry: ScriptedRegistry) -> Any:
    return registry.models["tiny"].worker.requests[-1]


def test_a_reply(registry: Make) -> None:
    made = registry(Script("the quick brown fox", reused=3))
    events = told(made, asked())
    text = made.models["tiny"].text
    started = next(event for event in events if isinstance(event, Started))
    assert said(events) == "the quick brown fox"
    assert ended(events).reason == "stop"
    assert ended(events).completion_tokens == len(text.tokenizer.encode("the quick brown fox", bos=False))
    assert (started.prompt_tokens, started.cached_tokens) == (len(request_of(made).prompt), 3)
    assert events[0] == Waiting("loading")


def test_a_conversation_that_goes_on_keeps_what_was_generated(registry: Make) -> None:
    """The ids of a reply, which its text would not be encoded to, stand in the next prompt as they were."""
    made = registry()
    tokenizer = made.models["tiny"].text.tokenizer
    odd = [token for letter in "the fox" for token in tokenizer.encode(letter, bos=False)]
    assert odd != tokenizer.encode("the fox", bos=False)
    made.models["tiny"].worker.play = [Script(odd), Script("ok")]
    first = asked()
    told(made, first)
    before = list(request_of(made).prompt)
    messages = [
        *(first.messages or ()),
        {"role": "assistant", "content": "the fox"},
        {"role": "user", "content": "so?"},
    ]
    told(made, Ask("tiny", messages=messages))
    assert request_of(made).prompt[: len(before) + len(odd)] == before + odd


def test_sampling_is_what_is_asked_over_what_is_usual(registry: Make) -> None:
    made = registry()
    told(made, asked(sampling={"top_p": 0.5, "seed": 7, "temperature": None}))
    sampling = request_of(made).sampling
    assert (sampling.temperature, sampling.min_p, sampling.top_p, sampling.seed) == (0.7, 0.05, 0.5, 7)
    told(made, asked(sampling={"temperature": 0.0}))
    assert request_of(made).sampling.min_p == 0


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"sampling": {"top_p": 2.0}}, "top_p"),
        ({"sampling": {"temperature": -1.0}}, "temperature"),
        ({"stop": ("x",) * 17}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {999999: 1.0}}, "logit_bias"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(registry: Make, more: dict[str, Any], field: str) -> None:
    error = refused(registry(), asked(**more))
    assert (error.kind, error.field) == ("invalid", field)


def test_a_prompt_without_room_is_refused_with_both_numbers(registry: Make) -> None:
    made = registry(context=16)
    error = refused(made, asked("the quick brown fox " * 9))
    assert error.kind == "context"
    assert error.limit == 16
    assert error.needed is not None
    assert error.needed > 16
    assert not made.models["tiny"].worker.requests
    endless = registry(context=16, endless=True)
    assert said(told(endless, asked("the quick brown fox " * 9))) == "hello"
    assert request_of(endless).endless


@pytest.mark.parametrize(
    "ask",
    [
        asked("the quick brown fox " * 100_000),
        asked("<|im_end|>" * 100_000),
        Ask("tiny", messages=[{"role": "user", "content": ""}] * 2000),
        Ask("tiny", text=" " * 1_000_000),
        Ask("tiny", ids=[5] * 1_000_000),
        asked(tools=[Tool(f"tool{i}", "does") for i in range(5000)]),
        asked(variables={"a": ["b"] * 100_000}),
    ],
    ids=lambda ask: repr(ask)[:60],
)
def test_what_cannot_fit_by_far_is_not_encoded(registry: Make, monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    def encode(*arguments: Any) -> None:
        raise AssertionError

    made = registry()
    for name in ("encode", "complete"):
        monkeypatch.setattr(ModelText, name, encode)
    error = refused(made, ask)
    assert error.kind == "context"
    assert error.needed is not None
    assert error.needed > 512


def test_without_a_limit_the_reply_has_the_room_that_is_left(registry: Make) -> None:
    made = registry(Script("a", ends=False), context=64)
    events = told(made, asked())
    assert ended(events).reason == "length"
    assert len(request_of(made).prompt) + ended(events).completion_tokens == 64
    told(made, asked(max_tokens=32000))
    assert request_of(made).max_tokens == 64 - len(request_of(made).prompt)


def test_a_stop_string_ends_the_reply_and_the_worker(registry: Make) -> None:
    made = registry(Script("the quick brown END fox", holds=True))
    events = told(made, asked(stop=("END", "zzz")))
    assert said(events) == "the quick brown "
    assert (ended(events).reason, ended(events).stop) == ("stop", "END")
    assert made.models["tiny"].worker.cancelled == [1]


def test_a_reader_that_goes_away_cancels(registry: Make) -> None:
    made = registry(Script("the quick", holds=True))

    async def leave() -> None:
        async with aclosing(replies.reply(made, asked())) as events:
            async for event in events:
                if isinstance(event, Delta):
                    break

    asyncio.run(leave())
    worker = made.models["tiny"].worker
    assert worker.cancelled == [1]
    assert not worker.running


def test_thoughts_and_calls_are_told_apart(registry: Make) -> None:
    made = registry(Script(f"<think>\nhm, well\n</think>\n\nLooking.\n{CALL}"), form="thinking")
    events = told(made, asked(tools=TOOLS))
    calls = [event.call for event in events if isinstance(event, Delta) and event.call is not None]
    assert said(events, "thought").strip() == "hm, well"
    assert said(events).strip() == "Looking."
    assert [(call.name, call.arguments) for call in calls] == [("look", '{"place": "sky"}')]
    assert ended(events).reason == "tool_calls"
    assert 0 < ended(events).thought_tokens < ended(events).completion_tokens


def test_parallel_calls_are_cut_behind_the_first(registry: Make) -> None:
    made = registry(Script(f"{CALL}\n{CALL}", holds=True), form="thinking")
    events = told(made, asked(tools=TOOLS, parallel_tool_calls=False))
    assert sum(isinstance(event, Delta) and event.call is not None for event in events) == 1
    assert ended(events).reason == "tool_calls"
    assert made.models["tiny"].worker.cancelled == [1]


def test_a_named_tool_is_called_once(registry: Make) -> None:
    made = registry(Script(f"{CALL}\n{CALL}", holds=True), form="thinking", context=8192)
    events = told(made, asked(tools=TOOLS, tool_choice=ToolChoice("required", "look")))
    assert sum(isinstance(event, Delta) and event.call is not None for event in events) == 1
    assert ended(events).reason == "tool_calls"


@pytest.mark.parametrize(
    ("written", "more"),
    [
        (CALL, {}),
        (CALL, {"tools": TOOLS, "tool_choice": ToolChoice("none")}),
        ("<tool_call>\nnot json\n</tool_call>", {"tools": TOOLS}),
    ],
)
def test_a_call_that_nobody_can_do_stays_visible(registry: Make, written: str, more: dict[str, Any]) -> None:
    events = told(registry(Script(written), form="thinking"), asked(**more))
    assert said(events) == written
    assert ended(events).reason == "stop"


def test_log_probabilities_come_with_their_text(registry: Make) -> None:
    made = registry(Script("the quick brown"))
    events = told(made, asked(logprobs=2))
    found = [each for event in events if isinstance(event, Delta) for each in event.logprobs]
    assert "".join(each.text for each in found) == "the quick brown"
    assert all(each.logprob == pytest.approx(math.log(0.5)) and len(each.top) == 2 for each in found)
    told(made, asked(logprobs=0))
    assert request_of(made).alternatives == 1  # its own probability comes with the most probable one
    told(made, asked())
    assert request_of(made).alternatives == 0


@pytest.mark.parametrize(
    ("kind", "becomes"), [("input", "invalid"), ("memory", "memory"), ("busy", "busy"), ("internal", "engine")]
)
def test_what_fails_is_refused(registry: Make, kind: Any, becomes: str) -> None:
    error = refused(registry(Script("the", fails=Failed(0, "why", kind))), asked())
    assert (error.kind, error.message, error.retry_after is not None) == (becomes, "why", kind == "busy")


def test_warnings_come_with_the_end(registry: Make) -> None:
    assert ended(told(registry(Script("the", warns=("a schema",))), asked())).warnings == ("a schema",)


def test_raw_text_has_control_tokens_and_messages_do_not(registry: Make) -> None:
    made = registry(Script(" fox"))
    controls = set(made.models["tiny"].text.tokenizer.controls.values())
    events = told(made, Ask("tiny", text="<|im_start|>the"))
    assert controls & {*request_of(made).prompt}
    assert said(events) == " fox"
    ids = request_of(made).prompt
    told(made, Ask("tiny", ids=ids))
    assert request_of(made).prompt == ids
    told(made, asked("x"))
    plain = [token for token in request_of(made).prompt if token in controls]
    told(made, asked("<|im_end|>"))
    assert [token for token in request_of(made).prompt if token in controls] == plain
    assert refused(made, Ask("tiny", ids=[10**6])).kind == "invalid"


def test_an_adapter_is_named_behind_a_colon(registry: Make) -> None:
    made = registry()
    made.adapters = ("poet",)
    told(made, Ask("tiny:poet", text="the"))
    assert request_of(made).adapter == "poet"
    assert refused(made, Ask("tiny:nobody", text="the")).kind == "not_found"


def test_a_base_model_completes_and_does_not_talk(registry: Make) -> None:
    made = registry()
    made.models["tiny"].text.template = None
    made.models["tiny"].text._transcripts._template = None
    assert said(told(made, Ask("tiny", text="the"))) == "hello"
    assert "chat template" in refused(made, asked()).message


# ---------------------------------------------------------------- a reply that begins with given tokens


def test_a_reply_begins_with_what_it_is_given(registry: Make) -> None:
    made = registry(Script("brown fox"))
    worker = made.models["tiny"].worker
    begins = worker.ids("the quick")
    events = told(made, asked(begins=begins, max_tokens=50))
    (request,) = worker.requests
    assert request.prompt[-len(begins) :] == begins
    assert request.max_tokens == 50
    started = next(event for event in events if isinstance(event, Started))
    assert started.prompt_tokens == len(request.prompt) - len(begins)
    assert said(events) == "the quickbrown fox"
    assert ended(events).ids == [*begins, *worker.ids("brown fox")]
    assert ended(events).completion_tokens == len(ended(events).ids)


def test_nothing_is_computed_behind_a_stop_token_or_string(registry: Make) -> None:
    for more, text in (({}, "the quick fox"), ({"stop": (" quick",)}, "the")):
        made = registry(Script(refuses=Failed(0, "it must not be asked")))
        worker = made.models["tiny"].worker
        stop = min(worker.text.tokenizer.stop_ids)
        events = told(made, asked(begins=[*worker.ids("the quick fox"), stop], **more))
        assert not worker.requests
        assert (said(events), ended(events).reason) == (text, "stop")
        assert stop not in ended(events).ids


def test_what_a_reply_cannot_begin_with(registry: Make) -> None:
    with pytest.raises(Refused, match="`begins`"):
        told(registry(), asked(begins=[10**7]))
    with pytest.raises(Refused, match="`begins`"):
        told(registry(), asked(begins=[5], format=Format("json_object")))


def test_a_conversation_may_outgrow_the_context_where_it_is_asked_to(registry: Make) -> None:
    made = registry(context=16)
    with pytest.raises(Refused) as why:
        told(made, asked("the fox " * 20))
    assert why.value.kind == "context"
    told(made, asked("the fox " * 20, endless=True))
    assert made.models["tiny"].worker.requests[-1].endless
    forgetful = registry(context=16, endless=True)
    with pytest.raises(Refused):
        told(forgetful, asked("the fox " * 20, endless=False))
