"""What a person sees beside a reply: the bar while the prompt is read, lines that end between words, and the notes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

from partita.language_model import Piece
from partita.printable import visible

from ..conversation.conversation import Conversation
from ..progress import bar
from .trace import cells

_ASKED, _ANSWERED = 240, 600  # characters of the last turn that are shown when a conversation goes on


def pieces(
    conversation: Conversation,
    text: str,
    prompt: Sequence[int] | None,
    *,
    alternatives: int = 0,
    check: Callable[[], None] | None = None,
) -> Generator[Piece, None, None]:
    """The pieces of a reply; a bar while a long prompt is read. prompt: as `conversation.encode` gave it. check():
    called between its chunks, may raise."""
    with ExitStack() as stack:
        advance = stack.enter_context(bar("reading the prompt"))

        def progress(done: int, total: int) -> None:
            advance(done, total)
            if check is not None:
                check()

        with closing(conversation.reply(text, prompt=prompt, alternatives=alternatives, on_progress=progress)) as reply:
            for piece in reply:
                stack.close()
                yield piece


class Lines:
    """Breaks lines between words as text streams through, and shows what would act on a terminal. Waits with a word
    until it has ended, never with a line."""

    def __init__(self, width: int | None = None):
        self._width = width
        self._column = 0
        self._held = ""

    @property
    def begins(self) -> bool:
        """Whether the line that is being written is still empty."""
        return not self._held and self._column == 0

    def push(self, text: str) -> str:
        """What can be shown now."""
        words = re.split(r"(\r\n|\s)", self._held + text)
        self._held = words.pop()
        if not self._held and words and words[-1] == "\r":  # perhaps half of a line's end
            self._held = words.pop()
        shown = "".join(map(self._placed, words))
        if self._held and cells(self._held) > len(self._held):  # wide scripts have no spaces: let the terminal break
            shown += self.finish()
        return shown

    def finish(self) -> str:
        word, self._held = self._held, ""
        return self._placed(word)

    def _placed(self, word: str) -> str:
        """One word or one white space, with a line end in front or in its place where the line is full."""
        width = shutil.get_terminal_size().columns if self._width is None else self._width
        word = visible(word)
        if word == "\n":
            self._column = 0
            return word
        size = cells(word) if word != "\t" else 8 - self._column % 8
        fits = self._column + size <= width
        if fits or size > width:
            self._column = self._column + size if fits else (self._column + size - 1) % width + 1
            return word
        if word.isspace():
            self._column = 0
            return "\n"
        self._column = size
        return f"\n{word}"


class AsWritten:
    """Text as it is, for a terminal that breaks its lines itself; only what would act on it is shown instead."""

    def __init__(self) -> None:
        self._held = ""  # perhaps half of a line's end

    def push(self, text: str) -> str:
        """What can be shown now."""
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        return visible(text.removesuffix(self._held))

    def finish(self) -> str:
        held, self._held = self._held, ""
        return visible(held)


def last_turn(conversation: Conversation) -> str:
    """How a conversation that goes on left off: what was asked, and the end of the answer."""
    asked, answered = (visible(_said(message)).strip() for message in conversation.messages[-2:])
    if len(asked) > _ASKED:
        asked = asked[:_ASKED] + "…"
    if len(answered) > _ANSWERED:
        answered = "…" + answered[-_ANSWERED:]
    return f"> {asked}\n{answered}"


def _said(message: Mapping[str, Any]) -> str:
    """What was said; where that is nothing, what was done instead."""
    called = ", ".join(call["function"]["name"] for call in message.get("tool_calls", ()))
    return message["content"] or (
        f"→ {called}" if called else "(it only thought)" if "reasoning_content" in message else ""
    )


def longer_than_context(conversation: Conversation, prompt: Sequence[int] | None) -> str | None:
    """What a person should know before a prompt that does not fit is read. None also where a server encodes it."""
    context = conversation.about.context
    if prompt is None or context is None or len(prompt) <= context:
        return None
    lost = len(prompt) - context
    return (
        f"the prompt has {len(prompt)} tokens and the context {context}: {lost} of them are no longer seen "
        f"when the reply begins ({_kept(conversation)})"
    )


def forgets(conversation: Conversation) -> bool:
    """Whether the conversation is longer than the context."""
    return (conversation.state.forgotten or 0) > 0


def no_longer_seen(conversation: Conversation) -> str:
    """What a person should know once a conversation is longer than the context."""
    count, context = conversation.state.forgotten, conversation.about.context
    return (
        f"longer than the context of {context} tokens: {count} token{'s are' if count != 1 else ' is'} "
        f"no longer seen ({_kept(conversation)})"
    )


def _kept(conversation: Conversation) -> str:
    sinks = conversation.about.sinks
    return f"the first {sinks} and the latest stay" if sinks else "the latest stay"
