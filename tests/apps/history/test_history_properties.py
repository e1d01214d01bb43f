"""The history beside a plain model of it, over any order of what can be done to it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from partita_apps.history import History

TEXT = st.text(max_size=20)


def clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class Trees(RuleBasedStateMachine):
    """parents, said, leaves, gone: what should be there, by ids."""

    chats = Bundle("chats")
    messages = Bundle("messages")

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.history = History.open(self.folder / "h")
        self.parents: dict[str, dict[str, str | None]] = {}
        self.said: dict[str, str] = {}
        self.leaves: dict[str, str | None] = {}
        self.gone: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "history"):
            self.history.close()
            shutil.rmtree(self.folder)

    @rule(target=chats, title=TEXT)
    def create(self, title: str) -> str:
        chat = self.history.create(model="m", title=title)
        self.parents[chat.id], self.leaves[chat.id] = {}, None
        return chat.id

    @rule(target=messages, chat=chats, text=TEXT, data=st.data(), state=st.sampled_from(["done", "running"]))
    def add(self, chat: str, text: str, data: st.DataObject, state: str) -> tuple[str, str]:
        parent = data.draw(st.sampled_from([None, *self.parents[chat]]))
        role = "user" if state == "done" else "assistant"
        found = self.history.add(chat, parent=parent, role=role, content=text, state=state)
        self.parents[chat][found.id], self.said[found.id] = parent, clean(text)
        self.leaves[chat] = found.id
        return chat, found.id

    @rule(message=messages, text=TEXT, state=st.sampled_from(["done", "running", "stopped"]))
    def write(self, message: tuple[str, str], text: str, state: str) -> None:
        self.history.write(message[1], content=text, state=state)
        self.said[message[1]] = clean(text)

    @rule(message=messages)
    def go(self, message: tuple[str, str]) -> None:
        self.history.change(message[0], leaf=message[1])
        self.leaves[message[0]] = message[1]

    @rule(target=chats, message=messages)
    def branch(self, message: tuple[str, str]) -> str:
        before = self.history.path(*message)
        chat = self.history.branch(message[1])
        copies = self.history.path(chat.id)
        assert [(each.role, each.content) for each in copies] == [(each.role, each.content) for each in before]
        self.parents[chat.id] = {each.id: each.parent for each in copies}
        self.said |= {each.id: each.content for each in copies}
        self.leaves[chat.id] = chat.leaf
        return chat.id

    @rule(chat=chats, back=st.booleans())
    def delete(self, chat: str, back: bool) -> None:
        self.history.delete(chat)
        self.gone.add(chat)
        if back:
            self.history.restore(chat)
            self.gone.discard(chat)

    @rule()
    def again(self) -> None:
        self.history.close()
        self.history = History.open(self.folder / "h")

    @rule(target=chats, chat=chats)
    def out_and_in(self, chat: str) -> str:
        (fresh,) = self.history.import_(self.history.export([chat]))
        old, new = self.history.messages(chat), self.history.messages(fresh.id)
        assert [each.content for each in old] == [each.content for each in new]
        self.parents[fresh.id] = {each.id: each.parent for each in new}
        self.said |= {each.id: each.content for each in new}
        self.leaves[fresh.id] = fresh.leaf
        return fresh.id

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "history"):
            return
        assert {chat.id for chat in self.history.chats()} == self.parents.keys() - self.gone
        for chat, parents in self.parents.items():
            found = self.history.messages(chat)
            assert {each.id: each.parent for each in found} == parents
            assert {each.id: each.content for each in found} == {each: self.said[each] for each in parents}
            path, leaf = [], self.leaves[chat]
            while leaf is not None:
                path, leaf = [leaf, *path], parents[leaf]
            assert [each.id for each in self.history.path(chat)] == path


TestTrees = Trees.TestCase
TestTrees.settings = settings(max_examples=12, stateful_step_count=15)
