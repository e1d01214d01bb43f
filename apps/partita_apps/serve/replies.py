"""One reply, from what was asked to what is said: names to models, messages to ids, tokens to text. Knows no HTTP.

Invariants: nothing is cut silently, a prompt that the context does not hold is refused with both numbers. Closing the
iterator, at a stop string or because nobody listens any more, closes the worker's at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Protocol

import msgspec

from partita.engine import request as engine
from partita.errors import PartitaError, TemplateError
from partita.inference.sampling import Sampling
from partita.text.reply.formats import ReplyFormat
from partita.text.reply.parser import ReplyParser
from partita.text.reply.until_stop import UntilStop
from partita.text.stop_strings import StopStrings

from ..conversation.settings import Settings
from . import frames
from .asked import Ask, Delta, Ended, Event, Logprob, Refused, Spoken, Started, Waiting
from .model_text import ModelText, Prompt
from .registry import Description
from .structure import constraint_for
from .tools import described, form_of, offered, with_tools
from .turns import merged, normalized

BUSY_SECONDS = 2
"""After which a client that found the queue full may ask again."""
MAX_TOKEN_BYTES, USUAL_TOKEN_BYTES = 64, 4
"""Of a prompt's JSON, for each of its tokens: no prompt has more, and most have about so many."""
_LEAST = -9999.0  # the log probability of what is impossible, as OpenAI writes it


class Worker(Protocol):
    """A loaded model that computes."""

    @property
    def facts(self) -> frames.Loaded: ...

    def events(self, request: engine.Request) -> AsyncGenerator[engine.Event, None]:
        """What becomes of a request, whose id is given to it here. Closing the iterator cancels it."""
        ...


class Model(Protocol):
    """A loaded model. adapter: by its name in the worker, "" for none."""

    @property
    def text(self) -> ModelText: ...
    @property
    def worker(self) -> Worker: ...
    @property
    def adapter(self) -> str: ...


class Models(Protocol):
    """What the server needs of the registry, whose life is the server's."""

    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, kind: Any, error: Any, traceback: Any, /) -> Any: ...

    def names(self) -> Sequence[str]:
        """All that a request may name."""
        ...

    def describe(self, name: str) -> Description:
        """Raises Refused."""
        ...

    def workers(self) -> Mapping[str, Any]:
        """Of models that are loaded or being loaded, by name."""
        ...

    def free(self) -> int:
        """Bytes of memory for another model."""
        ...

    def predicted(self, name: str) -> int:
        """Bytes of a model in memory, as far as is known. Raises Refused."""
        ...

    async def generation_config(self, name: str) -> Mapping[str, Any]:
        """What the makers of a model recommend for it, loaded or not. Raises Refused."""
        ...

    async def unload(self, name: str) -> None:
        """Give a model's memory back. Raises Refused: conflict while it is used."""
        ...

    def loading(self, name: str) -> AsyncGenerator[tuple[int, int], None]:
        """Have a model loaded; meanwhile, now and then, layers that are and layers. Raises Refused."""
        ...

    def use(self, name: str) -> AbstractAsyncContextManager[Model]:
        """The model of a name, loaded where it was not, and kept as long as it is used. Raises Refused."""
        ...


@dataclass(frozen=True)
class Prepared:
    """request: for the worker. form, tools: how the reply to it is read."""

    request: engine.Request
    prompt: Prompt
    form: ReplyFormat
    tools: Sequence[Any] | None = None


async def reply(models: Models, ask: Ask) -> AsyncGenerator[Event, None]:
    """What becomes of an `Ask`, as it becomes certain. To be closed by who stops listening (`contextlib.aclosing`).

    Raises Refused for what cannot be done.
    """
    if ask.tool_choice.name is not None:  # a call of it is all that is wanted
        ask = replace(ask, parallel_tool_calls=False)
    yield Waiting("loading")
    async with aclosing(models.loading(ask.model)) as layers:
        async for done, total in layers:
            yield Waiting("loading", done, total)
    async with models.use(ask.model) as model:
        prepared = await prepare(model, ask)
        yield Waiting("queue")
        reading = Reading(model.text, ask, prepared)
        begun = reading.begin(ask.begins)
        computed = _nothing() if reading.complete else model.worker.events(prepared.request)
        try:
            async with aclosing(computed) as events:
                async for event in _read(events, reading, prepared, begun):
                    yield event
        finally:
            model.text.add_reply(prepared.prompt, reading.ids)


async def prepare(model: Model, ask: Ask) -> Prepared:
    """The request to the engine that an `Ask` comes to, without an id. Raises Refused."""
    text = model.text
    with _refusing():
        StopStrings(ask.stop)
        sampling = sampled(ask, text)
        prompt, tools = await encoded(text, ask)
    check_ids(prompt.ids, text)
    check_ids(ask.logit_bias, text, "logit_bias")
    check_ids(ask.begins, text, "begins")
    constraint = await asyncio.to_thread(constraint_for, ask, text, prompt.ids)
    if constraint is not None and ask.begins:
        raise Refused("`begins` cannot be given with a format or tools that the reply must follow", field="begins")
    ids = [*prompt.ids, *_unended(ask.begins, text)]
    request = engine.Request(
        id=0,
        prompt=ids,
        max_tokens=_room(ids, ask, text),
        sampling=sampling,
        stop_ids=tuple(sorted(text.tokenizer.stop_ids)),
        alternatives=max(0 if wanted is None else max(wanted, 1) for wanted in (ask.logprobs, ask.trace)),
        logit_bias=dict(ask.logit_bias),
        constraint=constraint,
        adapter=model.adapter,
        endless=_endless(ask, text),
        trace=ask.trace is not None,
    )
    return Prepared(request, prompt, form_of(ask, text) if ask.messages is not None else ReplyFormat(), tools)


async def encoded_for(text: ModelText, ask: Ask) -> Prompt:
    """Ids of what is asked, as a reply would be given them. Raises Refused."""
    with _refusing():
        prompt, _ = await encoded(text, ask)
    return prompt


async def count(models: Models, ask: Ask) -> int:
    """Tokens of the prompt that an `Ask` comes to, whether the context holds them or not. Raises Refused."""
    async with models.use(ask.model) as model:
        return len((await encoded_for(model.text, ask)).ids)


@contextmanager
def _refusing() -> Iterator[None]:
    """What the runtime says of a conversation or a setting, as Refused."""
    try:
        yield
    except TemplateError as error:
        raise Refused(str(error), field="messages") from error
    except PartitaError as error:
        raise Refused(str(error), field=error.field) from error


async def encoded(text: ModelText, ask: Ask) -> tuple[Prompt, Sequence[Any] | None]:
    """Ids of what is asked, and the tools that may be called. Raises PartitaError, Refused."""
    _check_size(ask, text)
    if ask.ids is not None:
        return Prompt(list(ask.ids)), None
    if ask.text is not None:
        return await text.complete(ask.text), None
    given, shown = with_tools(ask, text)
    messages, tools = normalized(given, text), described(offered(ask)) or None
    variables = {**ask.variables} if shown is None else {**ask.variables, "tools": shown}
    try:
        return await text.encode(messages, variables), tools
    except TemplateError:
        joined = merged(messages)
        if len(joined) == len(messages):
            raise
        return await text.encode(joined, variables), tools


def _check_size(ask: Ask, text: ModelText) -> None:
    """Refuse what cannot fit by far before minutes are spent on its tokens; how many they are is then a guess.

    Where old tokens are forgotten, everything fits.
    """
    size = len(msgspec.json.encode((ask.messages, ask.text, ask.ids, ask.tools, ask.variables)))
    least = max(size // MAX_TOKEN_BYTES, len(ask.messages or ()))
    if not _endless(ask, text) and least > text.context:
        needed = max(size // USUAL_TOKEN_BYTES, least)
        raise _too_long(needed, ask, text, f"about {needed}")


def _too_long(needed: int, ask: Ask, text: ModelText, shown: str) -> Refused:
    message = f"the prompt has {shown} tokens, and the context of {text.name} holds {text.context}"
    field = "prompt" if ask.messages is None else "messages"
    return Refused(message, "context", field=field, needed=needed, limit=text.context)


def sampled(ask: Ask, text: ModelText) -> Sampling:
    """What is asked over what is usual for the model. Raises DataError for values that make no sense."""
    given = {name: value for name, value in ask.sampling.items() if value is not None}
    return Settings.over(text.usual, given).sampling


def check_ids(ids: Sequence[int] | Any, text: ModelText, field: str = "prompt") -> None:
    """Refuse tokens that the model has not."""
    wrong = next((token for token in ids if not 0 <= token < text.rows), None)
    if wrong is not None:
        raise Refused(f"`{field}`: there is no token {wrong}; the model's are from 0 to {text.rows - 1}", field=field)


def _room(ids: Sequence[int], ask: Ask, text: ModelText) -> int:
    """How many tokens a reply may have. Raises Refused for a prompt that leaves no room, or is none."""
    if not ids:
        raise Refused("the prompt is empty: give at least one token", field="prompt")
    if ask.max_tokens is not None and ask.max_tokens < 1:
        raise Refused(f"`max_tokens` must be >= 1, got {ask.max_tokens}", field="max_tokens")
    room = text.context if _endless(ask, text) else text.context - len(ids)
    if room < 1:
        needed = max(len(ids), text.context + 1)  # one token of a reply at least
        raise _too_long(needed, ask, text, str(len(ids)))
    return room if ask.max_tokens is None else min(ask.max_tokens, room)


def _endless(ask: Ask, text: ModelText) -> bool:
    return text.endless if ask.endless is None else ask.endless


def _unended(ids: Sequence[int], text: ModelText) -> list[int]:
    """Tokens up to the first that ends a reply."""
    return list(takewhile(lambda token: token not in text.tokenizer.stop_ids, ids))


async def _nothing() -> AsyncGenerator[engine.Event, None]:
    """What is computed for a reply that is whole already."""
    yield engine.Finished(0, "stop")


async def _read(
    events: AsyncIterator[engine.Event], reading: Reading, prepared: Prepared, begun: Sequence[Delta]
) -> AsyncGenerator[Event, None]:
    """The engine's events of one request as ours. begun: what the reply begins with."""
    then, started = time.monotonic(), False
    warnings: list[str] = []
    reason: str | None = None
    async for event in events:
        if isinstance(event, engine.Failed):
            raise failed(event)
        if isinstance(event, engine.Warned):
            warnings.append(event.message)
            continue
        if not started:
            started = True
            reused = event.reused if isinstance(event, engine.Progress) else 0
            asked = len(prepared.prompt.ids)
            yield Started(asked, min(reused, asked), prepared.prompt.ids, prepared.request.sampling)
            for delta in begun:
                yield delta
        if isinstance(event, engine.Progress):
            yield Waiting("prompt", event.done, event.total, event.reused, event.seconds)
        elif isinstance(event, engine.Held):
            yield event
        elif isinstance(event, engine.Token):
            for delta in reading.push(event):
                yield delta
        elif isinstance(event, engine.Finished):
            reason = event.reason
        if reading.over or reason is not None:
            break
    if not reading.over and reason not in ("stop", "length"):
        raise Refused("the reply was ended before its end: the server stops", "engine")
    for delta in reading.finish():
        yield delta
    yield reading.ended(reason, time.monotonic() - then, tuple(warnings))


class Reading:
    """Tokens of one reply on their way to text. ids: those that came, without the one that ended it. complete: whether
    what it begins with is all of it."""

    def __init__(self, text: ModelText, ask: Ask, prepared: Prepared) -> None:
        raw = ask.messages is None
        before = sum(len(message.get("tool_calls") or ()) for message in ask.messages or ())
        parser = ReplyParser(
            prepared.form,
            text.tokenizer,
            () if raw else prepared.prompt.ids,
            tools=prepared.tools,
            calls=before,
            continues=raw,
        )
        self._parts = UntilStop(parser, StopStrings(ask.stop))
        self._text, self._ask = text, ask
        self._callable = bool(ask.tools) and ask.tool_choice.mode != "none"
        self._pending: list[Logprob] = []
        self._unsaid = 0  # tokens since the last part
        self._thought_tokens, self._calls = 0, 0
        self.ids: list[int] = []
        self.complete = False

    @property
    def over(self) -> bool:
        """Whether the reply ends here, whatever the engine still computes."""
        return self._parts.stopped or (self._calls > 0 and not self._ask.parallel_tool_calls)

    def begin(self, ids: Sequence[int]) -> list[Delta]:
        """What is certain of a reply that begins with these tokens."""
        found: list[Delta] = []
        for token in ids:
            if self.over or token in self._text.tokenizer.stop_ids:
                self.complete = True
                break
            self.ids.append(token)
            self._unsaid += 1
            found += self._deltas(self._parts.push(token))
        self.complete = self.complete or self.over
        return found

    def push(self, event: engine.Token) -> list[Delta | Spoken]:
        """What became certain with a token."""
        thinking = self._parts.thinking
        deltas = self._push(event)
        if self._ask.trace is None:
            return [*deltas]
        thought = thinking or self._parts.thinking
        return [spoken(self._text, event, self._ask.trace, thought=thought), *deltas]

    def _push(self, event: engine.Token) -> list[Delta]:
        if event.token in self._text.tokenizer.stop_ids:
            return []
        self.ids.append(event.token)
        self._unsaid += 1
        if self._ask.logprobs is not None:
            self._pending.append(logprob(self._text, event, self._ask.logprobs))
        return self._deltas(self._parts.push(event.token))

    def finish(self) -> list[Delta]:
        """What was held back, where the reply goes no further."""
        found = self._deltas(self._parts.finish())
        if self._pending and not self.over:  # of tokens that added no text
            found.append(Delta("speech", logprobs=tuple(self._pending)))
        return found

    def ended(self, reason: str | None, seconds: float, warnings: tuple[str, ...]) -> Ended:
        ends = "length" if reason == "length" and not self.over else "tool_calls" if self._calls else "stop"
        return Ended(ends, len(self.ids), self._thought_tokens, self._parts.stop, seconds, warnings, self.ids)

    def _deltas(self, parts: Sequence[Any]) -> list[Delta]:
        found: list[Delta] = []
        for part in parts:
            if self.over and self._calls and not self._ask.parallel_tool_calls:
                break
            if part.kind == "thought":
                self._thought_tokens += self._unsaid
            self._unsaid = 0
            logprobs, self._pending = tuple(self._pending), []
            if part.call is None:
                found.append(Delta(part.kind, part.text, logprobs=logprobs))
            elif part.call.error is not None or not self._callable:  # what nobody can do stays visible
                found.append(Delta("speech", part.call.written, logprobs=logprobs))
            else:
                self._calls += 1
                found.append(Delta("tool_call", call=part.call, logprobs=logprobs))
        return found


def spoken(text: ModelText, event: engine.Token, count: int, *, thought: bool) -> Spoken:
    """A token with its probability and those of the `count` most probable ones."""
    tokenizer, token = text.tokenizer, event.token
    top = tuple((other, tokenizer.token_bytes(other), p) for other, p in event.alternatives[:count])
    control, ends = token in tokenizer.engine.hidden, token in tokenizer.stop_ids
    probability, data = event.probability or 0.0, tokenizer.token_bytes(token)
    return Spoken(token, data, probability, top, event.seconds, thought and not ends, control, ends)


def logprob(text: ModelText, event: engine.Token, count: int) -> Logprob:
    """A token with its log probability and those of the `count` most probable ones."""
    top = tuple(_logprob(text, token, probability) for token, probability in event.alternatives[:count])
    return replace(_logprob(text, event.token, event.probability or 0.0), top=top)


def _logprob(text: ModelText, token: int, probability: float) -> Logprob:
    data = text.tokenizer.token_bytes(token)
    value = math.log(probability) if probability > 0 else _LEAST
    return Logprob(token, data.decode("utf-8", "replace"), data, min(value, 0.0))


def failed(event: engine.Failed) -> Refused:
    """What the engine says of a request that it does not do."""
    if event.kind == "busy":
        return Refused(event.message, "busy", retry_after=BUSY_SECONDS)
    kinds = {"input": "invalid", "memory": "memory", "internal": "engine"}
    return Refused(event.message, kinds[event.kind], field=event.field)  # pyright: ignore[reportArgumentType]
