"""A conversation: messages and settings, whoever computes the replies. Writes and reads no terminal.

`local.py` computes them here, `remote.py` asks a server. Invariant: messages hold whole turns only, a user's text
followed by what the model said to it, however it ended.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from partita.errors import DataError
from partita.inference.sampling import Sampling

from .settings import KEPT, Settings

if TYPE_CHECKING:
    from partita.cache.state import Slots
    from partita.inference.speculative import Acceptance
    from partita.language_model import Piece

NONE = "none"
"""The adapter of a model without one."""


@dataclass(frozen=True)
class About:
    """The model of a conversation and its cache. None: nobody says. server: its address, None where the model is here.

    context, sinks: tokens. kv: bits of cached keys and values, in the words of `KVFormat`; bytes_per_token: of them.
    """

    model: str
    adapter: str = NONE
    server: str | None = None
    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    context: int | None = None
    sinks: int | None = None
    kv: str | None = None
    bytes_per_token: float | None = None


@dataclass(frozen=True)
class State:
    """Where a conversation stands after its last reply, in tokens and bytes. None: nobody says.

    prompt_tokens: of the last prompt, the whole conversation included; reused: of them, not read again. tokens: of the
    last reply, thought_tokens: of them, where the reply itself does not show them. held: all that were read or written;
    seen: of them, what the model still sees; forgotten: what it no longer does. slots: of the cache. peak_bytes: the
    most memory on the device so far.
    """

    prompt_tokens: int | None = None
    reused: int | None = None
    tokens: int | None = None
    thought_tokens: int | None = None
    held: int | None = None
    seen: int | None = None
    forgotten: int | None = None
    slots: Slots | None = None
    cache_bytes: int | None = None
    peak_bytes: int | None = None


class Kept(Protocol):
    """A conversation's place in the history of chats, as far as a conversation itself knows it (`record.record_of`)."""

    def leave(self) -> None:
        """What is said from now on is another chat."""
        ...


class Conversation(ABC):
    """emptied: whether there are no messages because the first turn was taken back. chosen: names of the settings that
    a person gave. record: its place in the history of chats; None where there is none, as for one reply."""

    raw = False
    """Whether there is no template and no memory: each text is completed by itself."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.messages: list[dict[str, Any]] = []
        self.emptied = False
        self.chosen: set[str] = set()
        self.record: Kept | None = None

    @property
    @abstractmethod
    def about(self) -> About: ...

    @property
    @abstractmethod
    def state(self) -> State: ...

    @property
    def usual(self) -> tuple[Sampling, str]:
        """How this model's conversations sample unless they are given other settings, and whose word that is."""
        return Sampling(), ""

    @property
    def delegated(self) -> frozenset[str]:
        """Names of settings that a server decides, as long as nobody else does."""
        return frozenset()

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a reply and are no part of it."""
        return frozenset()

    @property
    def acceptance(self) -> Acceptance | None:
        """How the drafts of the last reply did; None without a drafter."""
        return None

    @property
    @abstractmethod
    def adapters(self) -> list[str]:
        """Names that `use_adapter` takes."""

    @abstractmethod
    def use_adapter(self, name: str) -> None:
        """Go on with another adapter. Raises DataError for a name that is not there."""

    @abstractmethod
    def described(self) -> list[tuple[str, str]]:
        """Names and values for a person who asks what this conversation is held with."""

    @abstractmethod
    def token_text(self, token: int) -> str:
        """A token of a reply, or of its alternatives, as text."""

    @abstractmethod
    def encode(self, text: str) -> Sequence[int] | None:
        """Ids of the conversation with `text` as its next turn; None where a server encodes it.

        Raises DataError for an empty text.
        """

    @abstractmethod
    def reply(
        self,
        text: str,
        *,
        prompt: Sequence[int] | None = None,
        alternatives: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Generator[Piece, None, None]:
        """The model's answer, piece by piece. Closed early, what was said so far stays in the conversation.

        prompt: what `encode` gave for the text, where it has been asked already. on_progress(done, total): called until
        the reply begins, with a total of 0 where it is not known; raising from it stops the reading of the prompt.
        """

    @property
    def latest(self) -> list[dict[str, Any]]:
        """The last turn, what was asked and what was answered; empty where nothing was said yet."""
        return self.messages[-2:]

    def clear(self) -> None:
        """A new conversation with the same settings."""
        self.messages, self.emptied = [], False
        if self.record is not None:
            self.record.leave()

    def undo(self) -> str:
        """Take the last turn back and return what was asked in it. Raises DataError where there is no turn."""
        if not self.messages:
            raise DataError("there is no turn to take back")
        text, left = self.messages[-2]["content"], self.messages[:-2]
        self.messages, self.emptied = left, not left
        return text

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """What is asked inside takes the place of the last turn, which stays if no reply begins."""
        messages = self.messages
        self.messages = messages[:-2]
        try:
            yield
        finally:
            if len(self.messages) < len(messages):
                self.messages = messages

    def change(self, settings: Settings) -> None:
        """Other settings from now on. Another system prompt is read at the next turn, with all that follows it."""
        self.settings = settings

    def set(self, name: str, text: str) -> None:
        """Change one setting to what a person typed. Raises DataError."""
        self.change(self.settings.set_text(name, text))
        self.chosen.add(name)

    def unread(self) -> list[str]:
        """A line where the chat template has no use for something that it is given."""
        return []

    def take(self, messages: list[dict[str, Any]], settings: Settings) -> None:
        """Go on with another conversation."""
        self.messages, self.emptied = messages, False
        self.change(settings)
        self.chosen |= set(KEPT)
        if self.record is not None:
            self.record.leave()

    def check(self, text: str) -> None:
        """Raises DataError for a text that asks nothing."""
        if not text.strip():
            raise DataError("the prompt is empty: give some text")


def system_message(system: str | None) -> list[Mapping[str, Any]]:
    """What stands in front of a conversation: nothing, or the instructions."""
    return [] if system is None else [{"role": "system", "content": system}]


def asked(text: str) -> dict[str, Any]:
    """The message of a text that a person sent."""
    return {"role": "user", "content": text}


def answered(pieces: Iterable[Piece], calls: bool) -> dict[str, Any]:
    """The message of a reply. calls: whether the template reads `tool_calls`; what it does not read is said.

    So is a call that is not understood, since a model should see what it wrote.
    """
    said: list[str] = []
    thought, called = "", []
    for piece in pieces:
        said.append(piece.text)
        thought += piece.thought
        if piece.call is not None and piece.call.error is None and calls:
            function = {"name": piece.call.name, "arguments": json.loads(piece.call.arguments)}
            called.append({"id": piece.call.id, "type": "function", "function": function})
        elif piece.call is not None:
            said.append(f"\n{piece.call.written}" if any(said) else piece.call.written)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(said)}
    message |= {"reasoning_content": thought} if thought else {}
    return message | ({"tool_calls": called} if called else {})


def without_calls(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message that says its tool calls instead of having them."""
    if "tool_calls" not in message:
        return message
    said = [json.dumps(call["function"], ensure_ascii=False) for call in message["tool_calls"]]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join([message["content"], *said]).strip()}
