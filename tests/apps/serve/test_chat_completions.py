"""Chat Completions over a real connection: documents, chunks, fields, and what other servers got wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from partita.text.chat_template import ChatTemplate

from .scripted import Script
from .served import Answer, Served, until

Serve = Callable[..., Served]
Client = Callable[[Served], openai.OpenAI]
PATH = "/v1/chat/completions"
CALL = '<tool_call>\n{"name": "look", "arguments": {"place": "sky"}}\n</tool_call>'
LOOK = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}


def body(text: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}


def prompt(server: Served) -> list[int]:
    return server.worker.requests[-1].prompt


def test_whole(served: Serve, client: Client) -> None:
    server = served(Script("the quick brown fox", reused=2))
    found = client(server).chat.completions.create(**body())
    assert found.choices[0].message.content == "the quick brown fox"
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(prompt(server))
    assert found.usage.prompt_tokens_details is not None
    assert found.usage.prompt_tokens_details.cached_tokens == 2
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.created > 1_700_000_000


def test_streamed(served: Serve, client: Client) -> None:
    server = served(Script("the quick brown fox"))
    chunks = list(client(server).chat.completions.create(**body(), stream=True, stream_options={"include_usage": True}))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "the quick brown fox"
    assert [delta.role for delta in deltas if delta.role] == ["assistant"]
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == len(prompt(server))
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_form_of_a_stream(served: Serve) -> None:
    answer = served(Script("the fox")).post(PATH, body(stream=True))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, *others, last, done = answer.data
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all("role" not in chunk["choices"][0]["delta"] and "usage" not in chunk for chunk in others)
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in others)
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert done == "[DONE]"
    assert all(chunk["created"] and chunk["object"] == "chat.completion.chunk" for chunk in (first, *others, last))


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_fills_the_context_or_its_limit(served: Serve, stream: bool) -> None:
    server = served(Script("the", ends=False), text={"context": 64})
    assert reason(server.post(PATH, body(stream=stream))) == "length"
    assert len(prompt(server)) + server.worker.requests[-1].max_tokens == 64
    for name in ("max_tokens", "max_completion_tokens"):
        assert reason(server.post(PATH, body(stream=stream, **{name: 3}))) == "length"
        assert server.worker.requests[-1].max_tokens == 3


def reason(answer: Answer) -> str:
    documents = [each for each in answer.data if each != "[DONE]"] or [answer.json]
    (found,) = [each["choices"][0]["finish_reason"] for each in documents if each["choices"][0]["finish_reason"]]
    return found


# ---------------------------------------------------------------- tools and thoughts


def test_calls_streamed_and_whole_are_the_same(served: Serve) -> None:
    """In two deltas each: who it is, and then its arguments alone."""
    server = served(Script(f"<think>\nwhere?\n</think>\n\nLooking.\n{CALL}\n{CALL}"), "thinking")
    message = server.post(PATH, body(tools=[LOOK])).json["choices"][0]["message"]
    deltas = [chunk["choices"][0]["delta"] for chunk in server.post(PATH, body(tools=[LOOK], stream=True)).data[:-1]]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert all(len(delta.get("tool_calls", (0,))) == 1 for delta in deltas)
    for i, whole in enumerate(message["tool_calls"]):
        first, second = (call for call in calls if call["index"] == i)
        assert first == {
            "index": i,
            "id": whole["id"],
            "type": "function",
            "function": {"name": "look", "arguments": ""},
        }
        assert second == {"index": i, "function": {"arguments": whole["function"]["arguments"]}}
        assert json.loads(whole["function"]["arguments"]) == {"place": "sky"}
    assert len(message["tool_calls"]) == 2
    assert message["reasoning_content"] == "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert message["content"] == "".join(delta.get("content", "") for delta in deltas)
    assert "where?" in message["reasoning_content"]
    assert "where?" not in message["content"]
    assert {call["id"] for call in message["tool_calls"]} == {f"call{i:05}" for i in range(2)}


def test_only_calls_have_no_content(served: Serve) -> None:
    choice = served(Script(CALL), "thinking").post(PATH, body(tools=[LOOK])).json["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"


def test_calls_one_at_a_time(served: Serve) -> None:
    server = served(Script(f"{CALL}\n{CALL}", holds=True), "thinking")
    message = server.post(PATH, body(tools=[LOOK], parallel_tool_calls=False)).json["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1


def test_a_call_that_is_no_json_does_not_end_the_request(served: Serve) -> None:
    server = served(Script("<tool_call>\nnot json\n</tool_call>"), "thinking")
    choice = server.post(PATH, body(tools=[LOOK])).json["choices"][0]
    assert "not json" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"


def test_no_tools_are_no_tools(served: Serve) -> None:
    server = served()
    server.post(PATH, body())
    before = prompt(server)
    for more in ({"tools": []}, {"tools": None}, {"tools": [], "tool_choice": "auto"}, {"tool_choice": "none"}):
        assert server.post(PATH, body(**more)).status == 200
        assert prompt(server) == before


def test_foreign_tools_are_left_out_and_listed(served: Serve) -> None:
    answer = served().post(PATH, body(tools=[LOOK, {"type": "web_search"}, {"type": "custom", "custom": {}}]))
    assert answer.headers["x-partita-ignored"] == "tools[1], tools[2]"


@pytest.mark.parametrize(
    "choice",
    [
        "sometimes",
        {"type": "function", "function": {"name": "nothing"}},
        {"type": "function"},
        {"type": "elsewhere"},
        17,
        ["auto"],
    ],
)
def test_a_choice_of_tools_that_cannot_be(served: Serve, choice: Any) -> None:
    error = served().post(PATH, body(tools=[LOOK], tool_choice=choice)).json["error"]
    assert error["param"].startswith("tool_choice")


def test_a_call_without_tools_cannot_be_required(served: Serve) -> None:
    assert served().post(PATH, body(tool_choice="required")).json["error"]["param"] == "tool_choice"


def test_a_conversation_with_tools_comes_back(served: Serve) -> None:
    """Arguments as text or as an object, results as text or parts, thoughts under both names: the same ids."""
    server = served(form="thinking")

    def turns(arguments: Any, result: Any, thought: str) -> list[dict[str, Any]]:
        call = {"id": "call00000", "type": "function", "function": {"name": "look", "arguments": arguments}}
        return [
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": None, "tool_calls": [call], thought: "well"},
            {"role": "tool", "tool_call_id": "call00000", "content": result},
        ]

    found = []
    for each in (
        turns('{"place": "sky"}', "blue", "reasoning_content"),
        turns({"place": "sky"}, [{"type": "text", "text": "blue"}], "reasoning"),
    ):
        assert server.post(PATH, {"model": "tiny", "messages": each, "tools": [LOOK]}).status == 200
        found.append(prompt(server))
    assert found[0] == found[1]
    assert "sky" in server.registry.models["tiny"].text.tokenizer.decode(found[0])


def test_a_tool_without_a_type_is_a_function(served: Serve) -> None:
    server = served(Script(CALL), "thinking")
    for tool in ({"function": LOOK["function"]}, {**LOOK["function"]}, {**LOOK["function"], "type": "function"}):
        choice = server.post(PATH, body(tools=[tool])).json["choices"][0]
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "look"


def test_the_next_turn_begins_with_what_the_model_has_read(served: Serve) -> None:
    """The call as it was generated, its result behind it: nothing of the first turn is read again."""
    said = f"Looking.\n{CALL}"
    server = served(Script(said), "thinking")
    turns = [{"role": "user", "content": "look"}]
    for i in range(3):
        message = server.post(PATH, {"messages": turns, "tools": [LOOK]}).json["choices"][0]["message"]
        turns += [message, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": f"blue {i}"}]
    written = server.worker.ids(said)
    first, second, third = (request.prompt for request in server.worker.requests)
    assert second[: len(first) + len(written)] == first + written
    assert third[: len(second) + len(written)] == second + written


def test_a_template_that_fails_is_a_line(served: Serve) -> None:
    server = served()
    text = server.registry.models["tiny"].text
    text._transcripts._template = ChatTemplate("{{ messages[0].content.frobnicate() }}")
    answer = server.post(PATH, body())
    assert (answer.status, answer.json["error"]["param"]) == (400, "messages")
    assert "frobnicate" in answer.json["error"]["message"]


def test_speakers_that_must_alternate(served: Serve) -> None:
    """Two messages of a user in a row are one for a template that refuses them."""
    server = served()
    text = server.registry.models["tiny"].text
    source = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}"
        "{% endif %}{{ m.content }};{% endfor %}"
    )
    text._transcripts._template = ChatTemplate(source)
    turns = [{"role": "user", "content": content} for content in ("a", "b")]
    assert server.post(PATH, {"messages": turns}).status == 200
    assert text.tokenizer.decode(prompt(server)) == "a\n\nb;"
    turns = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert server.post(PATH, {"messages": turns}).status == 400


# ---------------------------------------------------------------- messages


def test_text_and_a_list_give_the_same_ids(served: Serve) -> None:
    server = served()
    for role in ("user", "system", "developer", "assistant"):
        found = []
        for content in ("the fox", [{"type": "text", "text": "the fox"}]):
            turns = [{"role": role, "content": content}, {"role": "user", "content": "so?"}]
            assert server.post(PATH, {"model": "tiny", "messages": turns}).status == 200
            found.append(prompt(server))
        assert found[0] == found[1]


def test_leading_instructions_are_one_message(served: Serve) -> None:
    server = served()
    system = [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]
    server.post(PATH, {"messages": [*system, {"role": "user", "content": "hi"}]})
    several = prompt(server)
    server.post(PATH, {"messages": [{"role": "system", "content": "a\n\nb"}, {"role": "user", "content": "hi"}]})
    assert prompt(server) == several


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_what_is_no_text_is_refused_by_name(served: Serve, kind: str) -> None:
    answer = served().post(PATH, body([{"type": "text", "text": "see"}, {"type": kind, kind: {"url": "http://x"}}]))
    assert answer.status == 400
    assert kind in answer.json["error"]["message"]
    assert answer.json["error"]["param"].startswith("messages[0].content[1]")


@pytest.mark.parametrize(
    "messages",
    [[], "hi", [1], [{"role": "nobody", "content": "x"}], [{"content": "x"}], [{"role": "user", "content": 3}], None],
)
def test_messages_that_cannot_be(served: Serve, messages: Any) -> None:
    answer = served().post(PATH, {"model": "tiny", "messages": messages})
    assert answer.status == 400
    assert answer.json["error"]["param"].startswith("messages")


# ---------------------------------------------------------------- life of a request


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_is_noticed(served: Serve, stream: bool) -> None:
    server = served(Script("the fox", holds=True))
    connection = server.connect()
    connection.request("POST", PATH, json.dumps(body(stream=stream)), {"Content-Type": "application/json"})
    until(lambda: server.worker.running)
    if stream:
        connection.getresponse().read(10)
    connection.close()
    until(lambda: server.worker.cancelled == [1] and not server.worker.running, 2)
    status = 200 if stream else 499
    until(lambda: f'route="/v1/chat/completions",status="{status}"}} 1.0'.encode() in server.get("/metrics").body, 2)


def test_a_client_that_waits_is_not_taken_for_gone(served: Serve) -> None:
    """One sign of life after the other while nothing is said; then the reply."""
    server = served(Script("the fox", pause=0.3), silence=0.1)
    answer = server.post(PATH, body(stream=True))
    assert b": keep-alive" in answer.body
    assert answer.data[-1] == "[DONE]"


def test_a_stream_begins_while_the_model_loads(served: Serve) -> None:
    server = served(silence=0.2)
    server.registry.loads = 3.0
    connection = server.connect()
    connection.request("POST", PATH, json.dumps(body(stream=True)), {"Content-Type": "application/json"})
    found = connection.getresponse()
    assert found.status == 200
    assert found.readline() == b": keep-alive\n"
    assert b"[DONE]" in found.read()
    connection.close()
