"""`partita clients`: what it says of a server, and that tools can read what it prints."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from partita.errors import DataError, SourceError
from partita_apps.cli import run
from partita_apps.serve.clients.agents import AGENTS
from partita_apps.serve.clients.command import CLIENTS, warning
from partita_apps.serve.clients.facts import find
from partita_apps.serve.clients.guide import File, Server, Settings

from .served import Served

DOCS = Path(__file__).parents[3] / "docs"
ODD = 'a "quoted" $(name)\\'
OPEN, KEYED = (Server("http://127.0.0.1:1300", ODD, 5000, keyed=keyed, running=True) for keyed in (False, True))
UNTOLD = {"openai", "anthropic", "llm", "open-webui", "home-assistant", "obsidian"}
"""Those that have no setting for the context."""


def parsed(file: File) -> Any:
    """What a tool reads out of a file."""
    if file.path.endswith(".toml"):
        return tomllib.loads(file.text)
    return yaml.safe_load(file.text) if file.path.endswith(".yaml") else json.loads(file.text)


def leaves(value: Any) -> Iterator[str]:
    """Texts and numbers of a document, keys too."""
    if isinstance(value, dict):
        yield from (leaf for pair in value.items() for each in pair for leaf in leaves(each))
    elif isinstance(value, list):
        yield from (leaf for each in value for leaf in leaves(each))
    else:
        yield str(value)


def typed(settings: Settings) -> list[str]:
    """The words that a shell makes of the variables and the command."""
    words = [*settings.environment.values(), *([] if settings.start is None else [settings.start])]
    command = "printf '%s\\n' " + " ".join(words)
    environment = {"PATH": os.environ["PATH"], "PARTITA_API_KEY": "from the environment"}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("server", [OPEN, KEYED], ids=["open", "keyed"])
def test_settings_have_the_facts(name: str, server: Server) -> None:
    """The model's name is one that would break out of any quotes."""
    settings = CLIENTS[name].settings(server)
    said = [leaf for file in settings.files for leaf in leaves(parsed(file))] + typed(settings) + [*settings.steps]
    if settings.python is not None:
        tree = compile(settings.python, name, "exec")
        said += [str(each) for each in tree.co_consts]
    together = "\n".join(said)
    assert "127.0.0.1:1300" in together
    assert ODD in together or name == "open-webui"  # which asks for the list
    assert name in UNTOLD or {"5000", "3750"} & set(together.replace(";", " ").split())
    if not server.keyed:
        assert "YOUR-KEY" not in together
        assert "from the environment" not in together


def test_no_tool_is_left_without_a_key_where_one_is_needed() -> None:
    for client in CLIENTS.values():
        settings = client.settings(KEYED)
        said = "\n".join([*(file.text for file in settings.files), *settings.environment.values(), *settings.steps])
        said += settings.python or ""
        by_hand = client.name in ("zed", "llm")  # which ask for it, or take it from the environment
        assert by_hand or "PARTITA_API_KEY" in said or "YOUR-KEY" in said, client.name


@pytest.mark.parametrize("name", ["openai", "anthropic"])
@pytest.mark.parametrize("key", [None, "secret"])
def test_the_programs_run(
    served: Callable[..., Served],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    key: str | None,
) -> None:
    server = served(api_key=key)
    program = CLIENTS[name].settings(Server(server.url, "tiny", 512, keyed=key is not None)).python
    assert program is not None
    monkeypatch.setenv("PARTITA_API_KEY", key or "")
    names: dict[str, Any] = {}
    exec(compile(program, name, "exec"), names)
    names["client"].close()
    assert capsys.readouterr().out == "hello\n"


def test_facts_of_a_server_that_runs(served: Callable[..., Served]) -> None:
    server = served()
    assert find(server.url, None) == Server(server.url, "tiny", 512, running=True)
    assert find(f"{server.url}/v1", "tiny").url == server.url
    assert find(f"127.0.0.1:{server.port}", None).url == server.url
    with pytest.raises(DataError, match="unknown `model` other; expected one of tiny"):
        find(server.url, "other")


def test_facts_of_a_server_with_a_key(served: Callable[..., Served], tiny_model: Path) -> None:
    server = served(api_key="secret")
    assert find(server.url, None, "secret") == Server(server.url, "tiny", 512, keyed=True, running=True)
    for key in (None, "wrong"):
        assert find(server.url, str(tiny_model), key) == Server(server.url, "tiny", 512, keyed=True, running=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "ftp://127.0.0.1", "http://", "http://127.0.0.1:port"])
def test_a_url_that_leads_nowhere(url: str) -> None:
    with pytest.raises(DataError, match=r"no server of partita answers|`url` must be like"):
        find(url, None)


def test_facts_without_a_server(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("partita_apps.serve.clients.facts.TRIES", 0)  # whatever else runs on this machine
    assert find(None, str(tiny_model)) == Server("http://127.0.0.1:1234", "tiny", 512)
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(SourceError, match="is not on this machine: `partita serve` fetches and serves it"):
        find(None, None)


def test_the_command(served: Callable[..., Served], capsys: pytest.CaptureFixture[str]) -> None:
    server = served()
    assert run(["clients", "PI", "--url", server.url]) == 0
    out, err = capsys.readouterr()
    assert "run with pi-coding-agent" in out
    assert f'"baseUrl": "{server.url}/v1"' in out
    assert '"contextWindow": 512' in out
    assert err == "pi begins with about 1400 tokens, and tiny holds 512: serve a model with a longer context\n"
    assert run(["clients", "--json", "--url", server.url]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["server"] == {
        "url": server.url,
        "model": "tiny",
        "context": 512,
        "needs_key": False,
        "running": True,
    }
    assert [each["name"] for each in document["clients"]] == list(CLIENTS)
    assert run(["clients"]) == 0
    rows = capsys.readouterr().out
    assert all(client.name in rows and client.tested() in rows for client in CLIENTS.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["emacs"], "unknown tool emacs; expected one of codex"), (["--model", "tiny"], "give its NAME")],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["clients", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_context_that_is_long_enough_needs_no_warning() -> None:
    pi = CLIENTS["pi"]
    assert warning(pi, Server("http://127.0.0.1:1234", "m", 8192)) is None
    assert warning(pi, Server("http://127.0.0.1:1234", "m", 1600)) is not None


def test_what_was_run_is_what_is_installed_to_be_run() -> None:
    pinned = (DOCS.parent / ".ci/agents").read_text(encoding="utf-8")
    for client in (*AGENTS, CLIENTS["llm"]):
        assert client.ran is not None
        name, version = client.ran.rsplit(" ", 1)
        assert version in pinned, f"{name} {version}"


def test_the_document_is_what_the_command_shows() -> None:
    spec = importlib.util.spec_from_file_location("clients_document", DOCS / "clients.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert (DOCS / "clients.md").read_text(encoding="utf-8") == made.document(), "run `python docs/clients.py`"
