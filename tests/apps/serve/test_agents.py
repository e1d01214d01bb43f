"""Coding agents as people install them, each with one real turn of a tool: `make agents`.

They run in folders of their own, with a key that is none, and reach nothing but the server; a scripted model says what
a real one would. What each is to be told of a server stands here, too.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from partita.engine.request import Request

from .scripted import Script
from .served import Served

pytestmark = pytest.mark.agents
QUESTION = "What is in hello.txt?"
SECRET = "forty-two"
OFFLINE = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1,localhost"}


@dataclass(frozen=True)
class Agent:
    """program: its path below the folder of packages. arguments, files, environment: `{url}` and `{port}` are the
    server's; files are put into the home folder. tool, given: the call that the model is to write."""

    program: str
    arguments: tuple[str, ...]
    tool: str
    given: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict[str, str])
    environment: dict[str, str] = field(default_factory=dict[str, str])


CODEX = """
model = "tiny"
model_provider = "partita"
[model_providers.partita]
name = "partita"
base_url = "{url}/v1"
wire_api = "responses"
"""
PI = {"baseUrl": "{url}/v1", "api": "openai-completions", "apiKey": "none", "models": [{"id": "tiny"}]}
OPENCODE = {
    "model": "partita/tiny",
    "provider": {
        "partita": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": "{url}/v1", "apiKey": "none"},
            "models": {"tiny": {"limit": {"context": 200000, "output": 8000}}},
        }
    },
}
_CODEX = ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
_SHELL = ("exec_command", {"cmd": "cat hello.txt"})
AGENTS = {
    "codex": Agent(".bin/codex", (*_CODEX, QUESTION), *_SHELL, files={".codex/config.toml": CODEX}),
    **{
        f"codex as with {name}": Agent(
            ".bin/codex",
            (*_CODEX, "--oss", "--local-provider", name, "-m", "tiny", QUESTION),
            *_SHELL,
            environment={"CODEX_OSS_PORT": "{port}"},
        )
        for name in ("lmstudio", "ollama")
    },
    "claude": Agent(
        "@anthropic-ai/claude-code-linux-x64/claude",
        ("-p", QUESTION, "--allowedTools", "Bash"),
        "Bash",
        {"command": "cat hello.txt", "description": "Reads a file."},
        environment={
            **dict.fromkeys(("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL"), "tiny"),
            "ANTHROPIC_BASE_URL": "{url}",
            "ANTHROPIC_API_KEY": "none",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    ),
    "pi": Agent(
        ".bin/pi",
        ("-p", "--provider", "partita", "--model", "tiny", QUESTION),
        "bash",
        {"command": "cat hello.txt"},
        files={".pi/agent/models.json": json.dumps({"providers": {"partita": PI}})},
    ),
    "opencode": Agent(
        ".bin/opencode",
        ("run", QUESTION),
        "bash",
        {"command": "cat hello.txt", "description": "Reads a file."},
        files={".config/opencode/opencode.json": json.dumps(OPENCODE)},
        environment={"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"},
    ),
}


@pytest.mark.parametrize("name", AGENTS)
def test_a_turn_with_a_tool(served: Callable[..., Served], tmp_path: Path, name: str) -> None:
    agent = AGENTS[name]
    call = json.dumps({"name": agent.tool, "arguments": agent.given})
    server: Any = None

    def play(request: Request) -> Script:
        if SECRET in server.worker.text.tokenizer.decode(request.prompt):
            return Script(f"It holds {SECRET}.")
        return Script(f"<think>\nwell\n</think>\n\nI look.\n<tool_call>\n{call}\n</tool_call>", chunk=4096)

    server = served(play, "thinking", {"context": 1 << 18})
    said = run(agent, server, tmp_path)
    assert f"It holds {SECRET}." in said
    before, after = (request.prompt for request in server.worker.requests[-2:])
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
    assert shared > 0.9 * len(before)  # a turn goes on where the one before it ended


def run(agent: Agent, server: Served, folder: Path) -> str:
    """What it prints."""

    def filled(text: str) -> str:
        return text.replace("{url}", server.url).replace("{port}", str(server.port))

    packages = Path(os.environ["PARTITA_AGENTS"]) / "node_modules"
    home, work = folder / "home", folder / "work"
    work.mkdir()
    (work / "hello.txt").write_text(f"{SECRET}\n")
    for name, text in agent.files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(filled(text))
    own = {name: filled(text) for name, text in agent.environment.items()}
    done = subprocess.run(
        [packages / agent.program, *agent.arguments],
        cwd=work,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb", **OFFLINE, **own},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
