"""What a line means: a text for the model, a command that begins with a slash, or a wish to leave.

A command is a function from the conversation and the rest of the line to what the person is shown, or to a text to be
answered.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from partita.errors import DataError
from partita.files.paths import own
from partita.inference.sampling import Sampling

from ..aliases import alike
from ..conversation.conversation import Conversation
from ..conversation.record import record_of
from ..conversation.saved import Saved, load, save
from ..conversation.settings import NAMES, SAMPLING
from .ask import QUOTES, quoted
from .clipboard import copy
from .editor import edited
from .kept import HISTORY, history, history_rows, open_chat, rename, switch
from .show import last_turn

WORDS = ("exit", "quit", "bye")  # alone on a line they leave


class Leave(Exception):
    """The person wants to go."""


@dataclass(frozen=True)
class Send:
    """A text to be answered. replaces: in the place of the last turn. note: what the person is shown before."""

    text: str
    replaces: bool = False
    note: str = ""


@dataclass(frozen=True)
class Command:
    """also: its other names."""

    arguments: str
    summary: str
    run: Callable[[Conversation, str], str | Send]
    also: tuple[str, ...] = ()


def read(conversation: Conversation, line: str) -> str | Send:
    """What to tell the person, or to ask the model. Errors as `perform`; Leave for a word that stands for it."""
    block = quoted(line)
    if block is not None:
        return Send(block)
    if line.rstrip() in WORDS:
        raise Leave
    if not line.startswith("/"):
        return Send(line)
    return Send(line[1:]) if line.startswith("//") else perform(conversation, line.strip())


def perform(conversation: Conversation, line: str) -> str | Send:
    """What a command has to say or to ask. Raises DataError for what cannot be done, Leave for /exit."""
    name, _, rest = line.removeprefix("/").partition(" ")
    command = named_commands().get(name)
    if command is None:
        found = " or ".join(f"/{word}" for word in alike(name, named_commands()))
        known = f"; did you mean {found}? /help lists them" if found else ": /help lists them"
        raise DataError(f"unknown command /{name}{known}, and // in front sends a text that begins with /")
    if rest.strip() and not command.arguments:
        raise DataError(f"/{name} takes no argument; // in front sends a text that begins with /")
    return command.run(conversation, rest.strip())


def named_commands() -> dict[str, Command]:
    """The commands by all their names."""
    return {each: command for name, command in COMMANDS.items() for each in (name, *command.also)}


def help_(conversation: Conversation, rest: str) -> str:
    rows = [(f"{names(name)} {command.arguments}".rstrip(), command.summary) for name, command in COMMANDS.items()]
    return beside([*rows, *KEYS])


def names(first: str) -> str:
    return ", ".join(f"/{name}" for name in (first, *COMMANDS[first].also))


def beside(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns; on a narrow terminal the right one below the left one, so that its lines stay readable."""
    columns, left = shutil.get_terminal_size().columns, max(len(left) for left, _ in rows)
    if columns < left + 40:
        return "\n".join(f"{a}\n{indented(b, ' ' * 4, max(columns, 20))}" for a, b in rows)
    return "\n".join(f"  {a:<{left}}  {indented(b, ' ' * (left + 4), columns).lstrip()}" for a, b in rows)


def indented(text: str, margin: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent=margin, subsequent_indent=margin)


def set_(conversation: Conversation, rest: str) -> str:
    name, _, value = rest.partition(" ")
    if name == HISTORY:
        return switch(conversation, value.strip())
    if not name:
        raise DataError(f"/set NAME VALUE changes one of {', '.join((*NAMES, HISTORY))}; /show shows them")
    name = name.replace("-", "_")
    conversation.set(name, value.strip())
    return ". ".join([f"{name}: {shown(conversation.settings.get(name))}", *conversation.unread()])


def show(conversation: Conversation, rest: str) -> str:
    if rest == "thoughts":
        thought = conversation.messages[-1].get("reasoning_content") if conversation.messages else None
        return thought or "There are no thoughts in the latest reply."
    if rest:
        raise DataError(f"unknown /show {rest}; expected /show, or /show thoughts for those of the latest reply")
    rows = [
        *conversation.described(),
        ("messages", str(len(conversation.messages))),
        *history_rows(conversation),
        *((name, setting(conversation, name)) for name in NAMES),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def setting(conversation: Conversation, name: str) -> str:
    """Its value, and whose choice it is where it is nobody's in this conversation."""
    if name in conversation.delegated:
        return "the server's"
    value, (usual, whose) = conversation.settings.get(name), conversation.usual
    if name not in SAMPLING or getattr(usual, name) == getattr(Sampling, name) or value != getattr(usual, name):
        return shown(value)
    return f"{shown(value)} ({whose})"


def adapter(conversation: Conversation, rest: str) -> str:
    if rest:
        conversation.use_adapter(rest)
    current = conversation.about.adapter
    others = [name for name in conversation.adapters if name != current]
    return f"adapter: {current}" + (f"; there are also {', '.join(others)}" if others else "")


def clear(conversation: Conversation, rest: str) -> str:
    conversation.clear()
    return "A new conversation."


def save_(conversation: Conversation, rest: str) -> str:
    path = named(rest, "/save")
    save(Saved(conversation.about.model, conversation.settings, conversation.messages), path)
    return f"{counted(len(conversation.messages))} saved to {path}"


def load_(conversation: Conversation, rest: str) -> str:
    path = named(rest, "/load")
    if conversation.raw:
        raise DataError("/load goes on with a conversation, and --raw has none: start without --raw")
    saved = load(path)
    conversation.take(saved.messages, saved.settings)
    other = "" if saved.model == conversation.about.model else f"; it was held with {saved.model}"
    shown = f"{last_turn(conversation)}\n" if conversation.messages else ""
    return f"{shown}{counted(len(saved.messages))} loaded from {path}{other}"


def undo(conversation: Conversation, rest: str) -> str:
    if conversation.raw:
        raise DataError("/undo takes back a turn of a conversation, and --raw has none: each text stands by itself")
    text = conversation.undo()
    record = record_of(conversation)
    if record is not None:
        record.settle()
    left = f"{counted(len(conversation.messages))} left" if conversation.messages else "nothing is left"
    return f"taken back: {brief(text, 60)}\n{left}"


def retry(conversation: Conversation, rest: str) -> Send:
    if not conversation.latest:
        raise DataError("there is nothing to answer again: send a text first")
    return Send(conversation.latest[0]["content"], replaces=not conversation.raw, note=unvaried(conversation))


def unvaried(conversation: Conversation) -> str:
    """Why the same text is given the same reply; nothing where chance decides."""
    settings = conversation.settings
    if settings.sampling.temperature == 0 and "temperature" not in conversation.delegated:
        return "temperature is 0: a text is given the same reply every time; /set temperature 0.7 varies it"
    if settings.sampling.seed is not None:
        return (
            f"seed is {settings.sampling.seed}, which gives a text the same reply every time; /set seed none varies it"
        )
    return ""


def edit(conversation: Conversation, rest: str) -> str | Send:
    if rest not in ("", "new"):
        raise DataError(f"unknown /edit {rest}; expected /edit, for the last text, or /edit new")
    again = bool(conversation.latest) and not rest
    text = edited(conversation.latest[0]["content"] if again else "")
    if text is None:
        return "Nothing was saved, so nothing is sent."
    return Send(text, replaces=again and not conversation.raw, note=f"sent: {brief(text, 240)}")


def open_(conversation: Conversation, rest: str) -> str | Send:
    shown = open_chat(conversation, rest)
    return waiting(conversation, f"{shown}\n") or shown


def waiting(conversation: Conversation, shown: str = "") -> Send | None:
    """What is to be sent where a server is writing in a chat that was opened: that shows its reply as it comes."""
    record = record_of(conversation)
    if record is None or record.live is None:
        return None
    return Send(record.live, note=f"{shown}> {brief(record.live, 240)}\nits reply is being written; Ctrl-C stops it")


def copy_(conversation: Conversation, rest: str) -> str:
    if not conversation.latest:
        raise DataError("there is no reply to copy yet")
    text = conversation.latest[1]["content"]
    if not text:
        raise DataError("the latest reply says nothing that could be copied: it is only thoughts or calls")
    return f"{len(text)} character{'s' * (len(text) != 1)} copied {copy(text)}"


def brief(text: str, most: int) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"


def exit_(conversation: Conversation, rest: str) -> str:
    raise Leave


def named(rest: str, command: str) -> Path:
    if not rest:
        raise DataError(f"{command} needs the name of a file")
    return own(rest)


def counted(messages: int) -> str:
    return f"{messages} message{'s' * (messages != 1)}"


def shown(value: object) -> str:
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ", ".join(f"{name}={json.dumps(item, ensure_ascii=False)}" for name, item in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(repr, value))
    return str(value)


COMMANDS = {
    "help": Command("", "this list", help_, also=("?",)),
    "set": Command("NAME VALUE", "change a setting; none takes system, stop, seed and template_var away", set_),
    "show": Command("[thoughts]", "settings, model, cache and memory; or what was thought for the latest reply", show),
    "retry": Command("", "answer the last text again", retry),
    "undo": Command("", "take the last turn back; again: the one before", undo),
    "edit": Command("[new]", "change the last text in your editor and answer it again; new: write another", edit),
    "copy": Command("", "put the latest reply into the clipboard", copy_),
    "adapter": Command("NAME", "use another of the adapters given with --adapter, or none", adapter),
    "clear": Command("", "a new conversation", clear),
    "history": Command("[WORDS]", "the chats that are kept, or those in which the words are found", history),
    "open": Command("N", "go on with a chat of /history, by its number or its id", open_),
    "rename": Command("TITLE", "give this chat another title", rename),
    "save": Command("FILE", "write the conversation to a file", save_),
    "load": Command("FILE", "go on with a saved conversation", load_),
    "exit": Command("", "leave", exit_, also=("bye", "quit")),
}
KEYS = [
    ("//text", "send a text that begins with /"),
    (QUOTES, f"begin a text of many lines, which ends with {QUOTES} and is sent as it is"),
    (", ".join(WORDS), "leave, alone on a line; a space in front sends the word"),
    ("Enter", "send"),
    ("Alt+Enter, \\ Enter", "a new line"),
    ("Ctrl-C", "stop the reply; at the prompt clear the line, twice leave"),
    ("Ctrl-D", "leave"),
]
