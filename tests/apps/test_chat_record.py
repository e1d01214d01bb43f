"""Conversations and what the history has of them: turns, siblings, settings, switching off, and failures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest

from partita.errors import DataError, PartitaError
from partita_apps.chat.commands import Send, read
from partita_apps.chat.interactive import kept
from partita_apps.conversation.local import CacheOptions, LocalConversation
from partita_apps.conversation.record import Record
from partita_apps.conversation.settings import Settings
from partita_apps.conversation.stats import ReplyStats
from partita_apps.conversation.stored_messages import asked_text, fields, said
from partita_apps.history import History, Message


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    found = History.open(tmp_path / "history.sqlite3")
    yield found
    found.close()


@pytest.fixture
def talk(tiny, history: History) -> LocalConversation:
    return begin(tiny, history)


def begin(model: Any, history: History, *, on: bool = True, **settings: Any) -> LocalConversation:
    conversation = LocalConversation(model, Settings.of({"max_tokens": 4, **settings}), CacheOptions())
    conversation.chosen = {"max_tokens", *settings}
    conversation.record = Record(conversation, lambda: history, on=on)
    return conversation


def say(conversation: LocalConversation, line: str, stop: int = 0) -> str | None:
    """What a line of the terminal does; a reply is stopped after some pieces."""
    meant = read(conversation, line)
    if isinstance(meant, str):
        record(conversation).settle()
        return meant
    assert isinstance(meant, Send)
    stats = ReplyStats(conversation)
    replacing = conversation.replacing() if meant.replaces else nullcontext()
    with replacing, kept(conversation, meant.text, stats) as keep, closing(conversation.reply(meant.text)) as reply:
        for i, piece in enumerate(reply, 1):
            stats.add(piece)
            keep()
            if i == stop:
                break
    return None


def record(conversation: LocalConversation) -> Record:
    assert conversation.record is not None
    return conversation.record


def path(conversation: LocalConversation, history: History) -> list[Message]:
    chat = record(conversation).chat
    return [] if chat is None else history.path(chat.id)


def texts(messages: list[Message]) -> list[str]:
    return [each.content for each in messages]


def matches(conversation: LocalConversation, history: History) -> bool:
    """Whether the history's path is the conversation."""
    return [said(each) for each in path(conversation, history)] == conversation.messages


def test_turns_are_kept_as_they_are_said(talk, history):
    say(talk, "the fox")
    say(talk, "and the dog", stop=2)
    found = path(talk, history)
    assert matches(talk, history)
    assert [each.state for each in found] == ["done", "length", "done", "stopped"]
    assert [list(each.ids) for each in found[1::2]] == talk.replies
    assert found[1].meta["tokens"] == 4
    assert found[1].model == history.chats()[0].model == talk.model.name
    assert history.chats()[0].title == "the fox"


def test_undo_retry_and_edit_add_siblings(talk, history, monkeypatch):
    say(talk, "the fox")
    first = path(talk, history)
    say(talk, "and the dog")
    say(talk, "/undo")
    assert texts(path(talk, history)) == texts(first)
    say(talk, "and the dog")  # the same text in the same place is the same message
    monkeypatch.setattr("partita_apps.chat.commands.edited", lambda text: f"{text}s")
    say(talk, "/retry")
    say(talk, "/edit")
    assert matches(talk, history)
    tree = history.messages(path(talk, history)[0].chat)
    assert [(each.role, each.content) for each in tree if each.role == "user"] == [
        ("user", "the fox"),
        ("user", "and the dog"),
        ("user", "and the dogs"),
    ]
    asked = next(each for each in tree if each.content == "and the dog")
    assert sum(each.parent == asked.id for each in tree) == 3
    say(talk, "/undo")
    say(talk, "/undo")
    assert path(talk, history) == []
    assert len(history.messages(asked.chat)) == len(tree)
    say(talk, "something else")  # in the same chat, as a second beginning
    assert len(history.chats()) == 1


def test_clear_begins_another_chat_and_open_goes_back(talk, history):
    say(talk, "the fox")
    before = talk.messages
    say(talk, "/clear")
    say(talk, "the dog")
    assert len(history.chats()) == 2
    listed = say(talk, "/history")
    assert listed is not None
    assert [line.split()[-1] for line in listed.splitlines()[:2]] == ["dog", "fox"]
    assert "the fox: 2 messages" in str(say(talk, "/open 2"))
    assert talk.messages == before
    say(talk, "and more")
    assert matches(talk, history)
    assert len(history.chats()) == 2
    assert "the dog: 2 messages" in str(say(talk, f"/open {history.latest(2)[1].id}"))


def test_words_are_searched_for(talk, history):
    say(talk, "the quick fox")
    say(talk, "/clear")
    say(talk, "the lazy dog")
    found = str(say(talk, "/history lazy"))
    assert "the lazy dog" in found
    assert "quick" not in found
    assert say(talk, "/history zebra") == "nothing is found"
    assert "2 messages" in str(say(talk, "/open 1"))  # of that which was listed last, when something was
    with pytest.raises(DataError, match="there is no chat 9 in the list"):
        read(talk, "/open 9")
    with pytest.raises(DataError, match="unknown chat 'nonsense'"):
        read(talk, "/open nonsense")
    with pytest.raises(DataError, match="/open needs the number"):
        read(talk, "/open")


def test_settings_that_were_chosen_come_back(tiny, history):
    talk = begin(tiny, history, temperature=0.0)
    say(talk, "the fox")
    say(talk, "/set system be brief")
    say(talk, "/set plain on")
    other = begin(tiny, history, min_p=0.5)
    say(other, "/set plain on")
    say(other, "/open 1")
    assert other.settings == talk.settings
    assert other.chosen == {"max_tokens", "temperature", "system"}
    assert history.chats()[0].settings == {"temperature": 0.0, "max_tokens": 4, "system": "be brief"}
    say(other, "/set seed 3")
    assert history.chats()[0].settings["seed"] == 3
    given = begin(tiny, history)
    record(given).open(history.chats()[0], {"temperature": 0.5})
    assert (given.settings.sampling.temperature, given.settings.system) == (0.5, "be brief")


def test_settings_that_cannot_be_used_are_left_out_and_said(talk, history):
    chat = history.create(model="m", settings={"temperature": "hot", "colour": "red"})
    talk_before = talk.settings.max_tokens
    assert "its settings cannot be used and are left out: `temperature`" in str(say(talk, f"/open {chat.id}"))
    assert talk.settings.max_tokens != talk_before  # neither are those of the chat before


def test_what_is_said_while_it_is_off_is_never_kept(talk, history):
    say(talk, "the fox")
    assert "what was said before stays there (the fox)" in str(say(talk, "/set history off"))
    say(talk, "a secret")
    say(talk, "/undo")
    say(talk, "another secret")
    assert texts(path(talk, history))[::2] == ["the fox"]
    assert "history: on" in str(say(talk, "/set history on"))
    say(talk, "and the dog")
    assert texts(path(talk, history))[::2] == ["the fox", "and the dog"]
    assert history.search("secret") == []
    say(talk, "/set history off")
    say(talk, "/clear")
    say(talk, "more secrets")
    say(talk, "/set history on")
    say(talk, "in the open")
    assert history.search("secret") == []
    assert texts(path(talk, history))[::2] == ["in the open"]


def test_a_chat_without_history_opens_no_file(tiny, tmp_path):
    conversation = LocalConversation(tiny, Settings.of({"max_tokens": 2}), CacheOptions())
    conversation.record = Record(conversation, lambda: History.open(tmp_path / "h"), on=False)
    say(conversation, "the fox")
    assert list(tmp_path.iterdir()) == []
    say(conversation, "/set history on")
    say(conversation, "the dog")
    assert [chat.title for chat in record(conversation).history.chats()] == ["the dog"]
    record(conversation).close()


def test_a_loaded_conversation_is_a_new_chat_with_all_of_it(talk, history, tmp_path):
    say(talk, "the fox")
    read(talk, f"/save {tmp_path / 'talk.json'}")
    say(talk, "/clear")
    say(talk, f"/load {tmp_path / 'talk.json'}")
    assert len(history.chats()) == 1  # until something is said
    say(talk, "and the dog")
    assert len(history.chats()) == 2
    assert matches(talk, history)
    assert len(talk.messages) == 4


def test_a_reply_that_does_not_begin_is_no_part_of_a_chat(talk, history):
    def refuse(*arguments: Any, **options: Any) -> None:
        raise DataError("no room")

    for first in (True, False):
        if not first:
            say(talk, "the fox")
        before, generate = path(talk, history), talk.session.generate
        talk.session.generate = refuse
        with pytest.raises(PartitaError, match="no room"):
            say(talk, "never answered")
        talk.session.generate = generate
        assert path(talk, history) == before
        assert len(history.chats()) == (0 if first else 1)
    failed = history.messages(history.chats()[0].id)[-1]
    assert (failed.state, failed.meta["error"]["message"]) == ("failed", "no room")


def test_a_reply_is_in_the_file_while_it_comes(talk, history, monkeypatch):
    monkeypatch.setattr("partita_apps.conversation.record.EVERY", 0.0)
    other, seen = History.open(history.file), []
    stats = ReplyStats(talk)
    with kept(talk, "the fox", stats) as keep:
        for piece in talk.reply("the fox"):
            stats.add(piece)
            keep()
            (chat,) = other.chats()
            asked, reply = other.path(chat.id)
            seen.append((asked.content, reply.state, reply.content == stats.text, len(reply.ids)))
    assert seen[:4] == [("the fox", "running", True, i) for i in range(1, 5)]
    other.close()


def test_a_history_that_fails_is_switched_off_and_the_chat_goes_on(talk, history):
    say(talk, "the fox")
    history.close()
    say(talk, "and the dog")
    assert len(talk.messages) == 4
    assert not record(talk).on
    assert "what is said from now on is not kept: the history" in record(talk).trouble


def test_chats_that_the_terminal_cannot_go_on_with(talk, history):
    say(talk, "the fox")
    before = talk.messages
    tools, running = history.create(model="m"), history.create(model="m")
    asked = history.add(tools.id, parent=None, role="user", content="x")
    history.add(tools.id, parent=asked.id, role="tool", content="y")
    asked = history.add(running.id, parent=None, role="user", content="x")
    history.add(running.id, parent=asked.id, role="assistant", state="running")
    for chat, words in ((tools, "results of tools"), (running, "is being written by another program")):
        with pytest.raises(DataError, match=words):
            read(talk, f"/open {chat.id}")
    history.delete(tools.id)
    with pytest.raises(DataError, match="was deleted"):
        read(talk, f"/open {tools.id}")
    assert talk.messages is before
    assert record(talk).chat is not None


def test_texts_without_replies_stay_out(talk, history):
    chat = history.create(model="m")
    asked = history.add(
        chat.id, parent=None, role="user", content="one", attachments=[{"name": "a.txt", "text": "file"}]
    )
    reply = history.add(chat.id, parent=asked.id, role="assistant", content="two")
    unanswered = history.add(chat.id, parent=reply.id, role="user", content="three")
    for state in (None, "interrupted"):
        if state is not None:
            history.add(chat.id, parent=unanswered.id, role="assistant", state=state)
        say(talk, f"/open {chat.id}")
        assert [each["content"] for each in talk.messages] == [asked_text(asked), "two"]
        assert "file" in asked_text(asked)
    say(talk, "/set max_tokens 2")
    say(talk, "four")
    assert [each.content for each in path(talk, history)][:3] == ["one", "two", "four"]


def test_calls_and_thoughts_go_in_and_come_out(history):
    call = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": {"city": "Oslo"}}}
    message = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]}
    chat = history.create(model="m")
    found = history.add(chat.id, parent=None, **fields(message))
    assert json.loads(found.calls[0]["function"]["arguments"]) == {"city": "Oslo"}
    assert said(found) == message
    odd = history.add(
        chat.id, parent=None, role="assistant", calls=[{"type": "error"}, {"function": {"name": "f", "arguments": "{"}}]
    )
    assert said(odd) == {"role": "assistant", "content": ""}


def test_rename_and_show(talk, history):
    with pytest.raises(DataError, match="send a text first"):
        read(talk, "/rename x")
    assert "a new chat in" in str(say(talk, "/show"))
    say(talk, "the fox")
    assert say(talk, "/rename  All about\tfoxes ") == "title: All about foxes"
    assert history.chats()[0].title == "All about foxes"
    assert "All about foxes (" in str(say(talk, "/show"))
    say(talk, "/set history off")
    assert "history             off" in str(say(talk, "/show"))
