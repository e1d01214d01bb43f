"""Chats as trees: what is added, what is changed, where a chat goes on, and what deleting and branching mean."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

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


def test_the_list_is_in_order_and_goes_on_page_by_page(history):
    chats = [history.create(model="m", title=f"chat {i}", folder="work" if i % 2 else "") for i in range(7)]
    history.change(chats[2].id, pinned=True)
    history.change(chats[3].id, title="renamed")
    names = [chat.title for chat in history.chats()]
    assert names == ["chat 2", "chat 6", "chat 5", "chat 4", "renamed", "chat 1", "chat 0"]
    seen, before = [], None
    while page := history.chats(limit=3, before=before):
        seen, before = [*seen, *(chat.title for chat in page)], page[-1].cursor
    assert seen == names
    assert [chat.title for chat in history.chats(folder="work")] == ["chat 5", "renamed", "chat 1"]
    assert history.folders() == ["work"]


def test_a_deleted_chat_comes_back_until_it_is_purged(history):
    chat = history.create(model="m", title="the fox")
    turn(history, chat, None, "jumps", "high")
    history.delete(chat.id)
    assert history.chats() == history.search("fox") == history.search("high") == []
    assert [each.id for each in history.chats(deleted=True)] == [chat.id]
    history.restore(chat.id)
    assert [each.id for each in history.chats()] == [chat.id]
    assert len(history.search("fox")) == 1
    history.delete(chat.id)
    assert history.purge(time.time() - 60) == 0
    assert history.purge(time.time() + 60) == 1
    assert history.chats(deleted=True) == []
    with pytest.raises(DataError, match="unknown chat"):
        history.restore(chat.id)


def test_what_is_erased_is_in_no_file_any_more(history):
    kept, chat = history.create(model="m", title="kept"), history.create(model="m", title="of xylophones")
    turn(history, kept, None, "something else", "said")
    _, reply = turn(history, chat, None, "a zymurgy question", "a quokka answer " * 2000)
    history.put_trace(reply.id, [{"id": 1, "text": "numbat"}])
    history.erase(chat.id)
    history.close()
    data = b"".join(path.read_bytes() for path in history.file.parent.glob("history.sqlite3*"))
    assert b"something else" in data
    for word in (b"xylophone", b"zymurgy", b"quokka"):
        assert word not in data, word


def test_a_branch_is_a_copy_of_what_led_to_a_message(history):
    chat = history.create(model="m", settings={"seed": 3}, folder="work")
    _, first = turn(history, chat, None, "one", "two")
    history.put_trace(first.id, [{"id": 7}])
    turn(history, chat, first.id, "three", "four")
    fresh = history.branch(first.id)
    assert (fresh.title, fresh.settings, fresh.folder) == ("one (branch)", {"seed": 3}, "work")
    assert said(history.path(fresh.id)) == ["one", "two"]
    assert history.trace(fresh.leaf) == [{"id": 7}]
    assert history.traced(fresh.id) == {fresh.leaf}
    history.erase(fresh.id)
    assert said(history.path(chat.id)) == ["one", "two", "three", "four"]
    assert history.trace(first.id) == [{"id": 7}]


def test_presets_are_kept_by_name(history):
    history.put_preset("terse", {"max_tokens": 40})
    history.put_preset("Bright", {"temperature": 1.2})
    history.put_preset("terse", {"max_tokens": 50})
    assert history.presets() == {"Bright": {"temperature": 1.2}, "terse": {"max_tokens": 50}}
    history.drop_preset("Bright")
    assert list(history.presets()) == ["terse"]
    with pytest.raises(DataError, match="unknown preset 'Bright'"):
        history.drop_preset("Bright")
    with pytest.raises(DataError, match="needs a name"):
        history.put_preset(" \n", {})


def test_changes_are_noticed_whoever_makes_them(history):
    other = History.open(history.file)
    before = history.changes()
    assert history.changes() == before
    chat = other.create(model="m")
    seen = history.changes()
    assert seen != before
    history.change(chat.id, title="x")
    assert history.changes() != seen
    assert history.changes() == history.changes()
    other.close()


def test_threads_share_one_history(history):
    chat = history.create(model="m")

    def work(number: int) -> list[str]:
        parent = None
        for i in range(10):
            parent = history.add(chat.id, parent=parent, role="user", content=f"{number}:{i}").id
        return said(history.path(chat.id, parent))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[f"{n}:{i}" for i in range(10)] for n in range(4)]
    assert len(history.messages(chat.id)) == 40
