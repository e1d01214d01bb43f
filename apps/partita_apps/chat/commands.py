"""What a line that begins with a slash does. A command is a function from the talk and the rest of the line to text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from partita.errors import DataError
from partita.paths import own
from partita.sampling import Sampling

from ..progress import size
from .saved import Saved, load, save
from .settings import NAMES, SAMPLING, usual_sampling
from .talk import Talk


class Leave(Exception):
    """The person wants to go."""


@dataclass(frozen=True)
class Command:
    arguments: str
    summary: str
    run: Callable[[Talk, str], str]


def perform(talk: Talk, line: str) -> str:
    """What to tell the person. Raises DataError for what cannot be done, Leave for /exit."""
    name, _, rest = line.removeprefix("/").partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise DataError(f"/{name} is no command: /help lists them, and // in front sends a text that begins with /")
    return command.run(talk, rest.strip())


def help_(talk: Talk, rest: str) -> str:
    rows = [(f"/{name} {command.arguments}".rstrip(), command.summary) for name, command in COMMANDS.items()]
    rows += KEYS
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left:<{width}}  {right}" for left, right in rows)


def set_(talk: Talk, rest: str) -> str:
    name, _, value = rest.partition(" ")
    if not name:
        raise DataError(f"/set NAME VALUE changes one of {', '.join(NAMES)}; /show shows them")
    name = name.replace("-", "_")
    talk.change(talk.settings.set_text(name, value.strip()))
    return ". ".join([f"{name}: {shown(talk.settings.get(name))}", *talk.unread()])


def show(talk: Talk, rest: str) -> str:
    if rest == "thoughts":
        thought = talk.messages[-1].get("reasoning_content") if talk.messages else None
        return thought or "There are no thoughts in the latest reply."
    if rest:
        raise DataError(f"/show {rest}: there is only /show, and /show thoughts for those of the latest reply")
    model, session = talk.model, talk.session
    slots, spec, memory = session.cache.slots(), session.cache.spec, model.ops.memory()
    held = f"{slots.sinks} sinks, {slots.window} in the window, {slots.free} free, {session.forgotten} forgotten"
    rows = [
        ("model", f"{model.name}, {model.config.num_layers} layers"),
        ("file", str(model.path)),
        ("adapter", talk.adapters.current),
        ("backend", f"{model.ops.name} on {model.ops.device}, {model.ops.dtype}"),
        ("context", f"{spec.context} tokens, of these {spec.sinks} sinks"),
        ("cache", f"--kv {spec.kv}, {size(session.cache.nbytes)}: {held}"),
        ("memory", f"{size(memory.active)} in use, {size(memory.free)} of {size(memory.total)} free"),
        ("messages", str(len(talk.messages))),
        *((name, f"{shown(talk.settings.get(name))}{source(talk, name)}") for name in NAMES),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def source(talk: Talk, name: str) -> str:
    """Whose choice a setting is, where it is nobody's in this conversation."""
    usual, whose = usual_sampling(talk.model.recommended)
    if name not in SAMPLING or getattr(usual, name) == getattr(Sampling, name):
        return ""
    return f" ({whose})" if talk.settings.get(name) == getattr(usual, name) else ""


def adapter(talk: Talk, rest: str) -> str:
    if rest:
        talk.use_adapter(rest)
    others = [name for name in talk.adapters.names if name != talk.adapters.current]
    return f"adapter: {talk.adapters.current}" + (f"; there are also {', '.join(others)}" if others else "")


def clear(talk: Talk, rest: str) -> str:
    talk.clear()
    return "A new conversation."


def save_(talk: Talk, rest: str) -> str:
    path = named(rest, "/save")
    save(Saved(talk.model.name, talk.settings, talk.messages), path)
    return f"{counted(len(talk.messages))} saved to {path}"


def load_(talk: Talk, rest: str) -> str:
    path = named(rest, "/load")
    if talk.raw:
        raise DataError("/load goes on with a conversation, and --raw has none: start without --raw")
    saved = load(path)
    talk.take(saved.messages, saved.settings)
    other = "" if saved.model == talk.model.name else f"; it was held with {saved.model}"
    return f"{counted(len(saved.messages))} loaded from {path}{other}"


def exit_(talk: Talk, rest: str) -> str:
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
    if isinstance(value, dict):
        return ", ".join(f"{name}={json.dumps(item, ensure_ascii=False)}" for name, item in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(repr, value))
    return str(value)


COMMANDS = {
    "help": Command("", "this list", help_),
    "set": Command("NAME VALUE", "change a setting; none takes system, stop, seed and template_var away", set_),
    "show": Command("[thoughts]", "settings, model, cache and memory; or what was thought for the latest reply", show),
    "adapter": Command("NAME", "use another of the adapters given with --adapter, or none", adapter),
    "clear": Command("", "a new conversation", clear),
    "save": Command("FILE", "write the conversation to a file", save_),
    "load": Command("FILE", "go on with a saved conversation", load_),
    "exit": Command("", "leave", exit_),
}
KEYS = [
    ("//text", "send a text that begins with /"),
    ("Enter", "send"),
    ("Alt+Enter, \\ Enter", "a new line"),
    ("Ctrl-C", "stop the reply; at the prompt clear the line, twice leave"),
    ("Ctrl-D", "leave"),
]
