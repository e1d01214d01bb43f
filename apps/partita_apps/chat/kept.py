"""The commands of the chat that are about the history of chats: list, search, open, rename, and switching it off."""

from __future__ import annotations

import shutil
import time

from partita.errors import DataError
from partita.printable import printable

from ..conversation.conversation import Conversation
from ..conversation.record import Record, record_of
from ..conversation.settings import switched
from ..history import Chat
from ..history.search import END, MARK
from .show import last_turn
from .trace import cells, fitted

HISTORY = "history"
"""The name under which /set switches it."""
LISTED = 20
_DAY = 86_400


def history(conversation: Conversation, rest: str) -> str:
    """The list, or what is found."""
    record = _record(conversation)
    found = record.listed(rest, LISTED)
    if not found:
        return "nothing is found" if rest else "no chat is kept yet"
    width, lines = max(shutil.get_terminal_size().columns, 40), list[str]()
    for number, (chat, snippet) in enumerate(found, 1):
        here = "*" if record.chat is not None and record.chat.id == chat.id else " "
        lines.append(_cut(f"{number:>3}{here} {when(chat.updated):>6}  {title(chat)}", width))
        if snippet:
            lines.append(_cut(f"{'':>13}{_plain(snippet)}", width))
    return "\n".join([*lines, f"/open N goes on with one; they are in {record.history.file}"])


def open_chat(conversation: Conversation, rest: str) -> str:
    """Go on with another chat, and show how it left off."""
    if not rest:
        raise DataError("/open needs the number of a chat, which /history shows, or its id")
    record = _record(conversation)
    chat = record.pick(rest)
    note = record.open(chat)
    return opened(conversation, chat, note)


def opened(conversation: Conversation, chat: Chat, note: str) -> str:
    """What a person is shown of a chat that goes on."""
    shown = [last_turn(conversation)] if conversation.messages else []
    count = len(conversation.messages)
    other = "" if chat.model in ("", conversation.about.model) else f"; it was held with {chat.model}"
    shown.append(f"{title(chat)}: {count} message{'s' * (count != 1)}{other}")
    return "\n".join([*shown, *([note] if note else [])])


def rename(conversation: Conversation, rest: str) -> str:
    if not rest:
        raise DataError("/rename needs a title")
    return f"title: {_record(conversation).rename(rest)}"


def switch(conversation: Conversation, value: str) -> str:
    """/set history on or off, and what that means for what was said."""
    record, on = _record(conversation), switched(HISTORY, value)
    before = len(conversation.messages)
    record.switch(on)
    if on:
        unkept = f"; the {before} messages so far are kept only as far as it was on" if before else ""
        return f"history: on, in {record.history.file}{unkept}"
    stays = "" if record.chat is None else f"; what was said before stays there ({title(record.chat)})"
    return f"history: off, nothing that is said from now on is kept{stays}"


def history_rows(conversation: Conversation) -> list[tuple[str, str]]:
    """For /show."""
    record = record_of(conversation)
    if record is None:
        return []
    if not record.on:
        return [(HISTORY, "off")]
    place = "a new chat" if record.chat is None else f"{title(record.chat)} ({record.chat.id})"
    return [(HISTORY, f"{place} in {record.history.file}")]


def title(chat: Chat) -> str:
    return printable(chat.title) or "untitled"


def when(moment: float) -> str:
    """The time of today, else the day; the year of an older one. Six cells, at most."""
    then, now = time.localtime(moment), time.localtime()
    if then[:3] == now[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%b %d" if now[0] == then[0] else "%Y", then)


def _record(conversation: Conversation) -> Record:
    record = record_of(conversation)
    if record is None:
        raise DataError("--raw has no conversations to keep: start without --raw")
    return record


def _plain(snippet: str) -> str:
    return printable(" ".join(snippet.replace(MARK, "").replace(END, "").split()))


def _cut(line: str, width: int) -> str:
    return line if cells(line) <= width else fitted(line, width).rstrip()
