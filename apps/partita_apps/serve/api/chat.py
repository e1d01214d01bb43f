"""OpenAI's Chat Completions: a body in, an `Ask` for each reply, and their events as a completion or as its chunks.

Invariants of a stream: each reply's role comes once, with an empty content; the first delta of a call has its index,
id, type and name, the next its arguments; each reply has one finish reason, on an empty delta; usage comes alone, at
the end.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct

import partita
from partita.engine.request import MAX_BIASES

from .. import fields
from ..asked import Ask, Delta, Ended, Event, Logprob, Refused, Started
from ..streams import frame
from . import errors
from .chat_messages import choice_of, format_of, messages_of, tools_of
from .exchange import Endpoint, Exchange
from .sampling_fields import Sampled, biases, effort_variables, thought_variables, variables

Json = dict[str, Any]
HINTS = frozenset(
    {
        *("metadata", "user", "store", "service_tier", "safety_identifier", "verbosity", "include", "client_metadata"),
        *("prompt_cache_key", "prompt_cache_retention", "cache_control", "cache_prompt", "keep_alive", "prediction"),
        *("provider", "transforms", "timeout"),
    }
)
_STRUCTURE = "response_format"


class StreamOptions(Struct, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Reasoning(Struct, kw_only=True):
    effort: str | None = None


class ChatBody(Sampled, kw_only=True):
    HINTS = HINTS
    REFUSED = {  # noqa: RUF012
        "audio": "text",
        "functions": "tools",
        "function_call": "tool_choice",
        "web_search_options": "nothing in its place",
        **dict.fromkeys(("grammar", "json_schema", "guided_json", "guided_regex", "guided_choice"), _STRUCTURE),
        **dict.fromkeys(("guided_grammar", "structured_outputs"), _STRUCTURE),
    }
    messages: list[Any]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: fields.Count | None = None
    max_completion_tokens: fields.Count | None = None
    n: fields.Replies | None = None
    stop: fields.Stop | None = None
    logprobs: bool | None = None
    top_logprobs: fields.Alternatives | None = None
    logit_bias: Annotated[dict[str, fields.Bias], Meta(max_length=MAX_BIASES)] | None = None
    modalities: list[str] | None = None
    response_format: Any = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    reasoning: Reasoning | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def ask(self, model: str, number: int, ignored: list[str]) -> Ask:
        """What the reply `number` is asked for. Raises Refused."""
        if self.modalities not in (None, [], ["text"]):
            raise Refused("`modalities` is not supported; supported: text", field="modalities")
        if self.top_logprobs and not self.logprobs:
            raise Refused("`top_logprobs` needs `logprobs` true", field="top_logprobs")
        choice, tools = choice_of(self.tool_choice, tools_of(self.tools, ignored))
        effort = self.reasoning_effort or (self.reasoning.effort if self.reasoning else None)
        return Ask(
            model,
            messages=messages_of(self.messages),
            sampling=self.sampling(number),
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            stop=fields.texts(self.stop),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            logit_bias=biases(self.logit_bias),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            format=format_of(self.response_format),
            variables={
                **effort_variables(effort, "reasoning_effort"),
                **({} if self.enable_thinking is None else thought_variables(self.enable_thinking)),
                **variables(self.chat_template_kwargs, "chat_template_kwargs"),
            },
        )


async def complete(exchange: Exchange) -> Any:
    """The answer to `POST /v1/chat/completions`."""
    body = await exchange.body(ChatBody)
    model = exchange.name(body.model)
    asks = [body.ask(model, i, [] if i else exchange.ignored) for i in range(body.n or 1)]
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage is True
        return exchange.stream(asks, ChatWriter(model, len(asks), usage=usage, logprobs=body.logprobs is True))
    events = await exchange.whole(asks)
    return exchange.answer(completion(model, events, logprobs=body.logprobs is True), events)


ENDPOINTS = (Endpoint("POST", "/v1/chat/completions", complete, "A reply to a conversation.", ChatBody),)


class Usage:
    """Tokens of one request's replies: the prompt counts once."""

    def __init__(self) -> None:
        self._prompt = self._cached = self._said = self._thought = 0

    def add(self, event: Event) -> None:
        if isinstance(event, Started):
            self._prompt, self._cached = event.prompt_tokens, max(self._cached, event.cached_tokens)
        elif isinstance(event, Ended):
            self._said += event.completion_tokens
            self._thought += event.thought_tokens

    def document(self) -> Json:
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._said,
            "total_tokens": self._prompt + self._said,
            "prompt_tokens_details": {"cached_tokens": self._cached, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self._thought,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


class ChatWriter:
    """Chunks of a stream of `count` replies."""

    def __init__(self, model: str, count: int, *, usage: bool, logprobs: bool) -> None:
        self._head = _head("chat.completion.chunk", model)
        self._shows_usage, self._shows_logprobs = usage, logprobs
        self._usage = Usage()
        self._calls = [0] * count

    def push(self, index: int, event: Event) -> Iterable[bytes]:
        self._usage.add(event)
        if isinstance(event, Started):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
        elif isinstance(event, Delta):
            yield from self._delta(index, event)
        elif isinstance(event, Ended):
            for warning in event.warnings:
                yield f": {' '.join(warning.split())}\n\n".encode()
            yield self._chunk(index, {}, event.reason)

    def fail(self, why: Refused) -> Iterable[bytes]:
        yield frame(errors.document(why, "openai"))

    def finish(self) -> Iterable[bytes]:
        if self._shows_usage:
            yield frame({**self._head, "choices": [], "usage": self._usage.document()})
        yield frame("[DONE]")

    def _delta(self, index: int, delta: Delta) -> Iterable[bytes]:
        if delta.call is not None:
            number = self._calls[index]
            self._calls[index] += 1
            named = {"name": delta.call.name, "arguments": ""}
            first = {"index": number, "id": delta.call.id, "type": "function", "function": named}
            rest = {"index": number, "function": {"arguments": delta.call.arguments}}
            yield self._chunk(index, {"tool_calls": [first]})
            yield self._chunk(index, {"tool_calls": [rest]})
        elif delta.kind == "thought":
            yield self._chunk(index, {"reasoning_content": delta.text})
        else:
            yield self._chunk(index, {"content": delta.text}, logprobs=delta.logprobs)

    def _chunk(self, index: int, delta: Json, reason: str | None = None, logprobs: Sequence[Logprob] = ()) -> bytes:
        shown = _logprobs(logprobs) if self._shows_logprobs and logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": shown, "finish_reason": reason}
        usage = {"usage": None} if self._shows_usage else {}
        return frame({**self._head, "choices": [choice], **usage})


def completion(model: str, replies: Sequence[Sequence[Event]], *, logprobs: bool) -> Json:
    """The document of whole replies."""
    usage = Usage()
    for event in (event for events in replies for event in events):
        usage.add(event)
    choices = [_choice(i, events, logprobs) for i, events in enumerate(replies)]
    return {**_head("chat.completion", model), "choices": choices, "usage": usage.document()}


def _choice(index: int, events: Sequence[Event], logprobs: bool) -> Json:
    deltas = [event for event in events if isinstance(event, Delta)]
    speech, thought = ("".join(each.text for each in deltas if each.kind == kind) for kind in ("speech", "thought"))
    called = [delta.call for delta in deltas if delta.call is not None]
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in called
    ]
    message: Json = {"role": "assistant", "content": speech if speech or not calls else None, "refusal": None}
    message["annotations"] = []
    message |= {"reasoning_content": thought} if thought else {}
    message |= {"tool_calls": calls} if calls else {}
    shown = _logprobs([each for delta in deltas if delta.kind == "speech" for each in delta.logprobs])
    reason = next(event.reason for event in events if isinstance(event, Ended))
    return {"index": index, "message": message, "logprobs": shown if logprobs else None, "finish_reason": reason}


def _head(kind: str, model: str) -> Json:
    ident = f"chatcmpl-{secrets.token_hex(12)}"
    made_by = f"partita-{partita.__version__}"
    return {"id": ident, "object": kind, "created": int(time.time()), "model": model, "system_fingerprint": made_by}


def _logprobs(tokens: Sequence[Logprob]) -> Json:
    content = [{**_token(token), "top_logprobs": [_token(each) for each in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _token(token: Logprob) -> Json:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}
