"""What is left of replies when the server ends, however it does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from partita_apps.history import History
from partita_apps.serve.app.token import NAME
from partita_apps.serve.listen import listening
from partita_apps.serve.server import build_app, serve
from partita_apps.serve.settings import Settings

from ..scripted import Script, scripted
from ..served import Served, until
from ..started import Start
from .page import HEADER, Page

SAID = "the quick brown fox jumps over the lazy dog " * 20


def main(folder: str, data: str, pause: str, drain: str) -> None:
    """A server in a process of its own, with a scripted model, that says its port."""
    bound = listening("127.0.0.1", 0)
    port = bound.getsockname()[1]
    print(port, flush=True)
    registry = scripted(Path(folder), Script(SAID, pause=float(pause)), context=4096)
    app = build_app(registry, Settings(port=port, data=Path(data), drain=float(drain)))
    serve(app, "127.0.0.1", port, sockets=[bound], drain=float(drain))


class Own:
    """Such a process, and a page of it."""

    def __init__(self, folder: Path, data: Path, pause: float, drain: float) -> None:
        given = (str(folder), str(data), str(pause), str(drain))
        program = f"from tests.apps.serve.app.test_ends import main; main{given!r}"
        root = Path(__file__).parents[4]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline())
        until(lambda: (data / NAME).exists())
        self.page = Page(Served(None, port, (data / NAME).read_text().strip()))
        until(self._answers)

    def _answers(self) -> bool:
        try:
            return self.page.server.get("/health").status == 200
        except OSError:
            return False

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def own(tiny_model: Path, tmp_path: Path) -> Iterator[Any]:
    begun: list[Own] = []

    def make(pause: float, drain: float) -> Own:
        begun.append(Own(tiny_model, tmp_path, pause, drain))
        return begun[-1]

    yield make
    for each in begun:
        each.close()


def kept(folder: Path, ident: str) -> Any:
    with closing(History.open(folder / "history.sqlite3")) as history:
        return history.message(ident)


def grown(page: Page, chat: str, reply: str, least: int = 20) -> str:
    """What a reply has said once it has said something."""
    found = ""

    def look() -> bool:
        nonlocal found
        found = page.message(chat, reply)["content"]
        return len(found) >= least

    until(look, 30)
    return found


def test_a_signal_lets_a_run_end_though_nobody_listens(own: Any, tmp_path: Path) -> None:
    server = own(0.005, 60)
    page = server.page
    chat = page.chat()
    reply = page.send(chat)["reply"]
    with page.listening("/app/events"):
        before = grown(page, chat, reply)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    message = kept(tmp_path, reply)
    assert (message.state, message.content.strip()) == ("done", SAID.strip())
    assert len(before) < len(message.content)


def test_a_run_that_does_not_end_is_interrupted_with_its_text(own: Any, tmp_path: Path) -> None:
    server = own(0.05, 1)
    page = server.page
    chat = page.chat()
    reply = page.send(chat)["reply"]
    before = grown(page, chat, reply)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    message = kept(tmp_path, reply)
    assert message.state == "interrupted"
    assert message.content.startswith(before)
    assert SAID.startswith(message.content.rstrip("\ufffd"))


def test_a_killed_server_leaves_the_text(own: Any, tmp_path: Path) -> None:
    server = own(0.02, 1)
    chat = server.page.chat()
    reply = server.page.send(chat)["reply"]
    before = grown(server.page, chat, reply)
    server.process.kill()
    server.process.wait()
    again = own(0.0, 1).page
    message = again.message(chat, reply)
    assert message["state"] == "interrupted"
    assert message["content"].startswith(before)
    told = again.told(reply)
    assert (told[-1].kind, told[-1].data["state"]) == ("end", "interrupted")
    longer = again.post(f"/app/chats/{chat}/runs", {"do": "continue", "message": reply})
    again.told(longer["run"])
    assert again.message(chat, longer["reply"])["content"].startswith(message["content"].rstrip("\ufffd"))


def kills(start: Start, model: Path, data: Path, count: int) -> None:
    """A real server is killed at any moment of a chat, again and again: nothing that was seen is lost."""
    chance, seen = random.Random(7), dict[str, str]()
    data.mkdir(mode=0o700, exist_ok=True)
    for _ in range(count):
        server = start(model, "--only", "--backend=numpy")
        headers = {HEADER: (data / NAME).read_text().strip()}

        def ask(method: str, path: str, body: Any = None) -> Any:
            status, text = server.ask(method, path, body, **headers)  # noqa: B023
            assert status == 200, text
            return json.loads(text)

        chat = ask("POST", "/app/chats", {"settings": {"max_tokens": 400, "temperature": 1.0, "seed": 1}})["id"]
        reply = ask("POST", f"/app/chats/{chat}/runs", {"do": "send", "text": "the quick"})["reply"]
        end = time.monotonic() + chance.random() * 2.5
        while time.monotonic() < end:
            message = ask("GET", f"/app/chats/{chat}")["messages"][-1]
            seen[reply] = message["content"]
        seen.setdefault(reply, "")
        server.process.kill()
        server.process.wait()
    with closing(History.open(data / "history.sqlite3")) as history:
        assert len(history.chats()) == count
        for reply, text in seen.items():
            message = history.message(reply)
            assert message.state in ("interrupted", "done", "length")
            assert message.content.startswith(text)
            assert [each.role for each in history.path(message.chat)] == ["user", "assistant"]


def test_three_kills(start: Start, tiny_model: Path, environment: dict[str, str]) -> None:
    kills(start, tiny_model, Path(environment["PARTITA_DATA"]), 3)


@pytest.mark.slow
def test_fifty_kills(start: Start, tiny_model: Path, environment: dict[str, str]) -> None:
    kills(start, tiny_model, Path(environment["PARTITA_DATA"]), 50)
