"""`partita chat --server`: conversations with a model that a server has loaded, ours or one of another make."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from partita.engine.request import Failed
from partita.errors import DataError, SourceError
from partita_apps.chat.commands import Send, read
from partita_apps.conversation.client import Address, Client
from partita_apps.conversation.conversation import NONE, About
from partita_apps.conversation.remote import RemoteConversation
from partita_apps.conversation.settings import Settings
from partita_apps.conversation.stats import ReplyStats

from ..mistakes import Mistake
from ..terminals import PARTITA, Terminal, terminal_environment
from .scripted import Script
from .served import Served, until
from .started import Running

Serve = Callable[..., Served]
Other = Callable[..., "Stub"]
PROMPT = re.compile(r"\x1b\[[0-9;]*m> ")  # as in test_chat_terminal


def conversation(url: str, model: str | None = None, key: str | None = None, **settings: Any) -> RemoteConversation:
    return RemoteConversation(
        Client(Address.parse(url), key), model, Settings.of({"max_tokens": 8, **settings}), tuple(settings)
    )


def reply(talk: RemoteConversation, text: str, alternatives: int = 0) -> ReplyStats:
    """A whole reply, counted."""
    found = ReplyStats(talk)
    for piece in talk.reply(text, alternatives=alternatives):
        found.add(piece)
    return found


def run(*arguments: object, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "partita_apps.cli", "chat", *map(str, arguments)]
    own = {name: value for name, value in os.environ.items() if name != "PARTITA_API_KEY"}
    return subprocess.run(
        command, input=text, capture_output=True, text=True, env={**own, **environment}, timeout=60, check=False
    )


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


def test_two_turns_and_what_is_known_of_them(served: Serve) -> None:
    server = served([Script("the quick brown fox", reused=0), Script("jumps", reused=9)])
    talk = conversation(server.url, system="be brief")
    assert talk.about == About(
        "tiny", NONE, server.url, "numpy", "cpu", "float32", 512, None, "dense", bytes_per_token=1 / 512
    )
    first = reply(talk, "the fox")
    assert first.text == "the quick brown fox"
    assert first.finish_reason == "stop"
    assert first.count == len(server.worker.ids("the quick brown fox"))
    second = reply(talk, "and then")
    prompt, count = talk.state.prompt_tokens, len(server.worker.ids("jumps"))
    assert prompt is not None
    assert (talk.state.reused, talk.state.seen, talk.state.held) == (9, prompt + count, prompt + count)
    assert second.read_tokens == prompt - 9
    assert [message["content"] for message in talk.messages] == [
        *("the fox", "the quick brown fox", "and then", "jumps")
    ]
    text = server.worker.text.tokenizer.decode(server.worker.requests[-1].prompt, specials=True)
    assert all(said in text for said in ("be brief", "the fox", "the quick brown fox", "and then"))
    assert re.search(rf"{count} tokens? · .*first .* · context {prompt + count}/512", second.line())
    assert f"prompt {prompt - 9} tokens" in second.details()
    assert "9 reused" in second.details()


def test_only_what_a_person_chose_is_sent(served: Serve) -> None:
    server = served(Script("the fox"))
    talk = conversation(server.url)
    usual = server.worker.text.usual
    reply(talk, "a")
    assert server.worker.requests[-1].sampling.temperature == usual.temperature
    assert "temperature" in talk.delegated
    talk.set("temperature", "0")
    talk.set("stop", "fox")
    assert reply(talk, "b").text == "the "
    assert server.worker.requests[-1].sampling.temperature == 0
    assert server.worker.requests[-1].max_tokens == 8
    shown = str(read(talk, "/show"))
    assert re.search(r"temperature +0\.0\n", shown)
    assert re.search(r"top_k +the server's\n", shown)
    assert re.search(rf"server +{server.url}\n", shown)
    sent = read(talk, "/retry")
    assert isinstance(sent, Send)
    assert "temperature is 0" in sent.note


def test_undo_clear_retry_and_files(served: Serve, tmp_path: Path) -> None:
    server = served(Script("the fox"))
    talk = conversation(server.url)
    for text in ("one", "two"):
        reply(talk, text)
    read(talk, f"/save {tmp_path / 'talk.json'}")
    with talk.replacing():
        reply(talk, "three")
    assert [message["content"] for message in talk.messages[::2]] == ["one", "three"]
    assert "2 messages left" in str(read(talk, "/undo"))
    assert talk.messages[0]["content"] == "one"
    read(talk, "/clear")
    assert talk.messages == []
    read(talk, f"/load {tmp_path / 'talk.json'}")
    assert len(talk.messages) == 4
    assert talk.delegated == frozenset()  # a file's settings are a person's
    with pytest.raises(DataError, match="empty"):
        reply(talk, "  ")


def test_thoughts_and_calls(served: Serve) -> None:
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "fox"}}\n</tool_call>'
    server = served(Script(f"<think>\nquick\n</think>\n\nfox\n{call}"), "thinking")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    talk = conversation(server.url, max_tokens=128, template_var={"tools": tools})
    found = reply(talk, "the fox")
    assert (found.thought.strip(), found.text.strip()) == ("quick", "fox")
    assert 0 < found.thought_count < found.count
    assert [(call.name, json.loads(call.arguments)) for call in found.calls] == [("look", {"at": "fox"})]
    assert "thoughts" in found.line()
    reply(talk, "and?")
    prompt = server.worker.text.tokenizer.decode(server.worker.requests[-1].prompt, specials=True)
    assert '"at": "fox"' in prompt.partition("the fox")[2]  # as the model said it


def test_probabilities(served: Serve) -> None:
    server = served(Script("the quick"))
    found = reply(conversation(server.url), "the", alternatives=3)
    assert [row["text"] for row in found.trace] == ["the", "·qu", "ick"]
    assert found.trace[0]["probability"] == pytest.approx(0.5)
    assert [len(row["alternatives"]) for row in found.trace] == [3, 3, 3]
    assert found.document(None, True)["tokens"] is None  # their ids are not said


def test_adapters_are_the_servers(served: Serve) -> None:
    server = served(Script("fox"))
    talk = conversation(server.url)
    assert talk.adapters == [NONE]
    with pytest.raises(DataError, match="no adapters"):
        talk.use_adapter("loud")
    server.registry.adapters = ("loud", "quiet")
    talk = conversation(server.url, "tiny:loud")
    assert (talk.about.model, talk.about.adapter) == ("tiny", "loud")
    assert "there are also quiet, none" in str(read(talk, "/adapter"))
    reply(talk, "a")
    read(talk, "/adapter quiet")
    reply(talk, "b")
    read(talk, "/adapter none")
    reply(talk, "c")
    assert server.registry.used[-3:] == ["tiny:loud", "tiny:quiet", "tiny"]
    with pytest.raises(DataError, match="'soft'; expected one of loud, quiet, none"):
        talk.use_adapter("soft")


def test_a_closed_reply_is_cancelled_and_kept(served: Serve) -> None:
    server = served(Script("the quick", holds=True))
    talk = conversation(server.url)
    pieces = talk.reply("the fox")
    said = ""
    while "the quick" not in said:
        said += next(pieces).text
    assert next(pieces).text == ""  # nothing comes, and whoever reads has a turn
    pieces.close()
    assert talk.messages[-1]["content"] == "the quick"
    until(lambda: server.worker.cancelled)


def test_a_prompt_that_is_being_read_can_be_stopped(served: Serve) -> None:
    server = served(Script("", holds=True))
    talk = conversation(server.url)

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        next(talk.reply("the fox", on_progress=stop))
    assert talk.messages == []


def test_what_the_server_refuses_is_its_message(served: Serve) -> None:
    busy = Failed(0, "12 requests are waiting already", "busy")
    with pytest.raises(SourceError, match="answers 429: 12 requests are waiting already"):
        reply(conversation(served(Script(refuses=busy)).url), "hi")
    server = served(Script("the fox", fails=Failed(0, "the model broke", "internal")))
    talk = conversation(server.url)
    with pytest.raises(SourceError, match="the model broke"):
        reply(talk, "hi")
    assert talk.messages[-1]["content"] == "the fox"  # what was said is kept


def test_a_key(served: Serve) -> None:
    server = served(Script("fox"), api_key="secret")
    with pytest.raises(SourceError, match="put its key into PARTITA_API_KEY"):
        conversation(server.url)
    with pytest.raises(SourceError, match="PARTITA_API_KEY is not its key") as caught:
        conversation(server.url, key="wrongkey")
    assert "wrongkey" not in str(caught.value)
    assert reply(conversation(server.url, key="secret"), "hi").text == "fox"
    with pytest.raises(DataError, match="printable"):
        conversation(server.url, key="two\r\nlines")


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


def test_one_prompt_through_the_command(served: Serve) -> None:
    server = served(Script("the quick"))
    done = run("tiny", "--server", server.url, "-p", "the fox", "-n", 9, http_proxy="http://127.0.0.1:9")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the quick\n", "")
    assert server.worker.requests[-1].sampling.temperature == 0
    done = run("--server", server.url, "--json", "--trace", "--temperature", 1, text="the fox")
    document = json.loads(done.stdout)
    assert (document["text"], document["model"], document["backend"]) == ("the quick", "tiny", "numpy")
    assert document["seed"] == server.worker.requests[-1].sampling.seed
    assert [row["text"] for row in document["trace"]] == ["the", "·qu", "ick"]
    done = run("--server", server.url, "--trace", "-p", "the fox")
    assert re.search(r"\n   2 ·qu +████    +50\.0% ", done.stdout)
    assert done.stdout.endswith("\nthe quick\n")


def test_a_model_that_is_computed(tiny_model: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """The reply is the one of the model loaded here, a second turn reads only what is new, and the server goes on."""
    server = Running([str(tiny_model), "--backend=numpy", "--port=0", "--only"], environment, tmp_path)
    try:
        here = run(tiny_model, "--backend", "numpy", "-p", "the fox", "-n", 12, "--json", **environment)
        there = run("--server", server.url, "-p", "the fox", "-n", 12, "--json", **environment)
        a, b = json.loads(here.stdout), json.loads(there.stdout)
        for name in ("text", "prompt_tokens", "finish_reason", "backend", "device", "context", "seed"):
            assert a[name] == b[name], name
        talk = conversation(server.url, temperature=0.0)
        for text in ("the quick brown fox jumps " * 9, "and then"):
            reply(talk, text)
        assert (talk.about.backend, talk.about.kv) == ("numpy", b["kv"])
        assert talk.state.reused is not None
        assert talk.state.reused > 64
        assert server.end() == 0
    finally:
        server.process.kill()
        server.process.wait()
        assert server.process.stdout is not None
        server.process.stdout.close()


def test_mistakes_are_one_line(mistake: Mistake, served: Serve) -> None:
    url = served(Script("fox")).url
    said = mistake("chat", "--server", url, "-p", "a", "--threads", "2", "--backend", "torch")
    assert said.startswith("--backend, --threads cannot be given with --server")
    for option, value in (("--context", "4"), ("--session", "x"), ("--adapter", "x")):
        said = mistake("chat", "--server", url, "-p", "a", option, value)
        assert f"{option} cannot be given with --server" in said
    assert "--raw" in mistake("chat", "--server", url, "-p", "a", "--raw")
    assert "does not serve other: it has tiny" in mistake("chat", "other", "--server", url, "-p", "a")
    assert "no server answers there" in mistake("chat", "--server", "http://127.0.0.1:9", "-p", "a")
    assert "--temperature must be" in mistake("chat", "--server", url, "-p", "a", "--temperature", "-1")


def test_ctrl_c_ends_one_prompt(served: Serve) -> None:
    server = served(Script("the quick ", holds=True))
    command = [sys.executable, "-m", "partita_apps.cli", "chat", "--server", server.url, "-p", "the fox"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        until(lambda: server.worker.running)
        assert started.stdout is not None
        assert started.stdout.read(4) == "the "
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=20)
    assert (started.returncode, err) == (130, "")
    until(lambda: server.worker.cancelled)


def test_no_library_of_arrays_is_imported(served: Serve) -> None:
    url = served(Script("the fox")).url
    program = (
        "import sys\n"
        "from partita_apps import cli\n"
        f"cli.run(['chat', '--server', {url!r}, '-p', 'hi', '--stats'])\n"
        "print(*{'torch', 'mlx', 'numba', 'llguidance', 'starlette', 'uvicorn', 'tokenizers'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "the fox\n\n"


@pytest.fixture
def start(tmp_path: Path, terminal: Terminal) -> Callable[..., pexpect.spawn]:
    """start(url, *options) is a chat with a server, at its prompt."""

    def spawn(url: str, *options: object) -> pexpect.spawn:
        own = terminal_environment(tmp_path, "PARTITA_API_KEY")
        return terminal([PARTITA, "chat", "--server", url, *map(str, options)], own, PROMPT, folder=tmp_path)

    return spawn


def say(child: pexpect.spawn, line: str) -> str:
    child.send(f"{line}\r")
    return until_prompt(child)


def until_prompt(child: pexpect.spawn) -> str:
    child.expect("\r\n")
    child.expect(PROMPT)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", child.before or "")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_conversation_in_a_terminal(served: Serve, start: Callable[..., pexpect.spawn]) -> None:
    lost = Script("the", fails=Failed(0, "the model broke", "internal"))
    held = Script("the quick brown", holds=True)
    server = served([Script("the quick brown fox"), held, Script(holds=True), lost, Script("jumps")])
    child = start(server.url)
    greeting = child.before or ""
    assert all(words in greeting for words in ("tiny", server.url, "numpy on cpu", "context 512", "kv dense"))
    assert "temperature" not in greeting
    first = say(child, "the fox")
    assert "the quick brown fox" in first
    assert re.search(r"7 tokens · .*first .*context \d+/512", first)
    child.send("and\r")
    child.expect("the quick")  # the third word may go on
    child.send("\x03")
    assert "stopped" in until_prompt(child)
    until(lambda: server.worker.cancelled)
    child.send("go on\r")
    until(lambda: len(server.worker.requests) == 3)
    child.send("\x03")
    assert "stopped before the reply began" in until_prompt(child)
    broken = say(child, "go on")
    assert re.search(r"the\r\n.*partita:.*the model broke", broken, re.DOTALL)
    assert "jumps" in say(child, "and then")
    assert "8 messages saved" in say(child, "/save talk.json")
    child.send("/exit\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
