"""A conversation with a model that is loaded here: the cache that holds it, its ids, and who drafts for it.

Invariant: what the cache holds of a turn that was taken back or replaced is read by no later one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from partita.errors import DataError, TemplateError
from partita.inference.sampling import Sampling
from partita.inference.speculative import Acceptance, Drafter
from partita.language_model import LanguageModel, Piece
from partita.text.chat_template import encode_chat
from partita.text.reply.parser import ReplyParser
from partita.text.transcript import Transcript
from partita.units import memory_size

from .adapters import Adapters
from .conversation import About, Conversation, State, answered, asked, system_message, without_calls
from .settings import Settings, usual_sampling


@dataclass(frozen=True)
class CacheOptions:
    """As on the command line. sinks: a number, "system", or None for the default."""

    context: int | str | None = None
    sinks: int | str | None = None
    kv: str = "auto"


class LocalConversation(Conversation):
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
        super().__init__(settings)
        self.model, self.raw, self.cache, self.draft = model, raw, cache, draft
        self._adapters = Adapters(model, {}) if adapters is None else adapters
        self._prefixes = None if once else model.prefixes  # one reply has no other to begin from
        self.replies: list[list[int] | None] = []
        """Ids of each answer as generated; None where they stand no longer as they did, so its text counts."""
        self._alone: list[dict[str, Any]] = []  # the last turn of raw mode, which has no conversation
        self._read: str | None = settings.system  # the system prompt that the answers were given under
        self.transcript = None if raw else Transcript(model.tokenizer, model.template)
        self.session = self._new_session()
        self.prompt_tokens = 0
        """Tokens of the last prompt, the whole conversation included."""

    @property
    def about(self) -> About:
        model, spec = self.model, self.session.cache.spec
        return About(
            model.name,
            self._adapters.current,
            backend=model.ops.name,
            device=model.ops.device,
            dtype=model.ops.dtype,
            context=spec.context,
            sinks=spec.sinks,
            kv=str(spec.kv),
            bytes_per_token=self.session.cache.bytes_per_token(),
        )

    @property
    def state(self) -> State:
        slots = self.session.cache.slots()
        return State(
            prompt_tokens=self.prompt_tokens,
            reused=self.session.reused,
            held=len(self.session.tokens),
            seen=slots.sinks + slots.window,
            forgotten=self.session.forgotten,
            slots=slots,
            cache_bytes=self.session.cache.nbytes,
            peak_bytes=self.model.ops.memory().peak or None,
        )

    def described(self) -> list[tuple[str, str]]:
        model, session = self.model, self.session
        slots, spec, memory = session.cache.slots(), session.cache.spec, model.ops.memory()
        held = f"{slots.sinks} sinks, {slots.window} in the window, {slots.free} free, {session.forgotten} forgotten"
        active, free, total = map(memory_size, (memory.active, memory.free, memory.total))
        return [
            ("model", f"{model.name}, {model.config.num_layers} layers"),
            ("file", str(model.path)),
            ("adapter", self._adapters.current),
            ("backend", f"{model.ops.name} on {model.ops.device}, {model.ops.dtype}"),
            ("context", f"{spec.context} tokens, of these {spec.sinks} sinks"),
            ("cache", f"kv {spec.kv}, {memory_size(session.cache.nbytes)}: {held}"),
            ("memory", f"{active} in use, {free} of {total} free"),
        ]

    @property
    def usual(self) -> tuple[Sampling, str]:
        return usual_sampling(self.model.recommended)

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.model.tokenizer.stop_ids

    @property
    def acceptance(self) -> Acceptance | None:
        return None if self.draft is None else self.draft.acceptance

    def token_text(self, token: int) -> str:
        return self.model.tokenizer.token_text(token)

    @property
    def latest(self) -> list[dict[str, Any]]:
        return super().latest or self._alone

    def clear(self) -> None:
        super().clear()
        self.replies, self._alone = [], []
        self.session = self._new_session()

    def undo(self) -> str:
        """The cache then holds nothing of the turn, either."""
        if self.messages:  # any next text will do: it parts from the one taken back
            self.session.align(self._prompt(self.messages[:-2], "?"))
        text = super().undo()
        self.replies = self.replies[:-1]
        return text

    @contextmanager
    def replacing(self) -> Iterator[None]:
        messages, replies = self.messages, self.replies
        self.replies = replies[:-1]
        try:
            with super().replacing():
                yield
        finally:
            if self.messages is messages:
                self.replies = [*replies[:-1], None]

    def change(self, settings: Settings) -> None:
        before = self.settings
        super().change(settings)
        front = (settings.system, settings.template_var)
        if front != (before.system, before.template_var) and self.cache.sinks == "system":
            self.session = self._new_session()

    def unread(self) -> list[str]:
        unknown = [name for name in self.settings.template_var if not self.model.template.mentions(name)]
        return [f"the model's chat template does not read {', '.join(unknown)}"] if unknown else []

    @property
    def adapters(self) -> list[str]:
        return self._adapters.names

    def use_adapter(self, name: str) -> None:
        """The adapter reads the conversation again: what the cache holds is not its own."""
        before, self.model = self.model, self._adapters.choose(name)
        if self.model is not before:
            self.session = self._new_session()

    def take(self, messages: list[dict[str, Any]], settings: Settings) -> None:
        self.replies = [None] * (len(messages) // 2)
        super().take(messages, settings)

    def resume(self, messages: list[dict[str, Any]], replies: list[list[int] | None], system: str | None) -> None:
        """Go on with a conversation whose tokens the session holds already, held under the prompt `system`."""
        if self.transcript is None:
            raise DataError("`raw` has no conversation to go on with: leave it out", field="raw")
        if messages:  # else every turn was taken back, and templates want one
            resume = partial(self.transcript.resume, self.session.tokens)
            self._rendered(resume, [*system_message(system), *messages])
        self.messages, self.replies, self._read = messages, replies, system

    def encode(self, text: str) -> list[int]:
        self.check(text)
        return self._prompt(self.messages, text)

    def reply(
        self,
        text: str,
        *,
        prompt: Sequence[int] | None = None,
        alternatives: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Generator[Piece, None, None]:
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
