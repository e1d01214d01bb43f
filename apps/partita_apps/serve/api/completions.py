"""OpenAI's older Completions: text goes on as it stands. No chat template; control tokens' literals are those tokens,
which prompts that fill in the middle of a text need.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from msgspec import Meta

from partita.engine.request import MAX_BIASES
from partita.files.bounded import is_list

from .. import fields
from ..asked import Ask, Delta, Ended, Event, Logprob, Refused
from ..streams import frame
from . import errors
from .chat import HINTS, StreamOptions, Usage
from .chat_messages import format_of
from .exchange import Endpoint, Exchange
from .sampling_fields import Sampled, biases

Json = dict[str, Any]
_STRUCTURE = "response_format"


class CompletionBody(Sampled, kw_only=True):
    HINTS = HINTS
    REFUSED = {  # noqa: RUF012
        "suffix": "`prompt` with the model's own tokens for filling in",
        **dict.fromkeys(("grammar", "json_schema", "guided_json", "guided_regex", "guided_choice"), _STRUCTURE),
        **dict.fromkeys(("guided_grammar", "structured_outputs"), _STRUCTURE),
    }
    prompt: Any
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: fields.Count | None = None
    n: fields.Replies | None = None
    best_of: int | None = None
    echo: bool | None = None
    stop: fields.Stop | None = None
    logprobs: fields.Alternatives | bool | None = None
    logit_bias: Annotated[dict[str, fields.Bias], Meta(max_length=MAX_BIASES)] | None = None
    response_format: Any = None

    def asks(self, model: str) -> list[Ask]:
        """For each prompt `n` replies, in their order. Raises Refused."""
        if self.best_of not in (None, self.n or 1):
            raise Refused("`best_of` is not supported; supported: the value of `n`", field="best_of")
        wants = self.logprobs is not None and self.logprobs is not False
        if self.echo and wants:
            raise Refused("`logprobs` are of new tokens only: leave out `echo`", field="logprobs")
        prompts, count = prompts_of(self.prompt), self.n or 1
        if len(prompts) * count > fields.MAX_TEXTS:
            raise Refused(f"`prompt` and `n` come to more than {fields.MAX_TEXTS} replies", field="prompt")
        return [
            Ask(
                model,
                **prompt,
                sampling=self.sampling(i),
                max_tokens=self.max_tokens,
                stop=fields.texts(self.stop),
                logprobs=int(self.logprobs or 0) if wants else None,
                logit_bias=biases(self.logit_bias),
                format=format_of(self.response_format),
            )
            for prompt in prompts
            for i in range(count)
        ]


def prompts_of(prompt: Any) -> list[Json]:
    """One text or several, the ids of one or of several, each as a field of `Ask`. Raises Refused."""
    if isinstance(prompt, str):
        return [{"text": prompt}]
    if is_list(prompt) and prompt and all(isinstance(each, str) for each in prompt):
        return [{"text": each} for each in prompt]
    several = [prompt] if is_list(prompt) and prompt and not is_list(prompt[0]) else prompt
    if is_list(several) and several:
        return [{"ids": fields.converted(each, list[fields.Token], "prompt")} for each in several]
    raise Refused("`prompt` must be text, a list of texts, ids, or a list of lists of ids", field="prompt")


async def complete(exchange: Exchange) -> Any:
    """The answer to `POST /v1/completions`."""
    body = await exchange.body(CompletionBody)
    model = exchange.name(body.model)
    asks = body.asks(model)
    echoes = await _echoes(exchange, asks) if body.echo else [""] * len(asks)
    writer = CompletionWriter(model, echoes, asks[0].logprobs is not None)
    if body.stream:
        writer.shows_usage = body.stream_options is not None and body.stream_options.include_usage is True
        return exchange.stream(asks, writer)
    events = await exchange.whole(asks)
    return exchange.answer(writer.document(events, body.n or 1), events)


async def _echoes(exchange: Exchange, asks: Sequence[Ask]) -> list[str]:
    """The prompts as text."""
    async with exchange.models.use(asks[0].model) as model:
        tokenizer = model.text.tokenizer
        return [ask.text if ask.text is not None else tokenizer.decode(ask.ids or ()) for ask in asks]


ENDPOINTS = (Endpoint("POST", "/v1/completions", complete, "Text that goes on, without a template.", CompletionBody),)


class CompletionWriter:
    """Of several replies, each behind what is echoed of its prompt; as a document, or as chunks of a stream."""

    def __init__(self, model: str, echoes: Sequence[str], logprobs: bool) -> None:
        ident = f"cmpl-{secrets.token_hex(12)}"
        self._head = {"id": ident, "object": "text_completion", "created": int(time.time()), "model": model}
        self._echoes, self._logprobs = list(echoes), logprobs
        self._places = [len(echo) for echo in echoes]
        self._usage = Usage()
        self.shows_usage = False

    def push(self, index: int, event: Event) -> Iterable[bytes]:
        self._usage.add(event)
        if isinstance(event, Delta):
            echo, self._echoes[index] = self._echoes[index], ""
            yield self._chunk(index, echo + event.text, event.logprobs)
        elif isinstance(event, Ended):
            for warning in event.warnings:
                yield f": {' '.join(warning.split())}\n\n".encode()
            yield self._chunk(index, self._echoes[index], reason=event.reason)

    def fail(self, why: Refused) -> Iterable[bytes]:
        yield frame(errors.document(why, "openai"))

    def finish(self) -> Iterable[bytes]:
        if self.shows_usage:
            yield frame({**self._head, "choices": [], "usage": self._usage.document()})
        yield frame("[DONE]")

    def document(self, replies: Sequence[Sequence[Event]], count: int) -> Json:
        """count: of replies to one prompt."""
        choices: list[Json] = []
        usages: list[Json] = []
        for first in range(0, len(replies), count):
            usage = Usage()
            for event in (event for events in replies[first : first + count] for event in events):
                usage.add(event)
            usages.append(usage.document())
        for i, events in enumerate(replies):
            deltas = [event for event in events if isinstance(event, Delta)]
            text = self._echoes[i] + "".join(delta.text for delta in deltas)
            logprobs = [each for delta in deltas for each in delta.logprobs]
            reason = next(event.reason for event in events if isinstance(event, Ended))
            choices.append(self._choice(i, text, logprobs, reason))
        return {**self._head, "choices": choices, "usage": _sum(usages)}

    def _chunk(self, index: int, text: str, logprobs: Sequence[Logprob] = (), reason: str | None = None) -> bytes:
        choice = self._choice(index, text, logprobs, reason)
        return frame({**self._head, "choices": [choice], **({"usage": None} if self.shows_usage else {})})

    def _choice(self, index: int, text: str, logprobs: Sequence[Logprob], reason: str | None) -> Json:
        shown = self._shown(index, logprobs) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": shown, "finish_reason": reason}

    def _shown(self, index: int, tokens: Sequence[Logprob]) -> Json:
        """In the form of this API: a list for each fact."""
        places: list[int] = []
        for token in tokens:
            places.append(self._places[index])
            self._places[index] += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{each.text: each.logprob for each in token.top} for token in tokens],
            "text_offset": places,
        }


def _sum(documents: Sequence[Json]) -> Json:
    """Usage of several prompts in one."""
    found: Json = {}
    for document in documents:
        for name, value in document.items():
            found[name] = _sum([found.get(name, {}), value]) if isinstance(value, dict) else found.get(name, 0) + value
    return found
