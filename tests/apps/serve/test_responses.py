"""The Responses API over a real connection, by OpenAI's library and by what agents send."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from partita.engine.request import Failed
from partita_apps.serve.streams import PATIENCE

from .agents import codex
from .scripted import Script
from .served import JSON as JSON_TYPE
from .served import Served, until

Serve = Callable[..., Served]
PATH = "/v1/responses"
THOUGHT = "<think>\nthe fox\n</think>\n\n"
CALL = '<tool_call>\n{"name": "look", "arguments": {"place": "sky"}}\n</tool_call>'
LOOK = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "strict": True,
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}


def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def prompt(server: Served) -> str:
    """The last prompt as text."""
    return server.worker.text.tokenizer.decode(server.worker.requests[-1].prompt)


def created(server: Served, **body: Any) -> Any:
    with client(server) as openais:
        return openais.responses.create(**{"model": "tiny", "input": "hi", **body})


def streamed(server: Served, **body: Any) -> Any:
    """What the library makes of a stream; each event must be one it knows."""
    with client(server) as openais, openais.responses.stream(**{"model": "tiny", "input": "hi", **body}) as stream:
        for event in stream:
            assert type(event) is not BaseModel
        return stream.get_final_response()


@pytest.mark.parametrize("ask", [created, streamed])
def test_text(served: Serve, ask: Any) -> None:
    server = served(Script("the quick brown fox", reused=2))
    response = ask(server)
    assert response.output_text == "the quick brown fox"
    assert response.status == "completed"
    usage = response.usage
    assert usage.input_tokens == len(server.worker.requests[0].prompt)
    assert usage.input_tokens_details.cached_tokens == 2
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert response.temperature == server.worker.text.usual.temperature


@pytest.mark.parametrize("ask", [created, streamed])
def test_thoughts_and_calls(served: Serve, ask: Any) -> None:
    server = served(Script(f"{THOUGHT}I look.{CALL}\n{CALL}"), "thinking")
    response = ask(server, tools=[LOOK], include=["reasoning.encrypted_content"], reasoning={"effort": "low"})
    reasoning, message, first, second = response.output
    assert reasoning.content[0].text == "the fox"
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    assert message.content[0].text == "I look."
    assert [json.loads(call.arguments) for call in (first, second)] == [{"place": "sky"}] * 2
    assert first.call_id != second.call_id
    assert response.reasoning.effort == "low"


def test_parallel_calls_not_wanted(served: Serve) -> None:
    server = served(Script(f"{CALL}\n{CALL}"), "thinking")
    response = created(server, tools=[LOOK], parallel_tool_calls=False)
    assert [item.type for item in response.output] == ["function_call"]


def test_a_turn_that_comes_back_is_the_one_that_was_written(served: Serve) -> None:
    server = served([Script(f"I look.\n{CALL}"), Script("blue")], "thinking")
    asked = [{"role": "user", "content": "how is the sky?"}]
    first = created(server, input=asked, tools=[LOOK])
    output = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "blue"}
    created(server, input=[*asked, *(item.to_dict() for item in first.output), output], tools=[LOOK])
    before, said = server.worker.requests[0].prompt, server.worker.ids(f"I look.\n{CALL}")
    assert server.worker.requests[1].prompt[: len(before) + len(said)] == [*before, *said]


@pytest.mark.parametrize("stream", [False, True])
def test_cut_at_a_limit(served: Serve, stream: bool) -> None:
    body = {"model": "tiny", "input": "hi", "max_output_tokens": 7, "stream": stream}
    answer = served(Script("the", ends=False)).post(PATH, body)
    response = answer.data[-1]["response"] if stream else answer.json
    assert (response["status"], response["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
    assert response["usage"]["output_tokens"] == 7
    assert response["output"][0]["status"] == "incomplete"


def test_a_stream_ends_whole(served: Serve) -> None:
    answer = served(Script("the fox")).post(PATH, {"model": "tiny", "input": "hi", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    names = [line[7:] for line in answer.body.decode().split("\n") if line.startswith("event: ")]
    assert names == [event["type"] for event in answer.data]
    last = answer.data[-1]
    assert last["type"] == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == "the fox"
    assert last["response"]["id"] == answer.data[0]["response"]["id"]
    assert names.index("response.output_item.added") < names.index("response.output_text.delta")
    assert "response.output_text.done" in names


def test_effort_reaches_the_template(served: Serve) -> None:
    server = served(form="gemma4")
    for effort in (None, "none", "low"):
        created(server, reasoning={"effort": effort})
    usual, none, low = [request.prompt for request in server.worker.requests]
    assert usual == none
    assert len(low) < len(none)  # which has a thought already, an empty one


def test_structured(served: Serve) -> None:
    class Place(BaseModel):
        place: str

    server = served(Script('{"place":"sky"}'))
    with client(server) as openais:
        parsed = openais.responses.parse(model="tiny", input="hi", text_format=Place)
    assert parsed.output_parsed == Place(place="sky")
    assert parsed.text is not None
    assert parsed.text.format is not None
    assert parsed.text.format.type == "json_schema"


def test_logprobs(served: Serve) -> None:
    response = created(served(Script("the fox")), include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = response.output[0].content[0].logprobs
    assert "".join(one.token for one in logprobs) == "the fox"
    assert all(len(one.top_logprobs) == 2 for one in logprobs)


# ---------------------------------------------------------------- agents


def test_codex(served: Serve) -> None:
    call = '<tool_call>\n{"name": "mcp__calendar__list", "arguments": {"day": "Friday"}}\n</tool_call>'
    server = served(Script(f"{THOUGHT}{call}"), "thinking", text={"context": 4096})
    answer = server.post(PATH, codex())
    assert answer.status == 200
    ignored = answer.headers["x-partita-ignored"].split(", ")
    assert {"tools[7].custom", "tools[8].web_search", "store", "client_metadata", "prompt_cache_key"} <= set(ignored)
    done = answer.data[-1]["response"]
    reasoning, called = done["output"]
    assert (called["name"], called["namespace"]) == ("list", "mcp__calendar")
    assert done["prompt_cache_key"] == "0199-aaaa"
    shown = prompt(server)
    assert "You are a coding agent.\nThe sandbox is read-only.\n\nBe brief." in shown
    assert shown.count("system\n") == 1
    del reasoning["content"]
    output = {
        "type": "function_call_output",
        "call_id": called["call_id"],
        "output": [{"type": "input_text", "text": "-"}],
    }
    assert server.post(PATH, codex(reasoning, called, output)).status == 200
    assert "mcp__calendar__list" in prompt(server)


def test_codex_with_a_model_whose_template_has_no_tools(served: Serve) -> None:
    call = '<tool_call>\n{"name": "mcp__calendar__list", "arguments": {"day": "Friday"}}\n</tool_call>'
    server = served(Script(call), text={"context": 1 << 15})
    (called,) = server.post(PATH, codex(stream=False)).json["output"]
    assert (called["name"], called["namespace"]) == ("list", "mcp__calendar")
    shown = prompt(server)
    assert '"name": "mcp__calendar__list"' in shown
    assert "apply_patch" not in shown
    output = {"type": "function_call_output", "call_id": called["call_id"], "output": "nothing"}
    assert server.post(PATH, codex(called, output)).status == 200
    assert prompt(server).startswith(shown)


def test_the_probe_of_a_local_provider(served: Serve) -> None:
    response = created(served(Script("the fox")), input="", max_output_tokens=1)
    assert response.status == "incomplete"


def test_a_list_and_a_string_are_the_same(served: Serve) -> None:
    server = served()
    parts = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    items = [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]}, *parts]
    for body in (
        {"input": "hi", "instructions": "Be brief."},
        {"input": items},
        {"input": parts, "instructions": "Be brief."},
    ):
        created(server, **body)
    first, *others = [request.prompt for request in server.worker.requests]
    assert others == [first, first]


def test_tools_of_no_use_do_not_alter_the_prompt(served: Serve) -> None:
    server = served()
    created(server)
    created(server, tools=[], include=[])
    assert server.worker.requests[0].prompt == server.worker.requests[1].prompt


def test_an_agent_sends_nothing_unknown(served: Serve) -> None:
    server = served(form="thinking", text={"context": 4096}, strict=True)
    assert server.post(PATH, codex()).status == 200
    assert server.post(PATH, {**codex(), "unheard_of": 1}).status == 400


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
            "input[0].content[0].type",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": 3}}}, "text.format.schema"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 1000}, "top_logprobs"),
        ({"model": None}, "model"),
    ],
)
def test_what_is_refused_is_named(served: Serve, body: Mapping[str, Any], field: str) -> None:
    answer = served().post(PATH, {"model": "tiny", "input": "hi", **body})
    assert answer.status == 400
    error = answer.json["error"]
    assert error["param"] == field
    assert error["message"]


def test_hints_are_accepted_and_listed(served: Serve) -> None:
    hints = {"truncation": "auto", "service_tier": "flex", "metadata": {"a": "b"}, "user": "x", "tomorrow": 1}
    asks_for_nothing = {"background": False, "previous_response_id": None, "conversation": None}
    answer = served().post(PATH, {"model": "tiny", "input": "hi", **hints, **asks_for_nothing})
    assert answer.status == 200
    assert set(answer.headers["x-partita-ignored"].split(", ")) == set(hints)
    assert answer.json["metadata"] == {"a": "b"}


def test_an_unknown_model(served: Serve) -> None:
    with pytest.raises(openai.NotFoundError):
        created(served(), model="other")


@pytest.mark.parametrize("stream", [False, True])
def test_an_overflow_in_words_that_clients_parse(served: Serve, stream: bool) -> None:
    server = served(text={"context": 64})
    with pytest.raises(openai.BadRequestError, match="maximum context length is 64 tokens") as refused:
        created(server, input="the fox " * 100, stream=stream)
    assert refused.value.code == "context_length_exceeded"


def test_an_overflow_behind_a_slow_load_is_a_failed_response(served: Serve) -> None:
    server = served(text={"context": 64})
    server.registry.loads = PATIENCE + 0.3
    answer = server.post(PATH, {"model": "tiny", "input": "the fox " * 100, "stream": True})
    assert [event["type"] for event in answer.data] == ["response.created", "response.in_progress", "response.failed"]
    assert answer.data[-1]["response"]["error"]["code"] == "context_length_exceeded"
    assert b": keep-alive" in answer.body


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_midway(served: Serve, stream: bool) -> None:
    server = served(Script("the", fails=Failed(0, "the model's process has ended")))
    answer = server.post(PATH, {"model": "tiny", "input": "hi", "stream": stream})
    if not stream:
        assert answer.status == 503
        return
    failed = answer.data[-1]
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "the model's process has ended"}
    assert failed["response"]["output"][0]["content"][0]["text"] == "the"


def test_input_tokens(served: Serve) -> None:
    server = served(text={"context": 4096})
    body = {"instructions": "Be brief.", "tools": [LOOK]}
    with client(server) as openais:
        counted = openais.responses.input_tokens.count(model="tiny", input="hi", **body)
    created(server, **body)
    assert counted.input_tokens == len(server.worker.requests[-1].prompt)
    assert len(server.worker.requests) == 1
    assert '"look"' in prompt(server)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_reply(served: Serve, stream: bool) -> None:
    server = served(Script("the fox", holds=True))
    connection = server.connect()
    connection.request("POST", PATH, json.dumps({"model": "tiny", "input": "hi", "stream": stream}), JSON_TYPE)
    until(lambda: server.worker.running)
    connection.close()
    until(lambda: server.worker.cancelled == [1])
    assert not server.worker.running


# ---------------------------------------------------------------- any body

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT, lambda kids: st.lists(kids, max_size=3), max_leaves=4
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["input_text", "output_text", "input_image", "refusal"]), "text": TEXT | JSON}
    ),
    max_size=2,
)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(
                ["message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "web_search_call"]
            )
            | JSON,
            "role": st.sampled_from(["user", "assistant", "system", "developer", "tool"]) | JSON,
            "content": TEXT | PARTS | JSON,
            "summary": PARTS | JSON,
            "encrypted_content": JSON,
            "call_id": JSON,
            "name": JSON,
            "namespace": JSON,
            "arguments": st.sampled_from(["", "{}", '{"a": 1}', "[", "3"]) | JSON,
            "output": TEXT | PARTS | JSON,
        },
    )
    | JSON,
    max_size=4,
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["function", "namespace", "custom", "web_search"]) | JSON,
            "name": TEXT | JSON,
            "tools": JSON,
            "parameters": st.just({"type": "object"}) | JSON,
            "format": JSON,
            "description": JSON,
        },
    ),
    max_size=2,
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("tiny"), "input": TEXT | ITEMS | JSON},
    optional={
        "instructions": JSON,
        "tools": TOOLS | JSON,
        "tool_choice": st.sampled_from(["auto", "none", "required"])
        | st.fixed_dictionaries({"type": TEXT, "name": TEXT})
        | JSON,
        "text": st.fixed_dictionaries({"format": st.fixed_dictionaries({"type": TEXT, "schema": JSON}) | JSON}) | JSON,
        "reasoning": st.fixed_dictionaries({"effort": JSON}) | JSON,
        "include": JSON,
        "metadata": JSON,
        "max_output_tokens": st.integers(-1, 9) | JSON,
        "temperature": st.floats(-1, 3) | JSON,
        "top_logprobs": JSON,
        "parallel_tool_calls": JSON,
        "stream": st.booleans(),
        "background": JSON,
        "user": JSON,
    },
)


def test_any_body_is_answered_or_refused(served: Serve) -> None:
    server = served(Script(f"{THOUGHT}the fox"), "thinking")

    @settings(max_examples=150)
    @given(BODIES)
    def check(body: Any) -> None:
        answer = server.post(PATH, body)
        assert answer.status in (200, 400), answer.body
        if answer.status == 400:
            assert answer.json["error"]["message"]
        elif body.get("stream"):
            assert answer.data[-1]["type"] in ("response.completed", "response.incomplete")

    check()
