"""OpenAI's Responses, without what a server would have to keep: routes. What is asked and said is told apart elsewhere
(`responses_request`, `responses_reply`)."""

from __future__ import annotations

from typing import Any

from .. import replies
from ..streams import while_heard
from .exchange import Endpoint, Exchange
from .responses_reply import ResponseWriter
from .responses_request import ResponsesBody, ResponsesRequest, read_responses
from .typed_stream import TypedStream


async def create(exchange: Exchange) -> Any:
    """The answer to `POST /v1/responses`."""
    asked = await _read(exchange)
    writer = ResponseWriter(asked.head, asked.calls, seal=asked.seal, logprobs=asked.logprobs)
    if asked.stream:
        return exchange.stream([asked.ask], TypedStream(writer))
    events = await exchange.whole([asked.ask])
    for event in events[0]:
        writer.push(event)
    return exchange.answer(writer.response, events)


async def count(exchange: Exchange) -> Any:
    """The answer to `POST /v1/responses/input_tokens`: tokens of the prompt that `create` would give the model."""
    asked = await _read(exchange)
    tokens = await while_heard(exchange.request.receive, replies.count(exchange.models, asked.ask))
    return exchange.answer({"object": "response.input_tokens", "input_tokens": tokens})


async def _read(exchange: Exchange) -> ResponsesRequest:
    asked = read_responses(await exchange.body(ResponsesBody))
    exchange.ignored += asked.ignored
    return asked


ENDPOINTS = (
    Endpoint("POST", "/v1/responses", create, "A reply to a conversation, as items.", ResponsesBody),
    Endpoint("POST", "/v1/responses/input_tokens", count, "Tokens of a conversation's prompt.", ResponsesBody),
)
