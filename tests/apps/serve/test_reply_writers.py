"""Events of a reply as the Responses and the Messages API write them: each is what the vendors' own types accept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from partita.inference.sampling import Sampling
from partita.text.reply.called import ToolCall
from partita_apps.serve.api.messages_reply import MessageWriter
from partita_apps.serve.api.responses_reply import ResponseWriter
from partita_apps.serve.api.thoughts import sealed, unsealed
from partita_apps.serve.asked import Delta, Ended, Event, Logprob, Refused, Started, Waiting

HEAD = {
    "model": "m",
    "tools": [],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}},
}
OPENAI: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ANTHROPIC: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)

START = Started(prompt_tokens=12, cached_tokens=4, sampling=Sampling(temperature=0.3))
CALL = ToolCall("weather", '{"city": "Wien"}', "call00000", "")
LOGPROB = Logprob(5, "Hi", b"Hi", -0.5, (Logprob(5, "Hi", b"Hi", -0.5), Logprob(9, "Ho", b"Ho", -1.0)))


def said(text: str, *logprobs: Logprob) -> Delta:
    return Delta("speech", text, logprobs=logprobs)


def thought(text: str) -> Delta:
    return Delta("thought", text)


def called(call: ToolCall) -> Delta:
    return Delta("tool_call", call=call)


def responses(events: Sequence[Event], **options: Any) -> tuple[list[Any], Any]:
    calls = options.pop("calls", {"weather": {"name": "weather"}})
    writer = ResponseWriter(HEAD, calls, **options)
    written = [each for event in events for each in writer.push(event)]
    assert [each["sequence_number"] for each in written] == list(range(len(written)))
    parsed = [OPENAI.validate_python(json.loads(json.dumps(each)), strict=True) for each in written]
    assert [type(each).model_fields["type"].annotation.__args__[0] for each in parsed] == [
        each["type"] for each in written
    ]
    return parsed, Response.model_validate(json.loads(json.dumps(writer.response)), strict=True)


def messages(events: Sequence[Event], **options: Any) -> tuple[list[Any], Any]:
    writer = MessageWriter("m", 100, **options)
    written = [each for event in events for each in writer.push(event) if each["type"] != "ping"]
    parsed = [ANTHROPIC.validate_python(json.loads(json.dumps(each)), strict=True) for each in written]
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for each in parsed:
        snapshot = accumulate_event(event=each, current_snapshot=snapshot, json_bufs=buffers)
    message = Message.model_validate(json.loads(json.dumps(writer.message)), strict=True)
    assert snapshot is not None
    assert snapshot.to_dict() == message.to_dict()
    return parsed, message


def kinds(events: Sequence[Any]) -> list[str]:
    return [event.type.removeprefix("response.") for event in events]


def test_responses_text() -> None:
    events, response = responses([Waiting("queue"), START, said("Hel"), said("lo"), Ended("stop", 3)])
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert response.output_text == "Hello"
    assert response.status == "completed"
    assert response.completed_at
    assert events[-1].response == response
    assert response.temperature == 0.3
    ids = {event.item_id for event in events if hasattr(event, "item_id")}
    assert ids == {response.output[0].id, events[2].item.id}
    assert len(ids) == 1
    assert {event.response.id for event in events if hasattr(event, "response")} == {response.id}
    usage = response.usage
    assert usage is not None
    assert (usage.input_tokens, usage.input_tokens_details.cached_tokens) == (12, 4)
    assert (usage.output_tokens, usage.total_tokens) == (3, 15)


def test_what_was_given_out_does_not_change() -> None:
    writer = ResponseWriter(HEAD, {})
    written = [
        (each, json.dumps(each))
        for event in [START, said("a"), said("b"), Ended("stop", 2)]
        for each in writer.push(event)
    ]
    assert all(json.dumps(each) == before for each, before in written)


def test_responses_thought_and_call() -> None:
    asked = [START, thought("hm"), called(CALL), said("so"), Ended("tool_calls", 9, thought_tokens=2)]
    events, response = responses(asked, seal=True)
    assert [item.type for item in response.output] == ["reasoning", "function_call", "message"]
    reasoning, call, message = response.output
    assert reasoning.content[0].text == "hm"
    assert unsealed(reasoning.encrypted_content) == "hm"
    assert (call.name, call.arguments, call.call_id) == ("weather", '{"city": "Wien"}', "call00000")
    assert call.status == "completed"
    assert call.namespace is None
    assert message.content[0].text == "so"
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    indexes = [event.output_index for event in events if hasattr(event, "output_index")]
    assert indexes == sorted(indexes)
    assert "reasoning_text.delta" in kinds(events)
    assert "function_call_arguments.done" in kinds(events)


def test_responses_calls_in_the_clients_own_words() -> None:
    calls = {"mcp__cal__list": {"name": "list", "namespace": "mcp__cal"}, "patch": {"name": "patch", "custom": True}}
    listed = ToolCall("mcp__cal__list", "{}", "call00001", "")
    patched = ToolCall("patch", '{"input": "a\\nb"}', "call00002", "")
    events, response = responses([START, called(listed), called(patched), Ended("tool_calls", 9)], calls=calls)
    first, second = response.output
    assert (first.name, first.namespace) == ("list", "mcp__cal")
    assert (second.type, second.name, second.input) == ("custom_tool_call", "patch", "a\nb")
    assert "custom_tool_call_input.done" in kinds(events)


@pytest.mark.parametrize("before", [[], [said("cut")], [thought("cut")]])
def test_responses_cut(before: list[Event]) -> None:
    events, response = responses([START, *before, Ended("length", 5)])
    assert kinds(events)[-1] == "incomplete"
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.completed_at is None
    assert [item.status for item in response.output] == ["incomplete"] * len(before)


@pytest.mark.parametrize("before", [[], [thought("only that")]])
def test_a_response_without_words_has_an_empty_message(before: list[Event]) -> None:
    _, response = responses([START, *before, Ended("stop", 5)])
    assert response.output[-1].type == "message"
    assert response.output_text == ""


def test_responses_logprobs() -> None:
    events, response = responses([START, said("Hi", LOGPROB), Ended("stop", 1)], logprobs=True)
    token = response.output[0].content[0].logprobs[0]
    assert (token.token, token.bytes, [top.token for top in token.top_logprobs]) == ("Hi", [72, 105], ["Hi", "Ho"])
    assert [len(event.logprobs) for event in events if hasattr(event, "logprobs")] == [1, 1]


def test_long_prompts_and_hidden_thoughts_are_not_silent() -> None:
    prompt = Waiting("prompt", 1, 2)
    events, _ = responses([Waiting("queue"), START, prompt, prompt, said("Hi"), Ended("stop", 1)], silence=0)
    assert kinds(events)[:4] == ["created", "in_progress", "in_progress", "in_progress"]
    events, _ = responses([START, prompt, Ended("stop", 1)])
    assert kinds(events).count("in_progress") == 1
    events, message = messages([START, thought("h"), thought("m"), Ended("stop", 1)], show_thoughts=False, silence=0)
    assert kinds(events).count("content_block_delta") == 3
    assert message.content[0].thinking == ""


def test_responses_failure() -> None:
    writer = ResponseWriter(HEAD, {})
    for event in (START, said("Hel")):
        writer.push(event)
    events = [OPENAI.validate_python(each, strict=True) for each in writer.fail(Refused("it died", "engine"))]
    assert kinds(events)[-2:] == ["output_item.done", "failed"]
    failed = events[-1].response
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "server_error", "it died")
    assert failed.output[0].content[0].text == "Hel"


def test_messages_text() -> None:
    events, message = messages([Waiting("loading"), START, said("Hel"), said("lo"), Ended("stop", 3)])
    assert kinds(events) == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    usage = events[0].message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (8, 4)  # together the prompt
    assert message.content[0].text == "Hello"
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 3


@pytest.mark.parametrize("shown", [True, False])
def test_messages_thought_and_calls(shown: bool) -> None:
    other = ToolCall("weather", '{"city": "Graz"}', "functions.weather:1", "")
    ended = Ended("tool_calls", 9, thought_tokens=2)
    events, message = messages(
        [START, thought("h"), thought("m"), called(CALL), called(other), ended], show_thoughts=shown
    )
    thinking, first, second = message.content
    assert thinking.thinking == ("hm" if shown else "")
    assert thinking.signature
    assert shown or unsealed(thinking.signature) == "hm"
    assert [event.index for event in events if hasattr(event, "index")] == sorted(
        event.index for event in events if hasattr(event, "index")
    )
    assert (first.name, first.input, first.id) == ("weather", {"city": "Wien"}, "call00000")
    assert second.id == "functions_weather_1"  # what the API lets stand in an id
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens_details.thinking_tokens == 2


@pytest.mark.parametrize(
    ("ended", "reason", "sequence"),
    [
        (Ended("stop", 3, stop="END"), "stop_sequence", "END"),
        (Ended("length", 100), "max_tokens", None),
        (Ended("length", 40), "model_context_window_exceeded", None),
        (Ended("stop", 3), "end_turn", None),
    ],
)
def test_messages_stop_reason(ended: Ended, reason: str, sequence: str | None) -> None:
    events, message = messages([START, said("a"), ended])
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
    assert (events[-2].delta.stop_reason, events[-2].delta.stop_sequence) == (reason, sequence)


DELTAS = st.one_of(st.text(max_size=5).map(said), st.text(max_size=5).map(thought), st.just(called(CALL)))


@given(st.lists(DELTAS, max_size=8), st.sampled_from(["stop", "length", "tool_calls"]), st.booleans())
def test_any_reply_is_one_of_theirs(deltas: list[Delta], reason: Any, flag: bool) -> None:
    ended = Ended(reason, 100)
    _, response = responses([START, *deltas, ended], seal=flag)
    _, message = messages([START, *deltas, ended], show_thoughts=flag)
    spoken = "".join(delta.text for delta in deltas if delta.kind == "speech")
    assert response.output_text == spoken
    assert "".join(block.text for block in message.content if block.type == "text") == spoken
    calls = sum(delta.call is CALL for delta in deltas)
    assert calls == sum(item.type == "function_call" for item in response.output)
    assert calls == sum(block.type == "tool_use" for block in message.content)


@given(st.text(st.characters()))
def test_sealed_thoughts_come_back(text: str) -> None:
    assert unsealed(sealed(text)) == text
    assert sealed(text).isascii()
    assert unsealed(sealed(text)[:-1] + "!") is None
    assert unsealed(text) is None
