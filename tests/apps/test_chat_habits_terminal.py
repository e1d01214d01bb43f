"""Habits of other chats in the real terminal: taking back, editing, copying, many lines, pasting, and ways to leave."""

from __future__ import annotations

import base64
import json
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from partita_apps.conversation import session_file

from .terminals import PARTITA, Terminal, terminal_environment
from .test_chat_habits import program
from .test_chat_terminal import CTRL_C, ENTER, NEW_LINE, PROMPT, STATUS, UP, answer, leave, saved, say

# Newer Pythons warn of fork in a process that has threads; the child here does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path, terminal: Terminal) -> Callable[..., pexpect.spawn]:
    """start(*options, columns=80, **environment) is a chat with the tiny model, at its prompt."""

    def spawn(*options: object, columns: int = 80, **more: str) -> pexpect.spawn:
        command = [PARTITA, "chat", str(tiny_model), "--backend", "numpy", *map(str, options)]
        dropped = ("VISUAL", "EDITOR", "DISPLAY", "WAYLAND_DISPLAY")
        own = terminal_environment(tmp_path, *dropped, **{"SSH_TTY": "/dev/pts/0", **more})
        return terminal(command, own, PLAIN if own["TERM"] == "dumb" else PROMPT, columns, tmp_path)

    return spawn


PLAIN = "(?m)^> "


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in messages[::2]]


def test_a_conversation_is_taken_back_asked_again_and_copied(start, tmp_path):
    child = start("-n", 8, "--temperature", 0, "--session", "talk.st")
    say(child, "the fox")
    first = saved(child, tmp_path / "one.json")["messages"]
    say(child, "and the dog")
    both = saved(child, tmp_path / "two.json")["messages"]
    assert "taken back: and the dog" in say(child, "/undo")
    assert saved(child, tmp_path / "talk.json")["messages"] == first
    say(child, "and the dog")
    assert "temperature is 0" in say(child, "/retry")
    assert saved(child, tmp_path / "talk.json")["messages"] == both
    child.send("/copy" + ENTER)
    child.expect(r"\x1b\]52;c;([A-Za-z0-9+/=]*)\x07")
    assert base64.b64decode(child.match[1]).decode() == both[-1]["content"]
    child.expect(PROMPT)
    assert "copied through the terminal" in str(child.before)
    loaded = say(child, "/load one.json")
    assert "> the fox" in loaded
    assert "2 messages loaded" in loaded
    assert "did you mean /undo?" in say(child, "/unod")
    say(child, "/undo")
    child.send("quit" + ENTER)
    assert leave(child) == 0
    found = session_file.find(tmp_path / "talk.st")
    assert found is not None
    assert found.messages == []
    child = start("-n", 4, "--session", "talk.st")
    assert STATUS.search(say(child, "the fox")) is not None


def test_an_edited_text_takes_the_place_of_the_last_one(start, tmp_path):
    script = program(tmp_path / "edit.sh", 'printf "instead of %s" "$(cat "$1")" > "$1"')
    child = start("-n", 4, "--temperature", 0, VISUAL=str(script))
    assert "sent: instead of" in say(child, "/edit")
    say(child, "the fox")
    shown = say(child, "/edit")
    assert "sent: instead of the fox" in shown
    assert STATUS.search(shown) is not None
    assert texts(saved(child, tmp_path / "talk.json")["messages"]) == ["instead of", "instead of the fox"]
    say(child, "/edit new")
    assert len(saved(child, tmp_path / "talk.json")["messages"]) == 6


def test_ctrl_c_in_the_editor_is_the_editor_s(start, tmp_path):
    script = program(tmp_path / "edit.sh", "trap 'echo the fox > \"$1\"; exit 0' INT", "echo ready", "sleep 30")
    child = start("-n", 4, EDITOR=str(script))
    child.send("/edit" + ENTER)
    child.expect("ready")
    child.send(CTRL_C)
    assert STATUS.search(answer(child)) is not None
    assert texts(saved(child, tmp_path / "talk.json")["messages"]) == ["the fox"]


def test_many_lines_between_quotation_marks(start, tmp_path):
    child = start("-n", 2)
    for keys in ('"""one\\', ENTER, "exit", ENTER, "/undo", NEW_LINE, "", ENTER, 'two"""', ENTER):
        child.send(keys)
    child.expect(STATUS)
    child.expect(PROMPT)
    say(child, UP)
    say(child, '"""exit"""')
    expected = "one\\\nexit\n/undo\n\ntwo"
    assert texts(saved(child, tmp_path / "talk.json")["messages"]) == [expected, expected, "exit"]


@pytest.mark.parametrize("begin", ["", '"""Says hello."""\n'])
def test_what_is_pasted_is_one_text(start, tmp_path, begin):
    child = start("-n", 2)
    pasted = begin + "\n".join(f"line {number}" for number in range(200))
    child.send(f"\x1b[200~{pasted}\x1b[201~{ENTER}")
    child.expect(STATUS)
    child.expect(PROMPT)
    assert texts(saved(child, tmp_path / "talk.json")["messages"]) == [pasted]


def test_a_terminal_without_escapes_has_the_same_habits(start, tmp_path):
    script = program(tmp_path / "edit.sh", 'echo "the dog" > "$1"')
    child = start("-n", 2, "--temperature", 0, TERM="dumb", EDITOR=str(script))

    def tell(*lines: str) -> str:
        for line in lines:
            child.sendline(line)
        child.expect(PLAIN)
        return str(child.before)

    quiet(child)
    assert "first" in tell('"""one\\', "exit", 'two"""')
    assert "first" in tell("three\\", "four")
    tell("/save talk.json")
    assert texts(json.loads((tmp_path / "talk.json").read_text())["messages"]) == ["one\\\nexit\ntwo", "three\nfour"]
    assert "taken back: three four" in tell("/undo")
    assert "sent: the dog" in tell("/edit")
    assert "no clipboard is found" in " ".join(tell("/copy").split())
    child.sendline("bye")
    assert leave(child) == 0


def quiet(child: pexpect.spawn) -> None:
    """Keys are not echoed, so that prompts can be told from what was typed."""
    mode = termios.tcgetattr(child.child_fd)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(child.child_fd, termios.TCSANOW, mode)


def test_a_tab_completes_the_new_commands(start):
    child = start("-n", 2)
    child.send("/und\t")
    child.expect("/undo")
    child.send(ENTER)
    assert "no turn to take back" in answer(child)
