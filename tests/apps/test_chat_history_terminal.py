"""The history of chats in the real terminal: kept from the first turn, listed, opened, gone on with, switched off."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from partita_apps.history import History

from .mistakes import Mistake
from .serve.served import until
from .terminals import PARTITA, Terminal, terminal_environment
from .test_chat_terminal import CTRL_C, ENTER, PROMPT, answer, leave, say

# Newer Pythons warn of fork in a process that has threads; the child here does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
Start = Callable[..., pexpect.spawn]


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path, terminal: Terminal) -> Start:
    """start(*options, model=…) is a chat at its prompt, whose history is in tmp_path/data."""

    def spawn(*options: object, model: Path | None = tiny_model) -> pexpect.spawn:
        named = [] if model is None else [str(model)]
        command = [PARTITA, "chat", *named, "--backend", "numpy", *map(str, options)]
        own = terminal_environment(tmp_path, "EDITOR", "VISUAL", PARTITA_DATA=str(tmp_path / "data"))
        return terminal(command, own, PROMPT, 100, folder=tmp_path)

    return spawn


def shown(child: pexpect.spawn) -> str:
    """What stood before the prompt, in one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", str(child.before)).split())


def end(child: pexpect.spawn) -> None:
    child.sendeof()
    assert leave(child) == 0


def kept(tmp_path: Path) -> list[list[str]]:
    """The texts of all chats, the latest first."""
    history = History.open(tmp_path / "data" / "history.sqlite3")
    try:
        return [[each.content for each in history.path(chat.id)][::2] for chat in history.latest(99)]
    finally:
        history.close()


def test_a_chat_is_kept_and_goes_on_in_another_run(start, tmp_path):
    child = start("-n", 4, "--temperature", 0, "--system", "be brief")
    assert "chats are kept in " in shown(child)
    assert "/data/history.sqlite3, for your eyes alone" in shown(child)
    say(child, "the fox")
    end(child)
    child = start("--continue", model=None)
    assert "> the fox" in shown(child)
    assert "2 messages so far" in shown(child)
    assert "chats are kept" not in shown(child)
    settings = say(child, "/show")
    assert re.search(r"max_tokens +4", settings)
    assert re.search(r"system +be brief", settings)
    say(child, "and the dog")
    end(child)
    assert kept(tmp_path) == [["the fox", "and the dog"]]
    child = start("--continue", "-n", 2)
    assert re.search(r"max_tokens +2", say(child, "/show"))
    end(child)


def test_chats_are_listed_found_renamed_and_opened(start, tmp_path):
    child = start("-n", 2)
    say(child, "the quick fox")
    say(child, "/clear")
    say(child, "the lazy dog")
    assert "title: Of dogs" in say(child, "/rename Of dogs")
    listed = say(child, "/history")
    assert re.search(r"1\* +\d\d:\d\d +Of dogs", listed)
    assert re.search(r"2 +\d\d:\d\d +the quick fox", listed)
    assert "the quick fox" in say(child, "/history QUICK")
    opened = " ".join(say(child, "/open 1").split())
    assert "> the quick fox" in opened
    assert "the quick fox: 2 messages" in opened
    say(child, "and more")
    say(child, "/undo")
    say(child, "/retry")
    end(child)
    assert kept(tmp_path) == [["the quick fox"], ["the lazy dog"]]


def test_nothing_is_kept_where_that_is_wanted(start, tmp_path):
    child = start("-n", 2, "--no-history")
    say(child, "a secret")
    end(child)
    assert not (tmp_path / "data").exists()
    child = start("-n", 2, "--session", "talk.st")
    say(child, "a session")
    end(child)
    assert not (tmp_path / "data").exists()
    child = start("-n", 2, "--raw")
    say(child, "plain text")
    assert "start without --raw" in say(child, "/history")
    end(child)
    child = start("-n", 2)
    say(child, "said")
    assert "history: off" in say(child, "/set history off")
    say(child, "a secret")
    assert "/set history must be on or off" in say(child, "/set history maybe")
    end(child)
    assert kept(tmp_path) == [["said"]]
    data = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    assert b"secret" not in data


def test_one_shots_are_not_kept(tiny_model, environment, tmp_path):
    command = [sys.executable, "-m", "partita_apps.cli", "chat", str(tiny_model), "--backend", "numpy", "-n", "2"]
    for more, text in ((["-p", "the fox"], ""), ([], "the fox")):
        subprocess.run([*command, *more], input=text, text=True, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "data").exists()


def test_a_killed_chat_has_kept_what_was_said(start, tmp_path):
    child = start("-n", 1_000_000)
    say_first(child, "the fox")
    history = History.open(tmp_path / "data" / "history.sqlite3")
    chat = history.latest(1)[0].id
    until(lambda: len(history.path(chat)[-1].content) > 5)
    history.close()
    child.kill(signal.SIGKILL)
    child.wait()
    history = History.open(tmp_path / "data" / "history.sqlite3")
    asked, reply = history.path(chat)
    assert (asked.content, reply.state) == ("the fox", "interrupted")
    assert len(reply.content) > 5
    history.close()
    child = start("--continue", "-n", 2)
    assert "2 messages so far" in shown(child)
    end(child)


def say_first(child: pexpect.spawn, text: str) -> None:
    """Begin a long reply, and wait until some of it is on the screen."""
    child.send(text + ENTER)
    child.expect("\r\n")
    for _ in range(4):
        child.expect(r"[^\r\n]{60}")


def test_a_stopped_reply_is_kept_as_far_as_it_came(start, tmp_path):
    child = start("-n", 1_000_000)
    say_first(child, "the fox")
    child.send(CTRL_C)
    assert "stopped" in answer(child)
    end(child)
    history = History.open(tmp_path / "data" / "history.sqlite3")
    reply = history.path(history.latest(1)[0].id)[-1]
    assert (reply.state, bool(reply.ids)) == ("stopped", True)
    history.close()


def test_a_history_that_cannot_be_used_is_one_line(mistake: Mistake, environment, tiny_model, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "history.sqlite3").write_text("no database, but long enough to be taken for one " * 10)
    command = str(Path(sys.executable).with_name("partita"))
    for options, words in (
        ([], "is damaged: move it away to begin another, or chat without a history (--no-history)"),
        (["--continue", "--no-history"], "--continue and --no-history exclude each other"),
        (["--continue", "--session", "x"], "--continue and --session exclude each other"),
        (["--continue", "--raw"], "--continue goes on with a conversation"),
    ):
        child = pexpect.spawn(
            command, ["chat", str(tiny_model), *options], env=environment, encoding="utf-8", timeout=30
        )
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 2
        assert words in " ".join(str(child.before).split())
    (tmp_path / "data" / "history.sqlite3").unlink()
    child = pexpect.spawn(command, ["chat", "--continue"], env=environment, encoding="utf-8", timeout=30)
    child.expect("there is no chat to go on with in .*: leave --continue out to begin one")
    child.expect(pexpect.EOF)
    child.close()
    mistake("chat", tiny_model, "-p", "x", "--continue", words=["--continue goes on with a conversation in a terminal"])
