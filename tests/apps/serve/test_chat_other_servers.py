"""`partita chat --server` where a server of another make answers, or something else; and its addresses."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest

from partita.errors import DataError, SourceError
from partita_apps.conversation.client import Address
from partita_apps.conversation.conversation import About

from .conversing import conversation, reply


class Stub:
    """Answers each request with bytes that a test wrote down, and closes. heads: of the requests; bodies: theirs."""

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = list(answers)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.heads: list[str] = []
        self.bodies: list[Any] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                asking, _ = self._socket.accept()
            except OSError:
                return
            with asking, asking.makefile("rb") as lines:
                head = b"".join(iter(lines.readline, b"\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                self.heads.append(head)
                if length is not None:
                    self.bodies.append(json.loads(lines.read(int(length[1]))))
                asking.sendall(answer)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def stub(*answers: bytes) -> Iterator[Stub]:
    with closing(Stub(answers)) as made:
        yield made


def answer(body: bytes, kind: str = "application/json", status: str = "200 OK", **headers: str) -> bytes:
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n{more}\r\n".encode() + body


def stream(*chunks: Any, done: bool = True) -> bytes:
    data = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"] * done
    return answer("".join(data).encode(), "text/event-stream")


def chunk(delta: Any, reason: str | None = None, **more: Any) -> Any:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, **more}]}


MODELS = answer(json.dumps({"object": "list", "data": [{"id": "llama3:8b", "object": "model"}]}).encode())


def test_a_server_of_another_make() -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"at":'}}
    more = {"index": 0, "function": {"arguments": ' "fox"}'}}
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning": "hm"}),
        chunk({"content": "The"}),
        chunk({"content": " fox"}),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [more]}),
        chunk({}, "tool_calls"),
    ]
    with stub(MODELS, stream(*chunks), stream(chunk({"content": "."}, "length"), done=False)) as server:
        talk = conversation(f"{server.url}/v1/", top_k=5)
        assert talk.about == About("llama3:8b", server=server.url)
        found = reply(talk, "hi")
        assert (found.thought, found.text, found.count) == ("hm", "The fox", 5)
        assert [(call.name, json.loads(call.arguments)) for call in found.calls] == [("look", {"at": "fox"})]
        document = found.document(None, False)
        assert {document[name] for name in ("backend", "context", "prompt_tokens", "reused_tokens", "tokens")} == {None}
        assert "context" not in found.line()
        assert reply(talk, "and?").finish_reason == "length"
    first, second = server.bodies
    assert (first["model"], first["top_k"], first["stream"]) == ("llama3:8b", 5, True)
    assert not {"temperature", "seed", "logprobs", "tools", "stop"} & set(first)
    assert second["messages"][1]["reasoning_content"] == "hm"
    assert '"look"' in second["messages"][1]["content"]  # nobody here gives a result of it
    assert "tool_calls" not in second["messages"][1]


def test_tokens_do_not_act_on_a_terminal() -> None:
    tokens: list[dict[str, Any]] = [
        {"token": "a\x1b[2J b", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "\u202e", "logprob": -2}]},
        {"token": "\ufffd", "id": 7, "logprob": 1e-9, "bytes": [226]},
        {"token": "x", "logprob": None, "bytes": [-1]},
    ]
    row = chunk({"content": "x"}, "stop", logprobs={"content": tokens})
    with stub(MODELS, stream(row)) as server:
        found = reply(conversation(server.url), "hi", alternatives=3)
    assert [row["text"] for row in found.trace] == [r"a\x1b[2J·b", "<0xE2>", "x"]
    assert found.trace[0]["alternatives"][0]["text"] == r"\u202e"
    assert [row["id"] for row in found.trace][1] == 7
    assert [row["probability"] for row in found.trace] == [pytest.approx(0.6065, abs=1e-3), 1.0, 0.0]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (stream(chunk({"content": "The"}), done=False), "connection was lost"),
        (stream(chunk({"content": "The"}), {"error": {"message": "out of\nmemory"}}), "out of memory"),
        (stream(chunk({"content": "The"}), [1]), "not of OpenAI's API"),
        (stream(chunk({"content": "The"}), {"choices": [{"delta": 5}]}), "not of OpenAI's API"),
    ],
)
def test_a_reply_that_is_lost_is_kept(sent: bytes, words: str) -> None:
    with stub(MODELS, sent) as server:
        talk = conversation(server.url)
        with pytest.raises(SourceError, match=words):
            reply(talk, "hi")
        assert [message["content"] for message in talk.messages] == ["hi", "The"]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (answer(b"", status="302 Found", location="http://127.0.0.1:1/"), "points elsewhere .302."),
        (answer(b"<html>", "text/html", "404 Not Found"), "answers 404 Not Found"),
        (answer(b'{"error": "model is too\\u001b[2J large"}', status="500 No"), r"answers 500: model is too\\x1b"),
        (answer(b'{"detail": {"message": "no"}}', status="400 No"), "answers 400: no"),
        (answer(b"[" * 100_000, status="400 No"), "answers 400"),
        (answer(b"<html>", "text/html"), "not of OpenAI's API"),
        (answer(b'{"data": 5}'), "not of OpenAI's API"),
        (answer(b'{"data": []}'), "it has no model"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "speaks no HTTP"),
        (b"", "connection was lost"),
    ],
)
def test_what_else_may_answer(sent: bytes, words: str) -> None:
    with stub(sent) as server, pytest.raises((SourceError, DataError), match=words):
        conversation(server.url)


def test_a_server_that_lists_nothing_may_know_a_name() -> None:
    with stub(answer(b'{"data": null}'), stream(chunk({"content": "fox"}, "stop"))) as server:
        assert reply(conversation(server.url, "mine"), "hi").text == "fox"
    assert server.bodies[0]["model"] == "mine"


def test_a_model_that_streams_nothing() -> None:
    with stub(MODELS, answer(b"{}")) as server, pytest.raises(SourceError, match="no stream"):
        reply(conversation(server.url), "hi")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:1234/v1/", "http://127.0.0.1:1234"),
        ("localhost:8080", "http://localhost:8080"),
        ("https://[::1]:9/api/", "https://[::1]:9/api"),
    ],
)
def test_addresses(url: str, shown: str) -> None:
    assert str(Address.parse(url)) == shown


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x", "http://", "http://a b", "http://x:99999", "http://x?y=1", "http://x/\r\nHost: y", "http://[1"],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(DataError, match=r"`server` must be an address"):
        Address.parse(url)


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(DataError) as caught:
        Address.parse("http://me:hunter2@host")
    assert "hunter2" not in str(caught.value)
