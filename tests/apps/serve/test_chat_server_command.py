"""`partita chat --server` as a command, and in a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from partita.engine.request import Failed

from ..mistakes import Mistake
from ..terminals import PARTITA, Terminal, terminal_environment
from .conversing import Serve, conversation, reply
from .scripted import Script
from .served import until
from .started import Running

PROMPT = re.compile(r"\x1b\[[0-9;]*m> ")  # as in test_chat_terminal


def run(*arguments: object, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "partita_apps.cli", "chat", *map(str, arguments)]
    own = {name: value for name, value in os.environ.items() if name != "PARTITA_API_KEY"}
    return subprocess.run(
        command, input=text, capture_output=True, text=True, env={**own, **environment}, timeout=60, check=False
    )


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
