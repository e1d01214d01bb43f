"""Tools as people install them, told of a server what `partita clients` says: `make agents`.

They run in folders of their own, with a key that is none or one of ours, and reach nothing but the server. Once a
scripted model calls a tool and says what it found; once a real one, tiny and random, reads all that they send.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from partita.engine.request import Request
from partita_apps.serve.clients.command import CLIENTS
from partita_apps.serve.clients.guide import File, Settings

from ... import conftest as tiny
from .scripted import Script
from .served import Served
from .started import Start

pytestmark = pytest.mark.agents
ROOT = Path(__file__).parents[3]
QUESTION = "What is in hello.txt?"
SECRET = "forty-two"
SAID = f"It holds {SECRET}."
OFFLINE = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1,localhost"}
POSITIONS = 32768


@dataclass(frozen=True)
class Agent:
    """client: its name in CLIENTS. program: its path below the folder of packages. arguments: behind those that start
    it. tool, given: the call that the model is to write. environment: what keeps it from the network."""

    client: str
    program: str
    arguments: tuple[str, ...]
    tool: str
    given: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict[str, str])


_DESCRIBED = {"command": "cat hello.txt", "description": "Reads a file."}
_CODEX = ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
AGENTS = (
    Agent("codex", "node_modules/.bin/codex", (*_CODEX, QUESTION), "exec_command", {"cmd": "cat hello.txt"}),
    Agent(
        "claude-code",
        "node_modules/@anthropic-ai/claude-code-linux-x64/claude",
        ("-p", QUESTION, "--allowedTools", "Bash"),
        "Bash",
        _DESCRIBED,
    ),
    Agent("pi", "node_modules/.bin/pi", ("-p", QUESTION), "bash", {"command": "cat hello.txt"}),
    Agent(
        "opencode",
        "node_modules/.bin/opencode",
        ("run", QUESTION),
        "bash",
        _DESCRIBED,
        environment={"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"},
    ),
)
AIDER = ("--yes-always", "--no-git", "--no-check-update", "--analytics-disable", "--no-show-model-warnings")
EDIT = f"I change it.\n\nhello.txt\n```\n{SECRET} and one\n```\n"


def packages() -> Path:
    return Path(os.environ["PARTITA_AGENTS"])


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.client)
def test_a_turn_with_a_tool(served: Callable[..., Served], tmp_path: Path, agent: Agent) -> None:
    call = json.dumps({"name": agent.tool, "arguments": agent.given})
    server = calling(served, call, None)
    assert SAID in run(agent.program, agent.arguments, told(agent.client, server.url), tmp_path, agent.environment)
    before, after = (request.prompt for request in server.worker.requests[-2:])
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    assert shared > 0.9 * len(before)  # a turn goes on where the one before it ended


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.client)
def test_a_server_with_a_key(served: Callable[..., Served], tmp_path: Path, agent: Agent) -> None:
    server = calling(served, json.dumps({"name": agent.tool, "arguments": agent.given}), "secret")
    settings = told(agent.client, server.url, "secret")
    own = {**agent.environment, "PARTITA_API_KEY": "secret"}
    assert SAID in run(agent.program, agent.arguments, settings, tmp_path, own)


@pytest.mark.parametrize("name", ["lmstudio", "ollama"])
def test_codex_as_it_finds_other_servers(served: Callable[..., Served], tmp_path: Path, name: str) -> None:
    """Without a setting but the port, as of LM Studio and of Ollama."""
    codex = AGENTS[0]
    server = calling(served, json.dumps({"name": codex.tool, "arguments": codex.given}), None)
    arguments = (*_CODEX, "--oss", "--local-provider", name, "-m", "tiny", QUESTION)
    own = {"CODEX_OSS_PORT": str(server.port)}
    assert SAID in run(codex.program, arguments, Settings(start="codex"), tmp_path, own)


def test_aider_changes_a_file(served: Callable[..., Served], tmp_path: Path) -> None:
    server = served(Script(EDIT), "thinking", {"context": 1 << 16})
    arguments = (*AIDER, "--edit-format", "whole", "--message", "Add one.", "hello.txt")
    run("aider/bin/aider", arguments, told("aider", server.url), tmp_path)
    assert (tmp_path / "work/hello.txt").read_text() == f"{SECRET} and one\n"


def test_llm(served: Callable[..., Served], tmp_path: Path) -> None:
    server = served(Script(SAID))
    assert run("llm/bin/llm", (), told("llm", server.url), tmp_path) == f"{SAID}\n"


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny and random, with a context for agents, a tokenizer that has read our documents, and short replies."""
    folder = tmp_path_factory.mktemp("models") / "long"
    folder.mkdir()
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    vocab_size = tiny.write_tokenizer(folder, texts, 4096)
    tiny.write_config(folder, vocab_size, POSITIONS)
    tiny.write_weights(folder, vocab_size)
    weights = dict(load_file(folder / "model.safetensors"))
    head = np.array(weights["lm_head.weight"])
    head[-1] = 3 * head[0]  # replies end after some ten tokens
    save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.client)
def test_a_real_model_reads_all_of_it(start: Start, long_model: Path, tmp_path: Path, agent: Agent) -> None:
    server = start(long_model, "--backend=torch")
    settings = told(agent.client, server.url)
    run(agent.program, agent.arguments, settings, tmp_path, agent.environment)
    status, metrics = server.ask("GET", "/metrics")
    assert status == 200
    needs = CLIENTS[agent.client].needs
    assert needs is not None
    found = re.search(r"^partita_prompt_tokens_total ([\d.e+]+)$", metrics, re.MULTILINE)
    assert found is not None, metrics
    assert float(found[1]) > 0.7 * needs
    assert 'partita_replies_total{reason="stop"}' in metrics


def calling(served: Callable[..., Served], call: str, key: str | None) -> Served:
    """A server whose model makes a call, and after it says what the file holds."""
    server: Any = None

    def play(request: Request) -> Script:
        if SECRET in server.worker.text.tokenizer.decode(request.prompt):
            return Script(SAID)
        return Script(f"<think>\nwell\n</think>\n\nI look.\n<tool_call>\n{call}\n</tool_call>", chunk=4096)

    server = served(play, "thinking", {"context": 1 << 18}, api_key=key)
    return server


def told(client: str, url: str, key: str = "") -> Settings:
    """What the command says of the server, as a program reads it."""
    arguments = ["clients", client, "--url", url, "--json", *(["--api-key", key] if key else [])]
    found = subprocess.run(
        [sys.executable, "-m", "partita_apps.cli", *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    (document,) = json.loads(found.stdout)["clients"]
    files = tuple(File(**each) for each in document["files"])
    return Settings(files, document["environment"], document["start"], tuple(document["steps"]))


def run(
    program: str, arguments: tuple[str, ...], settings: Settings, folder: Path, own: dict[str, str] | None = None
) -> str:
    """What a tool prints that is started as its settings say. program: in place of the name in the command."""
    home, work = folder / "home", folder / "work"
    work.mkdir()
    (work / "hello.txt").write_text(f"{SECRET}\n")
    for file in settings.files:
        path = home / file.path.removeprefix("~/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
    home.mkdir(exist_ok=True)
    exports = [f"export {name}={value}" for name, value in settings.environment.items()]
    command = [str(packages() / program), *shlex.split(settings.start or "")[1:], *arguments]
    done = subprocess.run(
        ["sh", "-c", "\n".join([*exports, f"exec {shlex.join(command)}"])],
        cwd=work,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", **OFFLINE, **(own or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
