"""Anthropic's Messages: routes. What is asked and said is told apart elsewhere (`messages_request`,
`messages_reply`)."""

from __future__ import annotations

from typing import Any

from .. import replies
from ..streams import while_heard
from .exchange import Endpoint, Exchange
from .messages_reply import MessageWriter
from .messages_request import MessagesBody, MessagesRequest, read_messages
from .typed_stream import TypedStream


async def create(exchange: Exchange) -> Any:
    """The answer to `POST /v1/messages`."""
    asked = await _read(exchange)
    writer = MessageWriter(asked.ask.model, asked.ask.max_tokens or 0, show_thoughts=asked.show_thoughts)
    if asked.stream:
        return exchange.stream([asked.ask], TypedStream(writer))
    events = await exchange.whole([asked.ask])
    for event in events[0]:
        writer.push(event)
    return exchange.answer(writer.message, events)


async def count(exchange: Exchange) -> Any:
    """The answer to `POST /v1/messages/count_tokens`: tokens of the prompt that `create` would give the model."""
    asked = await _read(exchange, counted=True)
    tokens = await while_heard(exchange.request.receive, replies.count(exchange.models, asked.ask))
    return exchange.answer({"input_tokens": tokens})


async def _read(exchange: Exchange, *, counted: bool = False) -> MessagesRequest:
    asked = read_messages(await exchange.body(MessagesBody), counted=counted)
    exchange.ignored += asked.ignored
    return asked


ENDPOINTS = (
    Endpoint("POST", "/v1/messages", create, "A reply to a conversation, as blocks.", MessagesBody, "anthropic"),
    Endpoint(
        "POST", "/v1/messages/count_tokens", count, "Tokens of a conversation's prompt.", MessagesBody, "anthropic"
    ),
)
