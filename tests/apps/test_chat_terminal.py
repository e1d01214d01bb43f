"""The conversation in a real terminal: streaming, stopping, keys, commands, history."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from partita.checkpoint.open import open_checkpoint
from partita_apps.conversation.saved import Saved, save
from partita_apps.conversation.settings import Settings

from ..runtime.adapters.test_adapting import write
from .terminals import PARTITA, Terminal, terminal_environment

# Newer Pythons warn of fork in a process that has threads; the child here does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

PROMPT = re.compile(r"\x1b\[[0-9;]*m> ")  # in colour: the prompt, as opposed to a ">" in a reply
STATUS = re.compile(r"(\d+) tokens? · .*first .*context (\d+)/(\d+) · cache")
ENTER, NEW_LINE, UP, CTRL_C = "\r", "\x1b\r", "\x1b[A", "\x03"
Start = Callable[..., pexpect.spawn]


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path, terminal: Terminal) -> Start:
    """start(*options) is a chat with the tiny model, at its prompt."""

    def spawn(*options: object, model: Path = tiny_model) -> pexpect.spawn:
        command = [PARTITA, "chat", str(model), "--backend", "numpy", *map(str, options)]
        return terminal(command, terminal_environment(tmp_path), PROMPT, folder=tmp_path)

    return spawn


def say(child: pexpect.spawn, line: str) -> str:
    """Type one line, send it, and return what stands between this prompt and the next one."""
    child.send(line + ENTER)
    return answer(child)


def answer(child: pexpect.spawn) -> str:
    child.expect("\r\n")
    child.expect(PROMPT)
    assert isinstance(child.before, str)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", child.before)


def saved(child: pexpect.spawn, path: Path) -> dict:
    assert "saved to" in say(child, f"/save {path.name}")
    return json.loads(path.read_text())


def leave(child: pexpect.spawn) -> int | None:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_a_conversation_of_two_turns_that_is_saved_and_loaded(start, tmp_path):
    child = start("-n", 8)
    first = STATUS.search(say(child, "the fox"))
    second = STATUS.search(say(child, "and the dog"))
    assert first is not None
    assert second is not None
    assert first[1] == second[1] == "8"
    assert int(second[2]) > int(first[2])
    kept = saved(child, tmp_path / "talk.json")
    assert [m["content"] for m in kept["messages"][::2]] == ["the fox", "and the dog"]
    assert "A new conversation" in say(child, "/clear")
    assert saved(child, tmp_path / "empty.json")["messages"] == []
    assert "4 messages loaded" in say(child, "/load talk.json")
    assert saved(child, tmp_path / "again.json") == kept
    child.sendeof()
    assert leave(child) == 0


def test_ctrl_c_stops_the_reply_and_keeps_it(start, tmp_path):
    child = start("-n", 1_000_000)
    child.send("the fox" + ENTER)
    child.expect("\r\n")
    child.expect(r"[^\r\n]{40}")
    child.send(CTRL_C)
    assert "stopped" in answer(child)
    messages = saved(child, tmp_path / "talk.json")["messages"]
    assert messages[0] == {"role": "user", "content": "the fox"}
    assert len(messages[1]["content"]) > 5  # 40 cells, up to six a character
    say(child, "/set max_tokens 4")
    assert STATUS.search(say(child, "and")) is not None
    assert len(saved(child, tmp_path / "talk.json")["messages"]) == 4


def test_ctrl_c_at_the_prompt_clears_and_twice_leaves(start, tmp_path):
    child = start("-n", 4)
    child.send("something wrong")
    child.send(CTRL_C)
    say(child, "the fox")
    assert saved(child, tmp_path / "talk.json")["messages"][0]["content"] == "the fox"
    child.send(CTRL_C)
    child.send(CTRL_C)
    assert leave(child) == 0


def test_many_lines_and_slashes(start, tmp_path):
    child = start("-n", 2)
    for keys in ("one", NEW_LINE, "two\\", ENTER, "three", ENTER):
        child.send(keys)
    child.expect(STATUS)
    child.expect(PROMPT)
    say(child, "//etc")
    texts = [m["content"] for m in saved(child, tmp_path / "talk.json")["messages"][::2]]
    assert texts == ["one\ntwo\nthree", "/etc"]


def test_history_outlives_the_chat_and_is_private(start, tmp_path):
    child = start("-n", 2)
    say(child, "the quick fox")
    child.sendeof()
    leave(child)
    (history,) = tmp_path.rglob("chat-history")
    assert history.stat().st_mode & 0o777 == 0o600
    child = start("-n", 2)
    say(child, UP)
    assert saved(child, tmp_path / "talk.json")["messages"][0]["content"] == "the quick fox"


def test_commands_and_their_mistakes_leave_the_chat_going(start):
    child = start("-n", 2)
    assert "/load FILE" in say(child, "/help")
    assert "unknown command /sing" in say(child, "/sing")
    assert "unknown setting 'colour'" in say(child, "/set colour red")
    assert "/set temperature must be" in say(child, "/set temperature -1")
    assert "temperature: 0.5" in say(child, "/set temperature 0.5")
    assert "system: be brief" in say(child, "/set system be brief")
    assert "cannot be read" in say(child, "/load nothing.json")
    assert "/save needs the name" in say(child, "/save")
    shown = say(child, "/show")
    for words in ("numpy on cpu", "temperature         0.5", "system              be brief", "kv 32", "512 tokens"):
        assert words in shown
    assert STATUS.search(say(child, "the fox")) is not None
    child.send("/exit" + ENTER)
    assert leave(child) == 0


def test_a_conversation_longer_than_the_context_goes_on_and_says_so(start):
    child = start("-n", 12, "--context", 48)
    first = say(child, "the fox")
    assert "forgotten" not in first
    second = say(child, "and the dog")
    assert "forgotten" in second
    assert "no longer seen" in second
    third = say(child, "and then")
    assert "forgotten" in third
    assert "no longer seen" not in third


def test_a_trace_and_raw_text(start):
    child = start("-n", 3, "--trace", "--raw")
    reply = say(child, "the fox")
    for row in ("   1 ", "   2 ", "   3 "):
        assert row in reply
    assert "probability" in reply
    assert STATUS.search(reply) is not None


def test_keys_typed_during_a_reply_wait_for_the_prompt(start, tmp_path):
    child = start("-n", 1000)
    child.send("the fox" + ENTER)
    child.expect("\r\n")
    child.expect(r"[^\r\n]{40}")
    child.send("/set max_tokens 2" + ENTER)
    assert "/set max_tokens" not in answer(child)
    assert "max_tokens: 2" in answer(child)


def test_a_conversation_goes_on_in_another_run(start, tmp_path):
    child = start("-n", 1_000_000, "--session", "talk.st", "--lookup")
    child.send("the fox" + ENTER)
    child.expect("\r\n")
    child.expect(r"[^\r\n]{40}")
    child.send(CTRL_C)
    assert re.search(r"drafts \d+/\d+ accepted · stopped", " ".join(answer(child).split()))
    child.sendeof()
    assert leave(child) == 0
    child = start("-n", 4, "--session", "talk.st")
    shown = " ".join(child.before.split())
    assert "> the fox" in shown
    assert "2 messages so far" in shown
    assert STATUS.search(say(child, "and the dog")) is not None
    kept = saved(child, tmp_path / "talk.json")["messages"]
    assert [message["content"] for message in kept[::2]] == ["the fox", "and the dog"]
    assert len(kept[1]["content"]) > 5
    child.send("/exit" + ENTER)
    assert leave(child) == 0


def test_nothing_that_files_and_options_hold_acts_on_the_terminal(start, tiny_model, tmp_path):
    evil = "evil\x1b]0;owned\x07\u202e"
    adapter = write(tmp_path / evil, open_checkpoint(tiny_model))
    messages = [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}]
    save(Saved(evil, Settings.of({"system": evil, "stop": [evil]}), messages), tmp_path / "c.json")
    child = start("--adapter", adapter, "--system", evil)
    output = child.before
    child.logfile_read = read = io.StringIO()
    for line in ("/show", "/adapter", "/load c.json", "/show"):
        say(child, line)
    output += read.getvalue()
    assert output.count(r"evil\x1b]0;owned\x07\u202e") >= 8  # else they are not shown at all
    assert "\x1b]" not in output
    assert "\u202e" not in output


def test_a_chat_needs_a_terminal_for_json(tiny_model):
    command = str(Path(sys.executable).with_name("partita"))
    child = pexpect.spawn(command, ["chat", str(tiny_model), "--json"], encoding="utf-8", timeout=30)
    child.expect("partita: --json answers one prompt")
    assert leave(child) == 2
