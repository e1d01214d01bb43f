"""From a chat of the history to what a reply is asked for. Data in, data out.

Invariants: only what a person chose goes into an `Ask`, the rest is the model's; a chat goes on when it outgrows the
context, without its oldest tokens, unless its settings say that it is refused then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from partita.errors import DataError
from partita.language_model import DEFAULT_MAX_TOKENS

from ...conversation.settings import SAMPLING, Settings
from ...conversation.stored_messages import asked_text
from ..asked import Ask, Refused
from .trace import RUNNERS_UP

if TYPE_CHECKING:
    from ...history import Chat, Message

ENDLESS = "endless"
"""The setting of a chat that says whether it goes on when the context is full; it does where the setting is not."""
NAMES = (*SAMPLING, "max_tokens", "stop", "system", "template_var", ENDLESS)
MOST_TEXT = 1 << 20  # characters of a system prompt
Json = dict[str, Any]


def checked(settings: Mapping[str, Any]) -> Json:
    """Settings of a chat or a preset as they are kept, without those that are null. Raises Refused."""
    given = {name: value for name, value in settings.items() if value is not None}
    unknown = next((name for name in given if name not in NAMES), None)
    if unknown is not None:
        raise Refused(f"unknown setting {unknown[:100]!r}; expected some of {', '.join(NAMES)}", field="settings")
    if not isinstance(given.get(ENDLESS, True), bool):
        raise Refused(f"`{ENDLESS}` must be true or false", field=ENDLESS)
    if len(str(given)) > MOST_TEXT:
        raise Refused(f"settings have more than {MOST_TEXT} characters", field="settings")
    _settings(given)
    return given


def _settings(given: Mapping[str, Any]) -> Settings:
    try:
        found = Settings.of({name: value for name, value in given.items() if name != ENDLESS})
    except DataError as error:
        raise Refused(str(error), field=error.field or "settings") from None
    if "tools" in found.template_var:
        raise Refused("`template_var`: tools cannot be called from a chat of the page", field="template_var")
    return found


def ask_of(chat: Chat, model: str, path: Sequence[Message], begins: Sequence[int] = ()) -> Ask:
    """What the reply behind a path is asked for. Raises Refused for settings that nobody could have chosen here."""
    given = {name: value for name, value in chat.settings.items() if name in NAMES and value is not None}
    settings = _settings(given)
    return Ask(
        model,
        messages=[*([{"role": "system", "content": settings.system}] if settings.system else []), *map(_said, path)],
        sampling={name: given[name] for name in SAMPLING if name in given},
        max_tokens=given.get("max_tokens", DEFAULT_MAX_TOKENS),
        stop=settings.stop,
        trace=RUNNERS_UP,
        variables=settings.template_var,
        begins=begins,
        endless=given.get(ENDLESS, True),
    )


def has_something(message: Message) -> bool:
    """Whether a model is to see a message: not a reply that ended before it began."""
    return message.role != "assistant" or bool(message.content or message.thought or message.calls)


def _said(message: Message) -> Json:
    """In the form that chat templates take; attached files stand in front of the text."""
    found: Json = {"role": message.role, "content": asked_text(message)}
    if message.thought:
        found["reasoning_content"] = message.thought
    if message.calls:
        found["tool_calls"] = message.calls
    return found
