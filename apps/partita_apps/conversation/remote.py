"""A conversation with a model that a server has loaded: each turn is one request of OpenAI's Chat Completions.

Not here: what goes over the wire (`client.py`). Invariants: the server is sent the whole conversation and keeps none of
it; of the settings of sampling it is sent those that a person chose, the others are the server's; what was said stays
in the conversation, however the reply ended.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from partita.errors import DataError, SourceError
from partita.files.bounded import is_table, parse
from partita.inference.runner import Generated
from partita.language_model import Piece
from partita.text.reply.parser import ToolCall
from partita.text.tokenizer import shown_bytes

from ..aliases import similar
from .client import CallDelta, Choice, Chunk, Client, Listed, Logprob, Top, Usage
from .conversation import NONE, About, Conversation, State, answered, asked, system_message, without_calls
from .settings import SAMPLING, Settings

UNNAMED = -1
"""The id of a token that is known by nothing but that it came. Ids below it are texts whose ids the server keeps."""
_LISTED = 10  # names in a message


class RemoteConversation(Conversation):
    """model: a name in the server's list, `model:adapter` with an adapter; None for the first. chosen: names of
    settings that a person gave. rather: a name to take where none is given, if it is there.

    Raises DataError for a model that is not there, SourceError where the server does not answer.
    """

    def __init__(
        self,
        client: Client,
        model: str | None,
        settings: Settings,
        chosen: Sequence[str] = (),
        *,
        rather: str | None = None,
    ) -> None:
        super().__init__(settings)
        self._client = client
        self.chosen = set(chosen)
        self._models = {each.id: each for each in client.models()}
        self._model = self._known(rather if model is None and rather in self._models else model)
        self._state = State()
        self._texts: dict[int, str] = {}
        self._ids: dict[str, int] = {}

    @property
    def about(self) -> About:
        found, base = self._model, self._base
        meta = found.meta or (self._models[base].meta if base in self._models else None)
        row, context = meta and meta.row_bytes, found.context
        return About(
            base,
            self._short(found.id),
            server=str(self._client.address),
            backend=meta and meta.backend,
            device=meta and meta.device,
            dtype=meta and meta.dtype,
            context=context,
            kv=meta and meta.kv,
            bytes_per_token=row / context if row and context else None,
        )

    @property
    def state(self) -> State:
        return self._state

    @property
    def delegated(self) -> frozenset[str]:
        return frozenset(SAMPLING) - self.chosen - {"seed"}

    @property
    def adapters(self) -> list[str]:
        return [*(self._short(each.id) for each in self._models.values() if each.parent == self._base), NONE]

    @property
    def _base(self) -> str:
        return self._model.parent or self._model.id

    def _short(self, name: str) -> str:
        """The adapter that a name of the server's list stands for."""
        return NONE if name == self._base else name.removeprefix(f"{self._base}:")

    def _known(self, name: str | None) -> Listed:
        if name is None and self._models:
            return next(iter(self._models.values()))
        if name in self._models:
            return self._models[name]
        if name is not None and not self._models:  # some servers list nothing, and know
            return Listed(name)
        names = [*list(self._models)[:_LISTED], *(["…"] if len(self._models) > _LISTED else [])]
        alike = similar(name or "", self._models)
        there = f"it has {', '.join(names)}" if names else "it has no model"
        raise DataError(f"{self._client.address} does not serve {name or 'a model'}: {there}.{alike}".rstrip("."))

    def use_adapter(self, name: str) -> None:
        names = {self._short(each.id): each for each in self._models.values() if each.parent == self._base}
        if name != NONE and name not in names:
            known = ", ".join(self.adapters)
            raise DataError(
                f"unknown adapter {name!r}; expected one of {known}"
                if names
                else f"the server has no adapters of {self._base}: it takes them with `serve(adapter=DIR)`"
            )
        self._model = names[name] if name != NONE else self._models.get(self._base) or Listed(self._base)

    def described(self) -> list[tuple[str, str]]:
        about = self.about
        found = [
            ("model", about.model),
            ("server", about.server),
            ("adapter", about.adapter),
            ("backend", about.backend and f"{about.backend} on {about.device}, {about.dtype}"),
            ("context", about.context and f"{about.context} tokens"),
            ("cache", about.kv and f"kv {about.kv}"),
        ]
        return [(name, value) for name, value in found if value]

    def token_text(self, token: int) -> str:
        return self._texts.get(token, "")

    def encode(self, text: str) -> None:
        self.check(text)

    def reply(
        self,
        text: str,
        *,
        prompt: Sequence[int] | None = None,
        alternatives: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Generator[Piece, None, None]:
        """Between two chunks that are long in coming there are pieces without anything, so that a reply can be closed.

        Raises SourceError.
        """
        self.check(text)
        self._state = State()
        said: list[Piece] = []
        usage: Usage | None = None
        reading = _Reading(self._id, sum(len(message.get("tool_calls", ())) for message in self.messages))
        try:
            with closing(self._client.stream(self._request(text, alternatives))) as chunks:
                for chunk in chunks:
                    if chunk is None and not said and on_progress is not None:
                        on_progress(0, 0)
                    usage = chunk.usage or usage if chunk is not None else usage
                    if usage is not None:
                        self._state = self._after(usage)
                    for piece in reading.push(chunk) if chunk is not None else [Piece("")] if said else []:
                        said.append(piece)
                        yield piece
            for piece in reading.finish():
                said.append(piece)
                yield piece
            self._look_again()
        finally:
            if said:
                self.messages, self.emptied = [*self.messages, asked(text), answered(said, calls=True)], False

    def _request(self, text: str, alternatives: int) -> dict[str, Any]:
        settings, variables = self.settings, dict(self.settings.template_var)
        sampling = {name: settings.get(name) for name in SAMPLING if name in self.chosen or name == "seed"}
        if "repetition_penalty" in sampling:
            sampling["repeat_penalty"] = sampling["repetition_penalty"]  # llama.cpp's and LM Studio's name
        tools = variables.pop("tools", None)
        given: dict[str, Any] = {
            "stop": list(settings.stop) or None,
            "tools": tools if isinstance(tools, list) else None,
            "chat_template_kwargs": variables or None,
            **({"logprobs": True, "top_logprobs": alternatives} if alternatives else {}),
            **sampling,
        }
        return {
            "model": self._model.id,
            "messages": [_sent(message) for message in (*system_message(settings.system), *self.messages, asked(text))],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": settings.max_tokens,
            **{name: value for name, value in given.items() if value is not None},
        }

    def _after(self, usage: Usage) -> State:
        """Where the conversation stands once the server has counted."""
        prompt, tokens, context = usage.prompt_tokens, usage.completion_tokens, self._model.context
        held = None if prompt is None else prompt + (tokens or 0)
        forgotten = None if held is None or context is None else max(held - context, 0)
        return State(
            prompt_tokens=prompt,
            reused=usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens,
            tokens=tokens,
            thought_tokens=usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens,
            held=held,
            seen=held if held is None or context is None else min(held, context),
            forgotten=forgotten,
        )

    def _look_again(self) -> None:
        """What a server knows of a model once it is loaded: its context, and what computes it."""
        if self._model.state in (None, "loaded"):
            return
        try:
            self._models = {each.id: each for each in self._client.models()}
        except SourceError:  # the next turn says so
            return
        self._model = self._models.get(self._model.id, self._model)

    def _id(self, token: Top) -> int:
        """The server's id of a token, or one of ours for its text."""
        text = shown_bytes(token.data)
        known = isinstance(token.id, int) and token.id >= 0
        ident = token.id if known else self._ids.setdefault(text, UNNAMED - 1 - len(self._ids))
        self._texts[ident] = text
        return ident


class _Reading:
    """Chunks of one reply on their way to pieces. calls: how many there were before in the conversation."""

    def __init__(self, ident: Callable[[Top], int], calls: int) -> None:
        self._ident, self._before = ident, calls
        self._then = time.monotonic()
        self._calls: dict[int, CallDelta] = {}
        self._reason: str | None = None

    def push(self, chunk: Chunk) -> list[Piece]:
        return [piece for choice in (chunk.choices or ())[:1] for piece in self._choice(choice)]

    def finish(self) -> list[Piece]:
        """Calls, which are whole now, and why the reply ended."""
        calls = [Piece("", call=self._whole(i, call)) for i, call in enumerate(self._calls.values())]
        return [*calls, Piece("", finish_reason="length" if self._reason == "length" else "stop")]

    def _choice(self, choice: Choice) -> list[Piece]:
        self._reason = choice.finish_reason or self._reason
        delta = choice.delta
        for each in (delta and delta.tool_calls) or ():
            self._add(each)
        thought = (delta and (delta.reasoning_content or delta.reasoning)) or ""
        text = (delta and delta.content) or ""
        rows = (choice.logprobs and choice.logprobs.content) or []
        if not (text or thought or rows or (delta and delta.tool_calls)):
            return []
        now = time.monotonic()
        seconds, self._then = now - self._then, now
        first = self._token(rows[0], seconds) if rows else Generated(UNNAMED, seconds)
        return [Piece(text, first, thought=thought), *(Piece("", self._token(row, 0.0)) for row in rows[1:])]

    def _token(self, row: Logprob, seconds: float) -> Generated:
        others = tuple((self._ident(each), _probability(each)) for each in row.top_logprobs or ())
        return Generated(self._ident(row), seconds, _probability(row), others)

    def _add(self, delta: CallDelta) -> None:
        call = self._calls.setdefault(delta.index, CallDelta())
        call.id = delta.id or call.id
        if delta.function is None:
            return
        if call.function is None:
            call.function = delta.function
            return
        call.function.name = call.function.name or delta.function.name
        call.function.arguments = (call.function.arguments or "") + (delta.function.arguments or "")

    def _whole(self, index: int, call: CallDelta) -> ToolCall:
        name = (call.function and call.function.name) or ""
        arguments = (call.function and call.function.arguments) or "{}"
        ident = call.id or f"call_{self._before + index}"
        written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
        try:
            understood = bool(name) and is_table(parse(arguments))
        except ValueError:
            understood = False
        if not understood:
            return ToolCall("", "", ident, written, "its arguments are not a JSON object")
        return ToolCall(name, arguments, ident, written)


def _probability(token: Top) -> float:
    return 0.0 if token.logprob is None else math.exp(min(token.logprob, 0.0))


def _sent(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message as the server gets it: nobody here gives tools' results, so a call is what the model said."""
    return without_calls(message)
