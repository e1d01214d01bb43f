"""The Messages API over a real connection, by Anthropic's library and by what agents send."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import anthropic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.engine.request import Failed
from partita_apps.serve.api.thoughts import unsealed
from partita_apps.serve.streams import PATIENCE

from .agents import BETAS, claude_code
from .scripted import Script
from .served import JSON as JSON_TYPE
from .served import Served, until

Serve = Callable[..., Served]
PATH = "/v1/messages"
THOUGHT = "<think>\nthe fox\n</think>\n\n"
CALL = '<tool_call>\n{"name": "look", "arguments": {"place": "sky"}}\n</tool_call>'
LOOK = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {"place": {}}}}
HI = [{"role": "user", "content": "hi"}]


def client(server: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def prompt(server: Served) -> str:
    """The last prompt as text."""
    return server.worker.text.tokenizer.decode(server.worker.requests[-1].prompt)


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "max_tokens": 400, "messages": HI, **more}


def created(server: Served, **more: Any) -> Any:
    with client(server) as anthropics:
        return anthropics.messages.create(**body(**more))


def streamed(server: Served, **more: Any) -> Any:
    """What the library makes of a stream."""
    with client(server) as anthropics, anthropics.messages.stream(**body(**more)) as stream:
        return stream.get_final_message()


def named(answer: Any) -> list[str]:
    return [line[7:] for line in answer.body.decode().split("\n") if line.startswith("event: ")]


@pytest.mark.parametrize("ask", [created, streamed])
def test_text(served: Serve, ask: Any) -> None:
    server = served(Script("the quick brown fox", reused=2))
    message = ask(server)
    assert [block.text for block in message.content] == ["the quick brown fox"]
    assert message.stop_reason == "end_turn"
    usage = message.usage
    assert usage.cache_read_input_tokens == 2
    assert usage.input_tokens + usage.cache_read_input_tokens == len(server.worker.requests[0].prompt)
    assert usage.output_tokens == len(server.worker.ids("the quick brown fox"))


@pytest.mark.parametrize("ask", [created, streamed])
def test_thoughts_and_calls(served: Serve, ask: Any) -> None:
    server = served(Script(f"{THOUGHT}I look.{CALL}\n{CALL}"), "thinking")
    message = ask(server, tools=[LOOK], thinking={"type": "enabled", "budget_tokens": 1024})
    thinking, text, first, second = message.content
    assert (thinking.thinking, bool(thinking.signature)) == ("the fox", True)
    assert text.text == "I look."
    assert [call.input for call in (first, second)] == [{"place": "sky"}] * 2
    assert first.id != second.id
    assert message.stop_reason == "tool_use"


def test_parallel_calls_not_wanted(served: Serve) -> None:
    server = served(Script(f"{CALL}\n{CALL}"), "thinking")
    message = created(server, tools=[LOOK], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in message.content] == ["tool_use"]


def test_a_turn_that_comes_back_is_the_one_that_was_written(served: Serve) -> None:
    server = served([Script(f"I look.\n{CALL}"), Script("blue")], "thinking")
    first = created(server, tools=[LOOK])
    result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": [{"type": "text", "text": "blue"}]}
    turns = [first.to_param(), {"role": "user", "content": [result]}]
    created(server, messages=[*HI, *turns], tools=[LOOK])
    before, said = server.worker.requests[0].prompt, server.worker.ids(f"I look.\n{CALL}")
    assert server.worker.requests[1].prompt[: len(before) + len(said)] == [*before, *said]


@pytest.mark.parametrize("ask", [created, streamed])
def test_stop_sequences(served: Serve, ask: Any) -> None:
    message = ask(served(Script("the quick brown fox")), stop_sequences=["brown", "dog"])
    assert message.content[0].text == "the quick "
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "brown")


@pytest.mark.parametrize("ask", [created, streamed])
@pytest.mark.parametrize(("limit", "reason"), [(7, "max_tokens"), (32000, "model_context_window_exceeded")])
def test_cut(served: Serve, ask: Any, limit: int, reason: str) -> None:
    message = ask(served(Script("the", ends=False), text={"context": 64}), max_tokens=limit, timeout=30)
    assert message.stop_reason == reason


def test_the_form_of_a_stream(served: Serve) -> None:
    answer = served(Script(f"{THOUGHT}the fox"), "thinking").post(
        PATH, body(stream=True, thinking={"type": "adaptive"})
    )
    assert named(answer) == [event["type"] for event in answer.data]
    kinds = [name for name in named(answer) if name not in ("ping", "content_block_delta")]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *block, *block, "message_delta", "message_stop"]
    assert answer.data[0]["message"]["usage"]["input_tokens"] > 0
    deltas = [event["delta"]["type"] for event in answer.data if event["type"] == "content_block_delta"]
    assert list(dict.fromkeys(deltas)) == ["thinking_delta", "signature_delta", "text_delta"]


def test_thoughts_come_where_they_are_asked_for(served: Serve) -> None:
    server = served(form="gemma4")
    for more in ({}, {"thinking": {"type": "disabled"}}, {"thinking": {"type": "adaptive"}}):
        assert server.post(PATH, body(**more)).status == 200
    without, disabled, adaptive = [request.prompt for request in server.worker.requests]
    assert without == disabled
    assert adaptive == without[: len(adaptive)]
    assert len(adaptive) < len(without)  # which has a thought already, an empty one


def test_structured(served: Serve) -> None:
    schema = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
    server = served(Script('{"place":"sky"}'))
    form = {"type": "json_schema", "schema": schema}
    for more in ({"output_config": {"format": form}}, {"output_format": form}):
        answer = server.post(PATH, body(**more))
        assert answer.json["content"][0]["text"] == '{"place":"sky"}'


# ---------------------------------------------------------------- agents


def test_claude_code(served: Serve) -> None:
    call = '<tool_call>\n{"name": "Bash", "arguments": {"command": "ls"}}\n</tool_call>'
    server = served(Script(f"{THOUGHT}{call}"), "thinking", text={"context": 4096})
    answer = server.post(
        f"{PATH}?beta=true", claude_code(), {"anthropic-beta": BETAS, "anthropic-version": "2023-06-01"}
    )
    assert answer.status == 200
    ignored = set(answer.headers["x-partita-ignored"].split(", "))
    assert ignored == {"context_management", "metadata", "tools[3].web_search_20250305"}
    deltas = [event["delta"] for event in answer.data if event["type"] == "content_block_delta"]
    assert [delta["type"] for delta in deltas] == ["signature_delta", "input_json_delta"]  # no thought is shown
    signature = deltas[0]["signature"]
    assert unsealed(signature) == "the fox"
    first, shown = server.worker.requests[-1].prompt, prompt(server)
    assert "You are a coding agent.\nBe brief." in shown
    assert "billing" not in shown
    assert "The current date is a Friday." in shown
    turns = [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "", "signature": signature},
                {"type": "tool_use", "id": "call00000", "name": "Bash", "input": {"command": "ls"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call00000", "content": "a.py"}]},
    ]
    assert server.post(f"{PATH}?beta=true", claude_code(*turns, later=True)).status == 200
    opening = server.worker.ids("<|im_start|>assistant\n")
    assert server.worker.requests[-1].prompt[: len(first)] == first  # whatever the header, a list or text
    assert first[-len(opening) :] == opening
    assert "a.py" in prompt(server)


def test_a_bearer_is_as_good_as_a_key(served: Serve) -> None:
    server = served(api_key="secret")
    assert server.post(PATH, body(), {"authorization": "Bearer secret"}).status == 200
    assert server.post(PATH, body(), {"x-api-key": "secret"}).status == 200
    refused = server.post(PATH, body(), {"x-api-key": "other"})
    assert refused.status == 401
    assert refused.json["error"]["type"] == "authentication_error"


def test_an_agent_sends_nothing_unknown(served: Serve) -> None:
    server = served(form="thinking", text={"context": 4096}, strict=True)
    assert server.post(f"{PATH}?beta=true", claude_code()).status == 200
    assert server.post(PATH, {**claude_code(), "unheard_of": 1}).status == 400


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [*HI, {"role": "assistant", "content": "The"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "odd"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"temperature": 1e9}, "temperature"),
        ({"model": None}, "model"),
    ],
)
def test_what_is_refused_is_named(served: Serve, more: Mapping[str, Any], place: str) -> None:
    answer = served().post(PATH, body(**more))
    assert answer.status == 400
    assert answer.json["type"] == "error"
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert f"`{place}" in answer.json["error"]["message"]


def test_an_unknown_model(served: Serve) -> None:
    with pytest.raises(anthropic.NotFoundError):
        created(served(), model="claude")


@pytest.mark.parametrize("stream", [False, True])
def test_an_overflow_in_words_that_clients_parse(served: Serve, stream: bool) -> None:
    server = served(text={"context": 64})
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 64 maximum"):
        created(server, messages=[{"role": "user", "content": "the fox " * 100}], stream=stream)


def test_an_overflow_behind_a_slow_load_is_an_error_event(served: Serve) -> None:
    server = served(text={"context": 64})
    server.registry.loads = PATIENCE + 0.3
    answer = server.post(PATH, body(messages=[{"role": "user", "content": "the fox " * 100}], stream=True))
    assert named(answer) == ["error"]
    assert answer.data[0]["error"]["message"].startswith("prompt is too long: ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_midway(served: Serve, stream: bool) -> None:
    server = served(Script("the", fails=Failed(0, "the model's process has ended")))
    answer = server.post(PATH, body(stream=stream))
    error = answer.data[-1] if stream else answer.json
    assert error["type"] == "error"
    assert error["error"] == {"type": "overloaded_error", "message": "the model's process has ended"}
    assert answer.status == (200 if stream else 503)


def test_count_tokens(served: Serve) -> None:
    server = served(text={"context": 4096})
    given = {"system": "Be brief.", "tools": [LOOK], "messages": HI}
    with client(server) as anthropics:
        counted = anthropics.messages.count_tokens(model="tiny", **given)
    assert not server.worker.requests
    created(server, **given)
    assert counted.input_tokens == len(server.worker.requests[-1].prompt)
    assert '"look"' in prompt(server)
    long = server.post(
        f"{PATH}/count_tokens", {"model": "tiny", "messages": [{"role": "user", "content": "fox " * 9999}]}
    )
    assert long.json["input_tokens"] > 4096  # more than the context holds is a number, too


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_reply(served: Serve, stream: bool) -> None:
    server = served(Script("the fox", holds=True))
    connection = server.connect()
    connection.request("POST", PATH, json.dumps(body(stream=stream)), JSON_TYPE)
    until(lambda: server.worker.running)
    connection.close()
    until(lambda: server.worker.cancelled == [1])
    assert not server.worker.running


# ---------------------------------------------------------------- any body

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda kids: st.lists(kids, max_size=3), max_leaves=4
)
BLOCK_TYPES = (
    *("text", "image", "document", "thinking", "redacted_thinking"),
    *("tool_use", "tool_result", "tool_reference", "search_result"),
)
BLOCKS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(BLOCK_TYPES) | JSON},
        optional={
            "text": TEXT | JSON,
            "thinking": JSON,
            "signature": JSON,
            "id": JSON,
            "name": JSON,
            "input": st.just({"a": 1}) | JSON,
            "tool_use_id": TEXT | JSON,
            "tool_name": JSON,
            "source": st.fixed_dictionaries({"type": st.sampled_from(["text", "content"]), "data": TEXT | JSON}) | JSON,
            "title": JSON,
            "content": TEXT
            | JSON
            | st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "tool_reference"])})),
            "is_error": JSON,
        },
    ),
    max_size=3,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]) | JSON, "content": TEXT | BLOCKS | JSON}
    ),
    max_size=3,
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {}, optional={"type": JSON, "name": TEXT | JSON, "description": JSON, "input_schema": st.just({}) | JSON}
    ),
    max_size=2,
)
CHOICES = st.fixed_dictionaries(
    {"type": st.sampled_from(["auto", "any", "tool", "none"]) | JSON}, optional={"name": TEXT}
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("tiny"), "max_tokens": st.integers(-1, 9) | JSON, "messages": TURNS | JSON},
    optional={
        "system": TEXT | BLOCKS | JSON,
        "tools": TOOLS | JSON,
        "tool_choice": CHOICES | JSON,
        "thinking": st.fixed_dictionaries({"type": st.sampled_from(["enabled", "adaptive"]) | JSON}) | JSON,
        "output_config": st.fixed_dictionaries({"effort": JSON}) | JSON,
        "stop_sequences": st.lists(TEXT, max_size=2) | JSON,
        "temperature": st.floats(-1, 3) | JSON,
        "top_k": st.integers(-2, 9) | JSON,
        "top_p": JSON,
        "metadata": JSON,
        "stream": st.booleans(),
    },
)


def test_any_body_is_answered_or_refused(served: Serve) -> None:
    server = served(Script(f"{THOUGHT}the fox"), "thinking")

    @settings(max_examples=150)
    @given(BODIES)
    def check(given: Any) -> None:
        answer = server.post(PATH, given)
        assert answer.status in (200, 400), answer.body
        if answer.status == 400:
            assert answer.json["error"]["message"]
        elif given.get("stream"):
            assert named(answer)[-1] == "message_stop"

    check()
