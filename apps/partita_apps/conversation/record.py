"""A conversation's place in the history of chats: what is said is kept while it is said, and a chat is gone on with.

Not here: how replies are made and shown. Invariants: what was said while the history is off is never kept; a text whose
reply did not begin is on no path; what is taken back or answered again stays in the history as a sibling; a history
that fails in mid-conversation is switched off, and `trouble` says so, but the conversation goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from partita.errors import DataError, PartitaError

from .conversation import NONE, Conversation
from .settings import KEPT, Settings
from .stats import ReplyStats
from .stored_messages import asked_text, fields, said, turns

if TYPE_CHECKING:
    from ..history import Chat, History, Hit, Message

EVERY = 0.25
"""Seconds of a reply that are lost, at most, when the process is killed."""
_STATES = {"length": "length", "stop": "done"}


@dataclass(frozen=True)
class Place:
    """Where a text belongs in a chat: behind `parent`, or as the message `asked`, which says just that there already.
    before: the leaf, should it come to nothing. fresh: whether the chat was made for it."""

    chat: str
    parent: str | None
    asked: str | None
    before: str | None
    fresh: bool


class Record:
    """opening(): the history, asked for once it is on. on: whether it is from the beginning."""

    def __init__(self, conversation: Conversation, opening: Callable[[], History], *, on: bool = True) -> None:
        self._conversation, self._opening = conversation, opening
        self._history: History | None = None
        self._on = False
        self.chat: Chat | None = None
        """Where the conversation is kept; None before its first turn."""
        self.trouble = ""
        self.live: str | None = None
        """The text whose reply is being written by a server while the chat is opened: to be sent, which shows it."""
        self.is_first = False
        """Whether there was no chat at all when it was opened."""
        self._known: list[tuple[Mapping[str, Any], str]] = []  # messages of the conversation, and their ids
        self._unkept: list[Mapping[str, Any]] = []
        self._listed: list[str] = []  # chats, as numbered last
        if on:
            self.switch(True)
            self.is_first = not self.history.chats(limit=1)

    @property
    def on(self) -> bool:
        return self._on

    @property
    def history(self) -> History:
        """Raises DataError where it cannot be used."""
        if self._history is None:
            self._history = self._opening()
        return self._history

    def close(self) -> None:
        if self._history is not None:
            self._history.close()

    def switch(self, on: bool) -> None:
        """Keep what is said from now on, or nothing more. What was said while it was off stays out for good."""
        if on and not self._on:
            known = {id(message) for message, _ in self._known}
            self._unkept = [each for each in self._conversation.messages if id(each) not in known]
            assert self.history is not None  # opened here, so that a folder that cannot be used is reported at once
        self._on = on

    def leave(self) -> None:
        """What is said next is another chat."""
        self.chat, self._known, self._unkept, self.live = None, [], [], None

    def settle(self) -> None:
        """Where the conversation stands now, after anything but a turn: its last message, and its settings."""
        if not self._on or self.chat is None or self.live is not None:
            return
        known = {id(message): ident for message, ident in self._known}
        kept = [known[id(each)] for each in self._conversation.messages if id(each) in known]
        changes: dict[str, Any] = {}
        if (leaf := kept[-1] if kept else None) != self.chat.leaf:
            changes["leaf"] = leaf
        if (settings := self._settings()) != self.chat.settings:
            changes["settings"] = settings
        if changes:
            with self._trying():
                self.chat = self.history.change(self.chat.id, **changes)

    @contextmanager
    def turn(self, text: str, stats: ReplyStats) -> Iterator[Callable[[], None]]:
        """A text and its reply, which the block computes; it calls the function that it is given after every piece."""
        begun: _Turn | None = None
        if self._on:
            with self._trying():
                begun = self._begin(text, stats)
        if begun is None:
            yield lambda: None
            return
        before, state = self._conversation.messages, "stopped"
        error: dict[str, Any] | None = None

        def write() -> None:
            if self._on:
                with self._trying():
                    begun.write()

        try:
            yield write
            state = _STATES.get(stats.finish_reason or "", "stopped")
        except PartitaError as found:
            state, error = "failed", {"message": str(found), "type": "failed", "field": found.field}
            raise
        finally:
            with self._trying():
                if self._conversation.messages is before:
                    self._drop(begun, state, error)
                else:
                    self._end(begun, state, error)

    # What a person asks of it

    def listed(self, words: str, limit: int) -> list[tuple[Chat, str]]:
        """The latest chats, or those in which the words are found, with what was found. `pick` takes their numbers."""
        found: dict[str, str] = {}
        if words:
            hits: Sequence[Hit] = self.history.search(words, limit=limit * 4)
            for hit in hits:
                if len(found) < limit or hit.chat in found:
                    found[hit.chat] = found.get(hit.chat) or (hit.snippet if hit.message is not None else "")
        else:
            found = {chat.id: "" for chat in self.history.latest(limit)}
        self._listed = list(found)
        return [(self.history.chat(ident), snippet) for ident, snippet in found.items()]

    def pick(self, name: str) -> Chat:
        """A chat by its number in the last list, or by its id. Raises DataError."""
        if name.isdecimal() and len(name) < 4:
            listed = self._listed or [chat.id for chat in self.history.latest(int(name))]
            if not 1 <= int(name) <= len(listed):
                raise DataError(f"there is no chat {name} in the list: /history shows it")
            return self.history.chat(listed[int(name) - 1])
        return self.history.chat(name)

    def open(self, chat: Chat, given: Mapping[str, Any] | None = None, path: Sequence[Message] | None = None) -> str:
        """Go on with a chat under its settings, and say what a person should know of it. given: settings that count
        more. path: its messages, where they are not those that it goes on from. Raises DataError for a chat that cannot
        be gone on with here; the conversation is then as it was."""
        if chat.deleted is not None:
            raise DataError(f"the chat {chat.title or chat.id} was deleted")
        kept = turns(self.history.path(chat.id) if path is None else path)
        settings, chosen, note = self._with({**_known(chat.settings), **(given or {})}, given or {})
        messages = [said(message) for message in kept]
        self._conversation.take(messages, settings)
        self._conversation.chosen = chosen
        self._known = list(zip(messages, (message.id for message in kept), strict=True))
        self.chat, self._on = chat, True
        if path is None:
            self.settle()
        return note

    def rename(self, title: str) -> str:
        """Raises DataError where nothing is kept yet."""
        if self.chat is None:
            raise DataError("this conversation is not kept yet, so there is nothing to rename: send a text first")
        self.chat = self.history.change(self.chat.id, title=title)
        return self.chat.title

    # Turns

    def placed(self, text: str) -> Place:
        """Where a text belongs, in a chat that is made for it where there is none; it is not written yet."""
        fresh = self.chat is None
        if self.chat is None:
            self.chat = self.history.create(model=self.model, settings=self._settings())
        chat = self.chat.id
        parent = self._caught_up(chat)
        before = self.history.chat(chat).leaf
        beside = (each for each in self.history.messages(chat) if each.parent == parent and each.role == "user")
        return Place(chat, parent, next((each.id for each in beside if asked_text(each) == text), None), before, fresh)

    @property
    def model(self) -> str:
        """What a chat is held with."""
        return self._conversation.about.model

    def _begin(self, text: str, stats: ReplyStats) -> _Turn:
        place, about = self.placed(text), self._conversation.about
        asked = place.asked
        if asked is None:
            asked = self.history.add(place.chat, parent=place.parent, role="user", content=text).id
        name = about.model if about.adapter == NONE else f"{about.model}:{about.adapter}"
        reply = self.history.add(place.chat, parent=asked, role="assistant", state="running", model=name)
        self.chat = self.history.chat(place.chat)
        return _Turn(self.history, stats, asked, reply.id, place.before, place.fresh)

    def _end(self, turn: _Turn, state: str, error: dict[str, Any] | None) -> None:
        asked, answer = self._conversation.messages[-2:]
        stats = turn.stats
        ids = [] if any(token < 0 for token in stats.tokens) else stats.tokens
        meta = {**self._meta(stats), **({"error": error} if error else {})}
        own = {name: value for name, value in fields(answer).items() if name != "role"}
        self.history.write(turn.reply, **own, ids=ids, state=state, meta=meta)
        self._known += [(asked, turn.asked), (answer, turn.reply)]

    def _drop(self, turn: _Turn, state: str, error: dict[str, Any] | None) -> None:
        """The reply did not begin: its text is no part of the conversation."""
        if self.chat is None:
            return
        if turn.fresh:
            self.history.erase(self.chat.id)
            self.leave()
            return
        self.history.write(turn.reply, state=state, meta={"error": error} if error else {})
        self.chat = self.history.change(self.chat.id, leaf=turn.before)

    def _caught_up(self, chat: str) -> str | None:
        """The message that the next one follows, after what was not said here (`/load`) has been kept, too."""
        known, parent = {id(message): ident for message, ident in self._known}, None
        for each in self._conversation.messages:
            ident = known.get(id(each))
            if ident is None and not any(each is other for other in self._unkept):
                ident = self.history.add(chat, parent=parent, **fields(each)).id
                self._known.append((each, ident))
            parent = ident or parent
        return parent

    def _meta(self, stats: ReplyStats) -> dict[str, Any]:
        state, about = self._conversation.state, self._conversation.about
        found = {
            "tokens": stats.count,
            "thought_tokens": stats.thought_count,
            "tokens_per_second": stats.tokens_per_second,
            "prompt_tokens": state.prompt_tokens,
            "cached_tokens": state.reused,
            "context": about.context,
            "held": state.held,
            "forgotten": state.forgotten,
            "cache_bytes": state.cache_bytes,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _settings(self) -> dict[str, Any]:
        """Those that a person chose; those of the page that mean nothing here stay."""
        document = self._conversation.settings.document()
        others = {} if self.chat is None else {n: value for n, value in self.chat.settings.items() if n not in KEPT}
        return others | {name: document[name] for name in KEPT if name in self._conversation.chosen}

    def _with(self, given: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[Settings, set[str], str]:
        """Settings, the names of those that were chosen, and a note where what is kept cannot be used."""
        now, note = self._conversation.settings, ""
        try:
            settings = Settings.over(self._conversation.usual[0], given)
        except DataError as error:
            settings, given = Settings.over(self._conversation.usual[0], own), own
            note = f"its settings cannot be used and are left out: {error}"
        shown = {"thoughts": now.thoughts, "plain": now.plain, "stats": now.stats}
        return replace(settings, **shown), set(given), note

    @contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            self._on, self.trouble = False, f"what is said from now on is not kept: {error}"


class _Turn:
    """A text and its reply on their way into the history. before: the leaf, should it come to nothing. fresh: whether
    the chat was made for it."""

    def __init__(
        self, history: History, stats: ReplyStats, asked: str, reply: str, before: str | None, fresh: bool
    ) -> None:
        self.stats, self.asked, self.reply, self.before, self.fresh = stats, asked, reply, before, fresh
        self._history, self._then = history, time.monotonic()

    def write(self) -> None:
        """What has been said so far, unless that was just done."""
        if time.monotonic() - self._then < EVERY:
            return
        ids = [] if any(token < 0 for token in self.stats.tokens) else self.stats.tokens
        self._history.write(self.reply, content=self.stats.text, thought=self.stats.thought, ids=ids)
        self._then = time.monotonic()


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in KEPT}


def record_of(conversation: Conversation) -> Record | None:
    """Where a conversation is kept; None where it has no place in the history."""
    found = conversation.record
    assert found is None or isinstance(found, Record)
    return found
