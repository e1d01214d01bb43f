"""Chats as trees: what is added, what is changed, where a chat goes on, and what deleting and branching mean."""

from __future__ import annotations

import pytest

from partita.errors import DataError
from partita_apps.history import Chat, History, Message


def turn(history: History, chat: Chat, parent: str | None, text: str, reply: str) -> tuple[Message, Message]:
    asked = history.add(chat.id, parent=parent, role="user", content=text)
    return asked, history.add(chat.id, parent=asked.id, role="assistant", content=reply, model="m")


def said(messages: list[Message]) -> list[str]:
    return [each.content for each in messages]


def test_a_chat_goes_on_from_what_was_added_last(history):
    chat = history.create(model="m", settings={"temperature": 0.5})
    asked, replied = turn(history, chat, None, "the fox\nand more", "jumps")
    assert said(history.path(chat.id)) == ["the fox\nand more", "jumps"]
    found = history.chat(chat.id)
    assert (found.title, found.leaf, found.settings) == ("the fox and more", replied.id, {"temperature": 0.5})
    assert found.updated >= asked.created
    assert history.chats() == [found]


def test_an_edit_and_a_second_reply_are_siblings_and_nothing_is_lost(history):
    chat = history.create(model="m")
    asked, first = turn(history, chat, None, "one", "first")
    second = history.add(chat.id, parent=asked.id, role="assistant", content="second")
    edited, _ = turn(history, chat, None, "one, edited", "third")
    assert said(history.path(chat.id)) == ["one, edited", "third"]
    assert said(history.path(chat.id, second.id)) == ["one", "second"]
    history.change(chat.id, leaf=first.id)
    assert said(history.path(chat.id)) == ["one", "first"]
    assert [each.parent for each in history.messages(chat.id)] == [None, asked.id, asked.id, None, edited.id]


def test_a_running_reply_is_written_and_found_once_it_has_ended(history):
    chat = history.create(model="m", title="named")
    reply = history.add(chat.id, parent=None, role="assistant", state="running")
    history.write(reply.id, content="the quick", thought="hm", ids=[1, 2])
    assert history.message(reply.id).state == "running"
    assert history.search("quick") == []
    history.write(
        reply.id, content="the quick fox", ids=[1, 2, 3], state="length", meta={"seconds": 1.5}, calls=[{"id": 1}]
    )
    found = history.message(reply.id)
    assert (found.content, found.thought, found.ids, found.state) == ("the quick fox", "hm", (1, 2, 3), "length")
    assert (found.meta, found.calls) == ({"seconds": 1.5}, [{"id": 1}])
    assert [hit.message for hit in history.search("quick")] == [reply.id]
    history.write(reply.id, content="the slow fox")
    assert history.search("quick") == []
    assert [hit.message for hit in history.search("slow")] == [reply.id]


def test_what_does_not_fit_is_refused_and_leaves_nothing(history):
    chat, other = history.create(model="m"), history.create(model="m")
    elsewhere = history.add(other.id, parent=None, role="user", content="x")
    for call, words in (
        (lambda: history.chat("none"), "unknown chat 'none'"),
        (lambda: history.message("none"), "unknown message 'none'"),
        (lambda: history.add("none", parent=None, role="user"), "unknown chat 'none'"),
        (lambda: history.add(chat.id, parent=elsewhere.id, role="user"), "unknown message"),
        (lambda: history.add(chat.id, parent=None, role="king"), "expected one of user, assistant, tool"),
        (lambda: history.add(chat.id, parent=None, role="user", state="odd"), "state: expected one of done"),
        (lambda: history.add(chat.id, parent=None, role="user", meta={"a": float("nan")}), "meta: "),
        (lambda: history.add(chat.id, parent=None, role="user", ids=[-1]), "ids: "),
        (lambda: history.change(chat.id, leaf=elsewhere.id), "unknown message"),
        (lambda: history.change("none", title="x"), "unknown chat"),
        (lambda: history.write("none", content="x"), "unknown message"),
        (lambda: history.path(chat.id, elsewhere.id), "unknown message"),
        (lambda: history.branch("none"), "unknown message"),
        (lambda: history.chats(before="nowhere"), "unknown place"),
        (lambda: history.erase("none"), "unknown chat"),
    ):
        with pytest.raises(DataError, match=words):
            call()
    with pytest.raises(TypeError, match="cannot change id"):
        history.change(chat.id, id="mine")
    assert history.messages(chat.id) == []
    assert history.path(chat.id) == []
    assert history.chat(chat.id) == chat
