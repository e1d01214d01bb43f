"""`partita chat --server` with our own server: one chat in the terminal, on its pages and in the history."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pexpect
import pytest

from partita.engine.request import Failed
from partita.errors import DataError, SourceError
from partita_apps.chat.commands import Send, read
from partita_apps.chat.interactive import kept
from partita_apps.conversation.app_client import AppClient, of_this_machine
from partita_apps.conversation.client import Address, Client
from partita_apps.conversation.conversation import asked
from partita_apps.conversation.remote import RemoteConversation
from partita_apps.conversation.settings import Settings
from partita_apps.conversation.shared import SharedConversation, SharedRecord
from partita_apps.conversation.stats import ReplyStats
from partita_apps.conversation.stored_messages import said
from partita_apps.history import History, Message
from partita_apps.serve.app.asks import ask_of

from ..terminals import PARTITA, Terminal, terminal_environment
from .app.page import Page
from .scripted import Script
from .served import Served, until
from .test_chat_server_command import PROMPT, say, until_prompt

Serve = Callable[..., Served]
SLOW = Script("the quick brown fox jumps over the lazy dog", pause=0.05)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    (tmp_path / "data").mkdir()
    found = History.open(tmp_path / "data" / "history.sqlite3")
    yield found
    found.close()


def begin(server: Served, history: History, **settings: Any) -> SharedConversation:
    address = Address.parse(server.url)
    app = of_this_machine(address, history.file)
    assert app is not None
    conversation = SharedConversation(Client(address), app, None, Settings.of(settings), tuple(settings))
    conversation.record = SharedRecord(conversation, lambda: history)
    return conversation


def tell(conversation: SharedConversation, line: str, stop: int = 0, alternatives: int = 0) -> ReplyStats:
    """What a line of the terminal does; a reply is stopped after some pieces that say something."""
    meant, stats, heard = read(conversation, line), ReplyStats(conversation), 0
    assert isinstance(meant, Send)
    replacing = conversation.replacing() if meant.replaces else nullcontext()
    reply = conversation.reply(meant.text, alternatives=alternatives)
    with replacing, kept(conversation, meant.text, stats) as keep, closing(reply):
        for piece in reply:
            stats.add(piece)
            keep()
            heard += bool(piece.text)
            if stop and heard == stop:
                break
    return stats


def path(conversation: SharedConversation, history: History) -> list[Message]:
    record = conversation.record
    assert record is not None
    assert record.chat is not None
    return history.path(record.chat.id)


def matches(conversation: SharedConversation, history: History) -> bool:
    return [said(each) for each in path(conversation, history)] == conversation.messages


def test_a_turn_is_a_run_of_the_page(served: Serve, history: History, tmp_path: Path) -> None:
    server = served([Script("the **quick**\n\nbrown fox", reused=2), Script("jumps")], data=tmp_path / "data")
    talk = begin(server, history, system="be brief", max_tokens=40)
    first = tell(talk, "the fox")
    assert first.text == "the **quick**\n\nbrown fox"
    assert first.finish_reason == "stop"
    assert (talk.state.tokens, talk.state.reused) == (first.count, 2)
    tell(talk, "and the dog")
    assert matches(talk, history)
    assert [each.state for each in path(talk, history)] == ["done"] * 4
    page = Page(server)
    (chat,) = page.get("/app/chats")["chats"]
    assert (chat["title"], chat["model"], chat["settings"]) == (
        "the fox",
        "tiny",
        {"system": "be brief", "max_tokens": 40},
    )
    assert page.get(f"/app/chats/{chat['id']}")["messages"][1]["has_trace"]


def test_siblings_are_the_trees(served: Serve, history: History, tmp_path: Path, monkeypatch: Any) -> None:
    server = served([Script(text) for text in ("one", "two", "three", "four")], data=tmp_path / "data")
    talk = begin(server, history)
    tell(talk, "the fox")
    tell(talk, "/retry")
    monkeypatch.setattr("partita_apps.chat.commands.edited", lambda text: f"{text}es")
    tell(talk, "/edit")
    assert matches(talk, history)
    tree = history.messages(path(talk, history)[0].chat)
    assert [(each.content, each.parent is None) for each in tree] == [
        *(("the fox", True), ("one", False), ("two", False)),
        *(("the foxes", True), ("three", False)),
    ]
    read(talk, "/undo")
    tell(talk, "something else")
    assert matches(talk, history)
    assert len(history.chats()) == 1


def test_stopped_here_and_there(served: Serve, history: History, tmp_path: Path) -> None:
    server = served([Script("the quick brown fox", holds=True), SLOW], data=tmp_path / "data")
    talk, page = begin(server, history), Page(server)
    stopped = tell(talk, "the fox", stop=1)
    assert stopped.finish_reason is None
    assert matches(talk, history)
    assert path(talk, history)[-1].state == "stopped"
    until(lambda: server.worker.cancelled)

    def stop_there() -> None:
        until(lambda: page.get("/app/state")["runs"])
        (run,) = page.get("/app/state")["runs"]
        until(lambda: history.message(run["reply"]).content)
        page.post(f"/app/runs/{run['run']}/stop")

    thread = threading.Thread(target=stop_there)
    thread.start()
    there = tell(talk, "and the dog")
    thread.join()
    assert there.finish_reason is None
    assert there.text
    assert path(talk, history)[-1].state == "stopped"
    assert matches(talk, history)


def test_a_reply_that_does_not_begin_leaves_no_chat(served: Serve, history: History, tmp_path: Path) -> None:
    server = served(
        [Script(holds=True), Script("jumps"), Script("", fails=Failed(0, "no room", "internal"))],
        data=tmp_path / "data",
    )
    talk = begin(server, history)

    def check(done: int, total: int) -> None:
        if server.worker.requests:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), kept(talk, "never", ReplyStats(talk)):
        list(talk.reply("never", on_progress=check))
    assert (history.chats(), talk.messages) == ([], [])
    tell(talk, "the fox")
    with pytest.raises(SourceError, match="no room"):
        tell(talk, "again")
    assert matches(talk, history)
    assert len(talk.messages) == 2


def test_a_chat_in_which_a_page_is_writing_shows_it_going_on(served: Serve, history: History, tmp_path: Path) -> None:
    server = served([Script("jumps"), SLOW, Script("more")], data=tmp_path / "data")
    page = Page(server)
    chat = page.chat()
    page.reply(chat, "first")
    started = page.send(chat, "the fox")
    until(lambda: history.message(started["reply"]).content)
    talk = begin(server, history)
    whole = tell(talk, f"/open {chat}")
    assert whole.text == "the quick brown fox jumps over the lazy dog"
    assert [each["content"] for each in talk.messages[::2]] == ["first", "the fox"]
    assert matches(talk, history)
    tell(talk, "and then")
    assert matches(talk, history)
    assert len(history.messages(chat)) == 6


def test_a_chat_that_has_a_run_takes_no_other(served: Serve, history: History, tmp_path: Path) -> None:
    server = served([Script("jumps"), Script("the fox", holds=True)], data=tmp_path / "data")
    talk, page = begin(server, history), Page(server)
    tell(talk, "first")
    run = page.send(path(talk, history)[0].chat, "from the page")
    with pytest.raises(SourceError, match="a reply of this chat is being written"):
        tell(talk, "from the terminal")
    page.post(f"/app/runs/{run['run']}/stop")
    assert len(talk.messages) == 2


def test_nothing_is_kept_while_the_history_is_off(served: Serve, history: History, tmp_path: Path) -> None:
    server = served([Script("one"), Script("two"), Script("three")], data=tmp_path / "data")
    talk = begin(server, history)
    tell(talk, "the fox")
    read(talk, "/set history off")
    assert tell(talk, "a secret").text == "two"
    read(talk, "/set history on")
    tell(talk, "in the open")
    assert [each.content for each in path(talk, history)] == ["the fox", "one", "in the open", "three"]
    assert history.search("secret") == []


def test_a_trace_has_tokens_and_runners_up(served: Serve, history: History, tmp_path: Path) -> None:
    talk = begin(served(Script("the quick brown fox"), data=tmp_path / "data"), history)
    stats = tell(talk, "the fox", alternatives=5)
    assert stats.text == "the quick brown fox"
    assert len(stats.trace) == stats.count
    assert "".join(row["text"] for row in stats.trace).replace("Ġ", " ").strip() == "the quick brown fox"
    assert stats.trace[0]["alternatives"]


def test_which_servers_are_ours(served: Serve, history: History, tmp_path: Path) -> None:
    ours, other = served(data=tmp_path / "data"), served(data=tmp_path / "other")
    file = history.file
    assert isinstance(of_this_machine(Address.parse(ours.url), file), AppClient)
    assert of_this_machine(Address.parse(other.url), file) is None
    assert of_this_machine(Address.parse("http://192.0.2.1:1234"), file) is None
    (tmp_path / "data" / "page-token").unlink()
    assert of_this_machine(Address.parse(ours.url), file) is None


def test_a_file_is_read_alike_by_the_page_and_the_terminal(history: History) -> None:
    chat = history.create(model="m")
    message = history.add(
        chat.id, parent=None, role="user", content="what is it", attachments=[{"name": 'a "b".txt', "text": " x\n"}]
    )
    ask = ask_of(chat, "m", [message])
    assert list(ask.messages or ()) == [asked(said(message)["content"])]
    assert said(message)["content"] == "<file name=\"a 'b'.txt\">\nx\n</file>\n\nwhat is it"


@pytest.fixture
def start(tmp_path: Path, terminal: Terminal) -> Callable[..., pexpect.spawn]:
    """start(url, *options) is a chat with a server of the same data folder, at its prompt if not told otherwise."""

    def spawn(url: str, *options: object, wait: str = PROMPT) -> pexpect.spawn:
        own = terminal_environment(tmp_path, "PARTITA_API_KEY", PARTITA_DATA=str(tmp_path / "data"))
        return terminal([PARTITA, "chat", "--server", url, *map(str, options)], own, wait)

    return spawn


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_terminal_and_a_page_in_one_chat(
    served: Serve, history: History, start: Callable[..., pexpect.spawn], tmp_path: Path
) -> None:
    held = Script("the quick brown fox", holds=True)
    server = served([Script("jumps"), held, held], data=tmp_path / "data")
    page = Page(server)
    child = start(server.url)
    assert "jumps" in say(child, "the fox")
    (chat,) = page.get("/app/chats")["chats"]
    child.kill(signal.SIGKILL)
    run = page.send(chat["id"], "asked by the page")
    child = start(server.url, "--continue", wait="being written")
    assert "> the fox" in str(child.before)
    assert "> asked by the page" in str(child.before)
    child.expect("the quick brown")
    page.post(f"/app/runs/{run['run']}/stop")
    assert "stopped" in until_prompt(child)
    child.send("and now\r")
    child.expect("the quick brown")
    (run,) = page.get("/app/state")["runs"]
    child.send("\x03")
    assert "stopped" in until_prompt(child)
    assert page.told(run["run"])[-1].data["state"] == "stopped"
    child.sendeof()
    child.expect(pexpect.EOF)
    assert len(history.messages(chat["id"])) == 6


def test_the_history_of_a_server_without_one_is_the_terminals(served: Serve, history: History) -> None:
    server = served(Script("jumps"))  # it keeps nothing
    file = history.file
    assert of_this_machine(Address.parse(server.url), file) is None
    talk = RemoteConversation(Client(Address.parse(server.url)), None, Settings.of({"max_tokens": 4}))
    with pytest.raises(DataError, match="no conversations to keep"):
        read(talk, "/history")
