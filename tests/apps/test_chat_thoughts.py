"""Chats with models that think and call tools: what is shown where, and what the next turn and the files are given."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from tests.chat_forms import write_model
from tests.scripted import sampler, script

import partita
from partita.cache.session_file import read_extra
from partita.errors import TemplateError
from partita.language_model import LanguageModel
from partita.text.load import tokenizer_from_folder
from partita_apps.chat.show import last_turn
from partita_apps.conversation import saved, session_file
from partita_apps.conversation.local import CacheOptions, LocalConversation
from partita_apps.conversation.settings import Settings

from .terminals import Terminal, terminal_environment

SCRIPTED = Path(__file__).parent.parent / "scripted.py"
ARGUMENTS = {"path": "a.py", "text": "def f():\n    return 1\n", "mode": 3}
CALL = f"<tool_call>\n{json.dumps({'name': 'write', 'arguments': ARGUMENTS})}\n</tool_call>"
THOUGHT = "The quick brown fox jumps over the lazy dog, and then the other fox thinks that this is the end of the day."
REPLY = f"<think>\n{THOUGHT}\n</think>\n\nIt jumps.\n{CALL}"
MESSAGE = {
    "role": "assistant",
    "content": "It jumps.",
    "reasoning_content": THOUGHT,
    "tool_calls": [
        {"id": "call00000", "type": "function", "function": {"name": "write", "arguments": ARGUMENTS}},
    ],
}
PROMPT = re.compile(r"\x1b\[[0-9;]*m> ")
Start = Callable[..., pexpect.spawn]

# Newer Pythons warn of fork in a process that has threads; the child here does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("thinkers")
    return lambda name: folder / name if (folder / name).exists() else write_model(folder / name, name)


@pytest.fixture
def talk_with(folders, monkeypatch) -> Callable[..., LocalConversation]:
    """talk_with(form, *replies) is a chat with a model that will say them."""

    def make(
        name: str, *replies: str, ends: bool = True, model: LanguageModel | None = None, **settings
    ) -> LocalConversation:
        model = partita.load(folders(name), backend="numpy") if model is None else model
        monkeypatch.setattr("partita.language_model.Sampler", sampler(script(model.tokenizer, *replies, ends=ends)))
        return LocalConversation(model, Settings.of(settings), CacheOptions())

    return make


# ---------------------------------------------------------------- the conversation


def test_only_what_is_said_is_content(talk_with):
    conversation = talk_with("thinking", REPLY, "Yes.")
    list(conversation.reply("the fox"))
    assert conversation.messages == [{"role": "user", "content": "the fox"}, MESSAGE]
    prompt = conversation.model.tokenizer.decode(conversation.encode("and"), specials=True)
    assert f"<|im_start|>assistant\nIt jumps.\n{CALL}<|im_end|>\n" in prompt
    assert THOUGHT not in prompt
    first = conversation.prompt_tokens
    list(conversation.reply("and"))
    assert conversation.messages[-1] == {"role": "assistant", "content": "Yes."}
    assert conversation.session.reused == first


def test_calls_are_counted_through_a_conversation(talk_with):
    conversation = talk_with("thinking", REPLY, CALL)
    list(conversation.reply("the fox"))
    list(conversation.reply("and"))
    assert [call["id"] for message in conversation.messages for call in message.get("tool_calls", ())] == [
        "call00000",
        "call00001",
    ]


def test_what_a_template_does_not_read_and_what_is_broken_is_said(talk_with):
    call = '<|channel|>commentary to=functions.write <|constrain|>json<|message|>{"mode": 3}'
    conversation = talk_with("harmony", call, call.replace("3", ""))
    list(conversation.reply("the fox"))
    assert conversation.messages[-1]["content"] == 'commentary to=functions.write json {"mode": 3}'
    list(conversation.reply("and"))
    assert conversation.messages[-1]["content"] == 'commentary to=functions.write json {"mode": }'
    conversation = talk_with("thinking", "Now:\n<tool_call>no</tool_call>")
    list(conversation.reply("the fox"))
    assert conversation.messages[-1] == {"role": "assistant", "content": "Now:\n<tool_call>no</tool_call>"}


def test_a_template_that_wants_an_answer_to_a_call_is_told_what_was_said(talk_with, folders, tmp_path):
    folder = tmp_path / "strict"
    folder.mkdir()
    for file in folders("thinking").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    refuses = "{% for m in messages %}{% if m.tool_calls %}{{ raise_exception('no result') }}{% endif %}{% endfor %}"
    config["chat_template"] = refuses + config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = partita.load(folder, backend="numpy")
    conversation = talk_with("", REPLY, "Yes.", model=model)
    list(conversation.reply("the fox"))
    assert "tool_calls" in conversation.messages[-1]
    prompt = model.tokenizer.decode(conversation.encode("and"), specials=True)
    said = json.dumps({"name": "write", "arguments": ARGUMENTS})
    assert f"assistant\nIt jumps.\n{said}<|im_end|>" in prompt
    list(conversation.reply("and"))
    with pytest.raises(TemplateError, match="no result"):
        model.encode(conversation.messages)
    saved_file = session_file.SessionFile(conversation, tmp_path / "talk.st")
    saved_file.save()
    again = talk_with("", "Yes.", model=model)
    session_file.SessionFile(again, tmp_path / "talk.st").resume(session_file.find(tmp_path / "talk.st"))
    list(again.reply("So?"))
    assert again.session.reused > 50


def test_a_reply_that_is_closed_in_its_thought_keeps_it(talk_with):
    conversation = talk_with("opened", f"{THOUGHT}</think>It jumps.")
    reply = conversation.reply("the fox")
    for _ in range(10):
        next(reply)
    reply.close()
    answer = conversation.messages[1]
    assert answer["content"] == ""
    assert THOUGHT.startswith(answer["reasoning_content"])
    assert last_turn(conversation) == "> the fox\n(it only thought)"


def test_files_keep_what_was_thought_and_called(talk_with, tmp_path):
    conversation = talk_with("thinking", REPLY, thoughts="fold")
    list(conversation.reply("the fox"))
    path = tmp_path / "talk.json"
    saved.save(saved.Saved("m", conversation.settings, conversation.messages), path)
    assert saved.load(path) == saved.Saved("m", conversation.settings, conversation.messages)
    old = json.loads(path.read_text())
    del old["settings"]["thoughts"]
    old["messages"][1] = {"role": "assistant", "content": "It jumps."}
    path.write_text(json.dumps(old))
    assert saved.load(path).messages == [conversation.messages[0], old["messages"][1]]
    assert saved.load(path).settings.thoughts == "show"


@pytest.mark.parametrize(
    "change",
    [
        {"tool_calls": [3]},
        {"tool_calls": 3},
        {"tool_calls": [{"id": "1", "function": {"name": 3, "arguments": {}}}]},
        {"tool_calls": [{"id": "1", "function": {"name": "a", "arguments": "{}"}}]},
        {"tool_calls": [{"function": {"name": "a", "arguments": {}}}]},
    ],
)
def test_a_call_in_a_damaged_file_is_one_line(tmp_path, change):
    path = tmp_path / "talk.json"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **change}]
    saved.save(saved.Saved("m", Settings(), messages), path)
    with pytest.raises(partita.errors.DataError, match="damaged"):
        saved.load(path)


def test_a_session_file_goes_on_behind_a_thought(talk_with, tmp_path):
    path, conversation = tmp_path / "talk.st", talk_with("thinking", REPLY)
    list(conversation.reply("the fox"))
    session_file.SessionFile(conversation, path).save()
    assert read_extra(path)[1]["conversation"]["messages"][1] == MESSAGE
    again = talk_with("thinking", "Yes.", model=conversation.model)
    session_file.SessionFile(again, path).resume(session_file.find(path))
    assert again.messages == conversation.messages
    list(again.reply("and"))
    fresh = talk_with("thinking", "Yes.", model=conversation.model)
    fresh.take(conversation.messages, fresh.settings)
    assert again.prompt_tokens == len(fresh.encode("and"))
    assert again.session.reused == conversation.prompt_tokens


# ---------------------------------------------------------------- the command


@pytest.fixture
def run(folders, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run(form, reply, *options) is a finished `partita chat -p` whose model says that."""

    def command(name: str, reply: str, *options: object, ends: bool = True) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, SCRIPTED, replies(folders(name), tmp_path, reply, ends=ends), "chat", folders(name)]
        line += ["--backend", "numpy", "-p", "the fox", *options]
        environment = {**os.environ, "PYTHONPATH": str(SCRIPTED.parent.parent)}
        return subprocess.run(list(map(str, line)), env=environment, capture_output=True, text=True, timeout=60)

    return command


def replies(folder: Path, to: Path, *texts: str, ends: bool = True) -> Path:
    file = to / "replies.json"
    file.write_text(json.dumps(script(tokenizer_from_folder(folder), *texts, ends=ends)))
    return file


def test_a_pipe_is_given_what_is_said(run):
    result = run("thinking", REPLY)
    assert result.stdout == "It jumps.\n"
    assert result.stderr == "partita: the reply calls write: --json shows it\n"


def test_a_pipe_gets_a_note_when_nothing_is_said(run):
    result = run("opened", THOUGHT, "-n", 9, ends=False)
    assert result.stdout == "\n"
    assert result.stderr == "partita: the reply is nothing but thoughts (9 tokens): --json shows them\n"


def test_the_document_has_speech_thoughts_and_calls(run):
    found = json.loads(run("thinking", REPLY, "--json").stdout)
    assert (found["text"], found["reasoning"], found["finish_reason"]) == ("It jumps.", THOUGHT, "stop")
    (call,) = found["tool_calls"]
    assert json.loads(call["function"].pop("arguments")) == ARGUMENTS
    assert call == {"id": "call00000", "type": "function", "function": {"name": "write"}}
    broken = json.loads(run("thinking", "<tool_call>no</tool_call>", "--json").stdout)
    assert broken["tool_calls"] == [
        {"type": "error", "error": "not valid JSON", "written": "<tool_call>no</tool_call>"}
    ]
    assert (broken["text"], broken["reasoning"]) == ("", None)


def test_the_document_has_every_token_but_the_last(run, folders):
    harmony = "<|channel|>analysis<|message|>The fox.<|end|><|start|>assistant<|channel|>final<|message|>It jumps."
    found = json.loads(run("harmony", harmony, "--json").stdout)
    assert (found["text"], found["reasoning"]) == ("It jumps.", "The fox.")
    assert found["tokens"] == script(tokenizer_from_folder(folders("harmony")), harmony, ends=False)[0]


def test_raw_text_is_not_separated(run):
    result = run("thinking", REPLY, "--raw")
    assert (result.stdout, result.stderr) == (f"{REPLY}\n", "")


def test_a_trace_has_all_tokens_and_then_what_was_said(run):
    result = run("thinking", REPLY, "--trace")
    assert "<|im_end|>" in result.stdout
    assert result.stdout.endswith("\n\nIt jumps.\n")


def test_a_mistake_in_how_thoughts_are_shown_is_one_line(run):
    result = run("thinking", REPLY, "--thoughts", "loudly")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "partita: --thoughts must be one of show, fold, hide, got 'loudly'\n"


# ---------------------------------------------------------------- the terminal


@pytest.fixture
def start(folders, tmp_path: Path, terminal: Terminal) -> Start:
    """start(form, texts, *options, columns=80) is a chat at its prompt, whose model will say these texts."""

    def spawn(name: str, texts: list[str], *options: object, columns: int = 80, ends: bool = True, **more: str):
        file = replies(folders(name), tmp_path, *texts, ends=ends)
        own = terminal_environment(tmp_path, **{"PYTHONPATH": str(SCRIPTED.parent.parent), **more})
        arguments = [str(SCRIPTED), str(file), "chat", str(folders(name)), "--backend", "numpy", *map(str, options)]
        return terminal([sys.executable, *arguments], own, PROMPT, columns)

    return spawn


def say(child: pexpect.spawn, line: str) -> str:
    """Type one line, and return what is written until the next prompt, escape sequences included."""
    child.send(f"{line}\r")
    child.expect("\r\n")
    child.expect(PROMPT)
    return str(child.before)


def plain(text: str) -> list[str]:
    """Lines without escape sequences. What a line was before it was written again counts as a line, too."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")


@pytest.mark.parametrize("columns", [40, 80])
def test_thoughts_are_dim_and_calls_are_blocks(start, columns):
    child = start("thinking", [REPLY, "Yes."], columns=columns)
    found = say(child, "the fox")
    lines = plain(found)
    assert max(map(len, lines)) <= columns
    begin, end = lines.index("thinking…"), next(i for i, line in enumerate(lines) if line.startswith("thought for "))
    assert " ".join("".join(f"{line} " for line in lines[begin + 1 : end]).split()) == THOUGHT
    dim = "".join(re.findall(r"\x1b\[2m(.*?)\x1b\[0m", found, re.DOTALL))
    assert "jumps over" in " ".join(dim.split())
    assert "It jumps." not in dim
    assert lines[end + 1 : end + 9] == [
        "", "It jumps.", "→ write", "  path: a.py", "  text:", "    def f():", "        return 1", "  mode: 3",
    ]  # fmt: skip
    status = " ".join(lines[end + 9 :])
    assert re.search(r"\d+ tokens, \d+ of them thoughts ·", status)
    assert " ".join(plain(say(child, "/show thoughts"))).split() == THOUGHT.split()
    assert "Yes." in plain(say(child, "and"))
    assert "no thoughts in the latest reply" in " ".join(" ".join(plain(say(child, "/show thoughts"))).split())


@pytest.mark.parametrize("columns", [40, 80])
def test_folded_thoughts_are_one_line_that_changes(start, columns):
    child = start("thinking", [REPLY], "--thoughts", "fold", columns=columns)
    found = say(child, "the fox")
    lines = plain(found)
    shown = [line for line in lines if line.startswith("thinking… ")]
    assert len(shown) > 20
    assert max(map(len, shown)) < columns
    assert max(map(len, lines)) <= columns
    assert shown[-1].endswith(THOUGHT[-12:])
    last = found.rsplit("\x1b[K", 1)[1]
    assert plain(last)[0].startswith("thought for ")
    assert " · /show thoughts" in " ".join(plain(last)[:2])
    assert "It jumps." in plain(last)


def test_thoughts_that_are_hidden_are_kept(start):
    child = start("thinking", [REPLY])
    assert "thoughts: hide" in "".join(plain(say(child, "/set thoughts hide")))
    lines = plain(say(child, "the fox"))
    assert not [line for line in lines if "thinking" in line or "thought for" in line]
    assert "It jumps." in lines
    assert " ".join(plain(say(child, "/show thoughts"))).split() == THOUGHT.split()
    assert "one of show, fold, hide" in " ".join(plain(say(child, "/set thoughts loudly")))
    assert "expected /show" in " ".join(plain(say(child, "/show dreams")))


def test_a_terminal_without_escapes_is_sent_none(start):
    """Not even where thoughts are folded: their line would have to change in its place."""
    child = start("thinking", [REPLY], "--thoughts", "fold", NO_COLOR="1")
    reply = say(child, "the fox")
    shown = reply[reply.index("thinking…") : reply.index("mode: 3")]
    assert "\x1b" not in shown
    assert [line for line in plain(shown) if line][:3] == ["thinking…", plain(shown)[1], "It jumps."]
    assert plain(shown)[1].startswith("thought for ")


@pytest.mark.parametrize("how", ["show", "fold"])
def test_ctrl_c_in_a_thought_stops_it(start, how):
    child = start("opened", ["the fox " * 20], "--thoughts", how, "-n", 1_000_000, ends=False)
    child.send("the fox\r")
    child.expect("\r\n")
    child.expect("thinking…")
    child.send("\x03")
    child.expect(PROMPT)
    lines = plain(str(child.before))
    assert "· stopped" in " ".join(" ".join(lines).split())
    assert [line for line in lines if line.startswith("thought for ")]


def test_a_model_does_not_control_the_terminal_by_thinking_or_calling(start):
    call = json.dumps({"name": "a\x1b[2J", "arguments": {"b\x1b[2J": "c\x1b[2J\u202e", "d": "\x1b[2J\n" * 2}})
    child = start("thinking", [f"<think>a\x1b]0;title\x07b</think><tool_call>{call}</tool_call><tool_call>\x1b[2J"])
    reply = say(child, "the fox")
    assert "\x1b[2J" not in reply
    assert "\x1b]0;" not in reply
    assert "\u202e" not in reply
    assert r"→ a\x1b[2J" in reply
