"""A conversation with a model: messages, the cache that holds them, and settings. Writes and reads no terminal.

Invariant: messages hold whole turns only, a user's text followed by what the model said to it, however it ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from partita.errors import DataError, TemplateError
from partita.inference.speculative import Drafter
from partita.language_model import LanguageModel, Piece
from partita.text.chat_template import encode_chat
from partita.text.reply.parser import ReplyParser
from partita.text.transcript import Transcript

from .adapters import Adapters
from .settings import Settings


@dataclass(frozen=True)
class CacheOptions:
    """As on the command line. sinks: a number, "system", or None for the default."""

    context: int | str | None = None
    sinks: int | str | None = None
    kv: str = "auto"


class Conversation:
    """raw: no template and no memory; each text is completed by itself. once: there will be a single reply.

    draft: proposes the tokens of replies (`speculative.drafter`); it changes how fast they come. adapters: of which
    `model` is the current one.
    """

    def __init__(
        self,
        model: LanguageModel,
        settings: Settings,
        cache: CacheOptions,
        *,
        raw: bool = False,
        once: bool = False,
        draft: Drafter | None = None,
        adapters: Adapters | None = None,
    ):
        if raw and cache.sinks == "system":
            raise DataError(
                "`sinks` system pins the system prompt, which `raw` leaves out: give a number", field="sinks"
            )
        if raw and settings.system is not None:
            raise DataError(
                "`system` needs the chat template, which `raw` leaves out: put it into the text", field="system"
            )
        if raw and settings.template_var:
            raise DataError(
                "`template_var` is for the chat template, which `raw` leaves out: leave out one of them",
                field="template_var",
            )
        self.model, self.raw, self.cache, self.draft = model, raw, cache, draft
        self.adapters = Adapters(model, {}) if adapters is None else adapters
        self._prefixes = None if once else model.prefixes  # one reply has no other to begin from
        self.settings = settings
        self.messages: list[dict[str, Any]] = []
        self.replies: list[list[int] | None] = []
        """Ids of each answer as generated; None where they stand no longer as they did, so its text counts."""
        self.emptied = False
        """Whether there are no messages because the first turn was taken back."""
        self._alone: list[dict[str, Any]] = []  # the last turn of raw mode, which has no conversation
        self._read: str | None = settings.system  # the system prompt that the answers were given under
        self.transcript = None if raw else Transcript(model.tokenizer, model.template)
        self.session = self._new_session()
        self.prompt_tokens = 0
        """Tokens of the last prompt, the whole conversation included."""

    @property
    def latest(self) -> list[dict[str, Any]]:
        """The last turn, what was asked and what was answered; empty where nothing was said yet."""
        return self.messages[-2:] or self._alone

    def clear(self) -> None:
        """A new conversation with the same settings."""
        self.messages, self.replies, self.emptied, self._alone = [], [], False, []
        self.session = self._new_session()

    def undo(self) -> str:
        """Take the last turn back and return what was asked in it. The cache then holds nothing of it, either.

        Raises DataError where there is no turn.
        """
        if not self.messages:
            raise DataError("there is no turn to take back")
        text, left = self.messages[-2]["content"], self.messages[:-2]
        self.session.align(self._prompt(left, "?"))  # any next text will do: it parts from the one taken back
        self.messages, self.replies, self.emptied = left, self.replies[:-1], not left
        return text

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """What is asked inside takes the place of the last turn, which stays if no reply begins."""
        messages, replies = self.messages, self.replies
        self.messages, self.replies = messages[:-2], replies[:-1]
        try:
            yield
        finally:
            if len(self.messages) < len(messages):
                self.messages, self.replies = messages, [*replies[:-1], None]

    def change(self, settings: Settings) -> None:
        """Other settings from now on. Another system prompt is read at the next turn, with all that follows it."""
        before, self.settings = self.settings, settings
        front = (settings.system, settings.template_var)
        if front != (before.system, before.template_var) and self.cache.sinks == "system":
            self.session = self._new_session()

    def unread(self) -> list[str]:
        """A line where the chat template has no use for something that it is given."""
        unknown = [name for name in self.settings.template_var if not self.model.template.mentions(name)]
        return [f"the model's chat template does not read {', '.join(unknown)}"] if unknown else []

    def use_adapter(self, name: str) -> None:
        """Go on with another adapter, which reads the conversation again: what the cache holds is not its own."""
        before, self.model = self.model, self.adapters.choose(name)
        if self.model is not before:
            self.session = self._new_session()

    def take(self, messages: list[dict[str, Any]], settings: Settings) -> None:
        """Go on with another conversation."""
        self.messages, self.replies = messages, [None] * (len(messages) // 2)
        self.emptied = False
        self.change(settings)

    def resume(self, messages: list[dict[str, Any]], replies: list[list[int] | None], system: str | None) -> None:
        """Go on with a conversation whose tokens the session holds already, held under the prompt `system`."""
        if self.transcript is None:
            raise DataError("`raw` has no conversation to go on with: leave it out", field="raw")
        if messages:  # else every turn was taken back, and templates want one
            resume = partial(self.transcript.resume, self.session.tokens)
            self._rendered(resume, [*system_message(system), *messages])
        self.messages, self.replies, self._read = messages, replies, system

    def encode(self, text: str) -> list[int]:
        """Ids of the conversation with `text` as its next turn. Raises DataError for an empty text."""
        if not text.strip():
            raise DataError("the prompt is empty: give some text")
        return self._prompt(self.messages, text)

    def reply(
        self,
        text: str,
        *,
        prompt: Sequence[int] | None = None,
        alternatives: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Generator[Piece, None, None]:
        """The model's answer, piece by piece. Closed early, what was said so far stays in the conversation.

        prompt: what `encode` gave for the text, where it has been asked already. Raising from on_progress stops the
        reading of the prompt.
        """
        prompt = self.encode(text) if prompt is None else prompt
        self.prompt_tokens = len(prompt)
        said: list[Piece] = []
        ids: list[int] = []
        try:
            for piece in self.session.generate(
                prompt,
                sampling=self.settings.seeded(),
                max_tokens=self.settings.max_tokens,
                stop=self.settings.stop,
                alternatives=alternatives,
                continues=self.raw,
                draft=self.draft,
                reply=self._told_apart(prompt),
                on_progress=on_progress,
            ):
                said.append(piece)
                if piece.token is not None and piece.token.id not in self.model.tokenizer.stop_ids:
                    ids.append(piece.token.id)
                yield piece
        finally:
            if said and self.transcript is None:
                self._alone = [asked(text), answered(said, calls=False)]
            elif said and self.transcript is not None:
                self.transcript.add_reply(ids)
                if self.settings.system != self._read:  # everything was read again, and the earlier answers as text
                    self.replies, self._read = [None] * len(self.replies), self.settings.system
                self.replies = [*self.replies, ids]
                answer = answered(said, self.model.template.mentions("tool_calls"))
                self.messages, self.emptied = [*self.messages, asked(text), answer], False

    def _prompt(self, messages: Sequence[Mapping[str, Any]], text: str) -> list[int]:
        if self.transcript is None:
            return self.model.encode(text, raw=True)
        return self._rendered(self.transcript.encode, [*self._system(), *messages, asked(text)])

    def _rendered(self, use: Callable[..., Any], messages: Sequence[Mapping[str, Any]]) -> Any:
        """use(messages, …); with tool calls as text where the template does not take them as they are.

        Some want what the tool gave back behind each, and here nobody calls tools.
        """
        try:
            return use(messages, **self.settings.template_var)
        except TemplateError:
            spoken = list(map(without_calls, messages))
            if spoken == list(messages):
                raise
            return use(spoken, **self.settings.template_var)

    def _told_apart(self, prompt: Sequence[int]) -> ReplyParser | None:
        if self.raw:
            return None
        tools = self.settings.template_var.get("tools")
        calls = sum(len(message.get("tool_calls", ())) for message in self.messages)
        return self.model.reply_to(prompt, tools=tools if isinstance(tools, list) else None, calls=calls)

    def _system(self) -> list[Mapping[str, Any]]:
        return system_message(self.settings.system)

    def _new_session(self) -> Any:
        sinks = self.cache.sinks
        if isinstance(sinks, str):
            sinks = self._pinned()
        choice = self.model.choose_cache(context=self.cache.context, sinks=sinks, kv=self.cache.kv)
        self.notes = [text for text in (choice.text, self.model.kv_warning(choice.spec)) if text is not None]
        kv, context = str(choice.spec.kv), choice.spec.context  # decided once: free memory changes by the moment
        return self.model.session(prefixes=self._prefixes, context=context, sinks=sinks, kv=kv)

    def _pinned(self) -> int:
        """Tokens before a user's first word, the system prompt among them: what all conversations with it share."""
        first, second = map(self._begun_with, ("A", "B"))
        return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))

    def _begun_with(self, word: str) -> list[int]:
        messages = [*self._system(), asked(word)]
        return encode_chat(self.model.tokenizer, self.model.template, messages, **self.settings.template_var)


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
