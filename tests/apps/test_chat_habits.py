"""What people bring from other chats: taking back, asking again, editing, copying, many lines, and ways to leave."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.chat_forms import write_model
from tests.scripted import sampler, script

import partita
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError
from partita_apps.chat import clipboard, editor
from partita_apps.chat.ask import is_open, quoted
from partita_apps.chat.commands import Leave, Send, help_, named_commands, perform, read
from partita_apps.conversation import session_file
from partita_apps.conversation.adapters import Adapters
from partita_apps.conversation.adapters import read as adapters_of
from partita_apps.conversation.local import CacheOptions, LocalConversation
from partita_apps.conversation.settings import Settings

from ..runtime.adapters.test_adapting import write

# Newer Pythons warn of fork in a process that has threads; the child here does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def talk_with(model, cache: CacheOptions | None = None, *, raw: bool = False, **settings) -> LocalConversation:
    return LocalConversation(model, Settings.of({"max_tokens": 8, **settings}), cache or CacheOptions(), raw=raw)


def reply(conversation: LocalConversation, text: str) -> str:
    return "".join(piece.text for piece in conversation.reply(text))


def sent(conversation: LocalConversation, line: str) -> Send:
    found = read(conversation, line)
    assert isinstance(found, Send)
    return found


# ---------------------------------------------------------------- what a line means


@pytest.mark.parametrize("word", ["exit", "quit", "bye", "/exit", "/quit", "/bye", "exit ", "bye\n"])
def test_ways_to_leave(tiny, word):
    with pytest.raises(Leave):
        read(talk_with(tiny), word)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (" exit", " exit"),
        ('"""exit"""', "exit"),
        ('"""/help"""', "/help"),
        ("exit the room", "exit the room"),
        ("Exit", "Exit"),
        ("//exit", "/exit"),
        ('"""one\ntwo"""', "one\ntwo"),
        ('"""\none\n\ntwo\n"""  ', "one\n\ntwo"),
        ('"""One line."""\nimport os', '"""One line."""\nimport os'),  # a Python file
        ('say """this"""', 'say """this"""'),
    ],
)
def test_what_is_sent_as_text(tiny, line, text):
    assert read(talk_with(tiny), line) == Send(text)


@pytest.mark.parametrize(
    ("text", "goes_on"),
    [
        ('"""', True),
        ('"""one', True),
        ('"""one """ two', True),
        ('""""', True),
        ('"""one"""', False),
        ('""""""', False),
        ('"""one\ntwo""" ', False),
        ('"""One."""\nimport os', False),
        ('one """', False),
        ("", False),
    ],
)
def test_where_a_text_of_many_lines_ends(text, goes_on):
    assert is_open(text) is goes_on
    assert not goes_on or quoted(text) is None


def test_a_mistyped_command_gets_the_one_it_resembles(tiny):
    conversation = talk_with(tiny)
    for typed, meant in (("/unod", "/undo"), ("/retyr", "/retry"), ("/coppy", "/copy"), ("/halp", "/help")):
        with pytest.raises(DataError, match=rf"unknown command {typed}; did you mean {meant}\?"):
            perform(conversation, typed)
    with pytest.raises(DataError, match=r"unknown command /etc/hosts: /help .* // "):
        perform(conversation, "/etc/hosts")
    for name, command in named_commands().items():
        if not command.arguments:
            with pytest.raises(DataError, match=rf"/{re.escape(name)} takes no argument"):
                perform(conversation, f"/{name} more")


@pytest.mark.parametrize("columns", [40, 80])
def test_help_is_readable(tiny, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_(talk_with(tiny), "").split("\n")
    assert max(map(len, lines)) <= columns
    rows = [line for line in lines if line.lstrip().startswith("/exit")]
    assert [line.strip().removesuffix("leave").strip() for line in rows] == ["/exit, /bye, /quit"]
    assert read(talk_with(tiny), "/?") == "\n".join(lines)


# ---------------------------------------------------------------- taking back


def test_what_is_taken_back_is_gone_from_messages_and_cache(tiny):
    conversation = talk_with(tiny)
    reply(conversation, "the fox")
    first, held = list(conversation.messages), len(conversation.session.tokens)
    again = reply(conversation, "and the dog")
    assert perform(conversation, "/undo") == "taken back: and the dog\n2 messages left"
    assert conversation.messages == first
    assert len(conversation.replies) == 1
    assert held - 1 <= len(conversation.session.tokens) <= held + 8  # and the marks that begin any turn
    assert "dog" not in tiny.tokenizer.decode(conversation.session.tokens)
    assert reply(conversation, "and the dog") == again
    assert conversation.session.reused >= held - 1
    perform(conversation, "/undo")
    assert perform(conversation, "/undo") == "taken back: the fox\nnothing is left"
    assert conversation.messages == conversation.replies == []
    with pytest.raises(DataError, match="no turn to take back"):
        perform(conversation, "/undo")
    assert reply(conversation, "the fox") == first[1]["content"]


@pytest.mark.parametrize("context", [48, 64, 512])
@pytest.mark.parametrize("kv", ["32", "k8v8"])
def test_a_greedy_reply_is_the_same_after_undo_whatever_was_forgotten(tiny_model, context, kv):
    conversation = talk_with(partita.load(tiny_model, backend="numpy"), CacheOptions(context=context, kv=kv))
    replies = [reply(conversation, text) for text in ("the fox", "and the dog", "then the other fox")]
    assert (conversation.session.forgotten > 0) is (context < 512)
    for _ in range(2):
        perform(conversation, "/undo")
    assert [reply(conversation, text) for text in ("and the dog", "then the other fox")] == replies[1:]
    with conversation.replacing():
        assert reply(conversation, "then the other fox") == replies[2]
    assert [message["content"] for message in conversation.messages[1::2]] == replies


def test_only_the_prompt_is_kept_for_a_retry(tiny):
    conversation = talk_with(tiny, temperature=1.0)
    reply(conversation, "the fox")
    what = sent(conversation, "/retry")
    assert what == Send("the fox", replaces=True)
    with conversation.replacing():
        reply(conversation, what.text)
    assert conversation.session.reused == conversation.prompt_tokens - 1
    assert len(conversation.messages) == 2


def test_a_retry_says_why_the_reply_is_the_same(tiny):
    conversation = talk_with(tiny)
    with pytest.raises(DataError, match="nothing to answer again"):
        perform(conversation, "/retry")
    reply(conversation, "the fox")
    assert "temperature is 0" in sent(conversation, "/retry").note
    perform(conversation, "/set temperature 0.7")
    assert sent(conversation, "/retry").note == ""
    perform(conversation, "/set seed 3")
    assert "seed is 3" in sent(conversation, "/retry").note


def test_a_turn_stays_where_no_reply_takes_its_place(tiny):
    conversation = talk_with(tiny)
    for text in ("the fox", "and the dog"):
        reply(conversation, text)
    before = conversation.messages

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), conversation.replacing():
        list(conversation.reply("the end", on_progress=stop))
    assert conversation.messages is before
    assert [found is None for found in conversation.replies] == [False, True]
    fresh = talk_with(tiny)
    fresh.take(before, fresh.settings)
    assert reply(conversation, "and then") == reply(fresh, "and then")


def test_thoughts_and_calls_are_taken_back_with_their_turn(tmp_path, monkeypatch):
    model = partita.load(write_model(tmp_path / "thinking", "thinking"), backend="numpy")
    call = '<tool_call>\n{"name": "write", "arguments": {"mode": 3}}\n</tool_call>'
    texts = [f"<think>\nThe fox.\n</think>\n\nIt jumps.\n{call}", f"<think>\nNo.\n</think>\n\n{call}", "Yes."]
    monkeypatch.setattr("partita.language_model.Sampler", sampler(script(model.tokenizer, *texts, ends=True)))
    conversation = talk_with(model, max_tokens=100)
    for text in ("the fox", "and"):
        list(conversation.reply(text))
    with pytest.raises(DataError, match="only thoughts or calls"):
        perform(conversation, "/copy")
    perform(conversation, "/undo")
    assert [call["id"] for message in conversation.messages for call in message.get("tool_calls", ())] == ["call00000"]
    with conversation.replacing():
        list(conversation.reply("the fox"))
    assert conversation.messages == [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "Yes."}]


def test_turns_of_another_adapter_are_taken_back(tiny_model, tmp_path):
    folder = write(tmp_path / "loud", open_checkpoint(tiny_model))
    adapters = Adapters(partita.load(tiny_model, backend="numpy"), adapters_of([str(folder)]))
    conversation = LocalConversation(adapters.model, Settings.of({"max_tokens": 8}), CacheOptions(), adapters=adapters)
    loud = reply(conversation, "the fox")
    perform(conversation, "/adapter none")
    plain = reply(conversation, "and the dog")
    for name, said in (("loud", None), ("none", plain)):
        perform(conversation, f"/adapter {name}")
        perform(conversation, "/undo")
        assert len(conversation.messages) == 2
        assert (reply(conversation, "and the dog") == plain) is (said == plain)
    assert conversation.messages[1]["content"] == loud


def test_raw_text_is_asked_again_and_copied_and_not_taken_back(tiny, monkeypatch):
    conversation = talk_with(tiny, raw=True)
    with pytest.raises(DataError, match="nothing to answer again"):
        perform(conversation, "/retry")
    said = reply(conversation, "the fox")
    assert sent(conversation, "/retry") == Send("the fox", note=sent(conversation, "/retry").note)
    with pytest.raises(DataError, match="--raw has none"):
        perform(conversation, "/undo")
    copied = []
    monkeypatch.setattr("partita_apps.chat.commands.copy", lambda text: copied.append(text) or "somewhere")
    assert perform(conversation, "/copy") == f"{len(said)} characters copied somewhere"
    assert copied == [said]
    perform(conversation, "/clear")
    with pytest.raises(DataError, match="no reply to copy"):
        perform(conversation, "/copy")


def test_a_session_file_is_without_what_was_taken_back(tiny, tmp_path):
    path, conversation = tmp_path / "talk.st", talk_with(tiny, system="the lazy dog")
    saved_file = session_file.SessionFile(conversation, path)
    for text in ("the fox", "and the dog"):
        reply(conversation, text)
    saved_file.save()
    for expected in (["the fox"], []):
        perform(conversation, "/undo")
        saved_file.save()
        found = session_file.find(path)
        assert found is not None
        assert [message["content"] for message in found.messages[::2]] == expected
        again = talk_with(tiny, system="the lazy dog")
        session_file.SessionFile(again, path).resume(found)
        assert again.session.tokens == conversation.session.tokens
        fresh = talk_with(tiny, system="the lazy dog")
        for text in expected:
            reply(fresh, text)
        assert reply(again, "the end") == reply(fresh, "the end")
        assert again.session.reused >= len(conversation.session.tokens)


def test_a_cleared_conversation_is_not_one_that_was_taken_back(tiny, tmp_path):
    path, conversation = tmp_path / "talk.st", talk_with(tiny)
    saved_file = session_file.SessionFile(conversation, path)
    reply(conversation, "the fox")
    saved_file.save()
    perform(conversation, "/undo")
    perform(conversation, "/clear")
    saved_file.save()
    found = session_file.find(path)
    assert found is not None
    assert len(found.messages) == 2


# ---------------------------------------------------------------- the editor and the clipboard


def program(path: Path, *lines: str) -> Path:
    """A shell script that can be run; $1 is its first argument."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, beside what a shell needs; no variable names an editor, a desktop, or ssh."""
    for name in ("VISUAL", "EDITOR", "DISPLAY", "WAYLAND_DISPLAY", "SSH_TTY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def test_a_text_is_edited_in_a_private_file_that_is_removed(nothing_installed, tmp_path, monkeypatch):
    lines = (f'echo "$2" > {tmp_path}/name', f'/bin/ls -l "$2" > {tmp_path}/mode', 'echo " more" >> "$2"')
    monkeypatch.setenv(
        "VISUAL", f"{program(tmp_path / 'an editor', *lines)} --wait".replace("an editor", "'an editor'")
    )
    monkeypatch.setenv("EDITOR", "nowhere")
    assert editor.edited("the\nfox") == "the\nfox\n more"
    assert (tmp_path / "mode").read_text().startswith("-rw-------")
    assert not Path((tmp_path / "name").read_text().strip()).exists()


@pytest.mark.parametrize("lines", [("exit 0",), (': > "$1"',), ('echo > "$1"',)], ids=["unsaved", "empty", "blank"])
def test_an_empty_or_unsaved_file_cancels(tiny, nothing_installed, monkeypatch, lines):
    monkeypatch.setenv("EDITOR", str(program(nothing_installed / "ed", *lines)))
    conversation = talk_with(tiny)
    reply(conversation, "the fox")
    assert perform(conversation, "/edit") == "Nothing was saved, so nothing is sent."
    assert len(conversation.messages) == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fail", "fail: Editing failed"),
        ("nowhere --wait", "EDITOR is 'nowhere --wait', and no such program is found"),
        ("'half", 'EDITOR is "\'half", which is not a command'),
        ("remove", "No such file"),
        ("binary", "the text is not UTF-8"),
        ("", "no editor is known: set EDITOR"),
    ],
)
def test_an_editor_that_is_missing_or_fails_is_one_line(tiny, nothing_installed, monkeypatch, command, words):
    program(nothing_installed / "fail", "exit 3")
    program(nothing_installed / "remove", '/bin/rm "$1"')
    program(nothing_installed / "binary", """printf '\\377' > "$1" """)
    monkeypatch.setenv("EDITOR", command)
    with pytest.raises(DataError) as caught:
        perform(talk_with(tiny), "/edit")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_which_editor(nothing_installed, monkeypatch):
    for name in ("nano", "vi", "one", "two"):
        program(nothing_installed / name)
    assert editor.chosen_editor() == "nano"
    monkeypatch.setenv("EDITOR", "one")
    monkeypatch.setenv("VISUAL", "two")
    assert editor.chosen_editor() == "two"
    monkeypatch.setenv("TERM", "dumb")
    assert editor.chosen_editor() == "one"
    monkeypatch.delenv("EDITOR")
    monkeypatch.delenv("VISUAL")
    with pytest.raises(DataError, match="no editor is known"):
        editor.chosen_editor()


def test_the_desktop_s_program_is_given_the_text(nothing_installed, tmp_path, monkeypatch, capsys):
    program(nothing_installed / "wl-copy", "exit 1")
    program(nothing_installed / "xclip", f"/bin/cat > {tmp_path}/board", f'echo "$@" > {tmp_path}/how')
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setenv("DISPLAY", ":0")
    assert clipboard.copy("the fox\né") == "with xclip"
    assert (tmp_path / "board").read_text() == "the fox\né"
    assert (tmp_path / "how").read_text() == "-selection clipboard\n"
    assert capsys.readouterr().out == ""


def test_the_terminal_is_given_the_text_where_the_desktop_is_elsewhere(nothing_installed, monkeypatch, capsys):
    program(nothing_installed / "xclip", "exit 0")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SSH_TTY", "/dev/pts/0")
    assert clipboard.copy("é\x07") == "through the terminal (OSC 52), if it allows that"
    assert capsys.readouterr().out == "\x1b]52;c;w6kH\x07"
    assert "no more than" in clipboard.copy("a" * 75_000)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(DataError, match="no clipboard is found"):
        clipboard.copy("the fox")


def test_a_program_that_does_not_end_is_not_waited_for(nothing_installed, monkeypatch, capsys):
    program(nothing_installed / "pbcopy", "exec /bin/sleep 60")
    monkeypatch.setattr(clipboard, "SECONDS", 0.1)
    assert "OSC 52" in clipboard.copy("the fox")
