"""Text and conversations as tokens, and back, as local servers have it. Nothing is computed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from partita.text.tokenizer import Tokenizer

from .. import fields
from ..asked import Ask, Refused
from ..replies import check_ids, encoded_for
from .chat_messages import choice_of, messages_of, tools_of
from .exchange import Endpoint, Exchange
from .sampling_fields import variables

MAX_IDS = 1 << 20


class TokenizeBody(fields.Body, kw_only=True):
    """Exactly one of `content` (also called `prompt` and `text`) and `messages`."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    text: str | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(fields.Body, kw_only=True):
    tokens: Annotated[list[fields.Token], Meta(max_length=MAX_IDS)]
    model: str | None = None


async def tokenize(exchange: Exchange) -> Any:
    """The answer to `POST /tokenize`. add_special: with BOS where the model was trained with one; parse_special:
    literals of control tokens are those tokens."""
    body = await exchange.body(TokenizeBody)
    given = [each for each in (body.content, body.prompt, body.text) if each is not None]
    if len(given) + (body.messages is not None) != 1:
        raise Refused("give exactly one of `content`, `prompt`, `text` and `messages`", field="content")
    name = exchange.name(body.model)
    async with exchange.models.use(name) as model:
        text = model.text
        if body.messages is not None:
            _, tools = choice_of(None, tools_of(body.tools, exchange.ignored))
            more = variables(body.chat_template_kwargs, "chat_template_kwargs")
            ask = Ask(name, messages=messages_of(body.messages), tools=tools, variables=more)
            ids = (await encoded_for(text, ask)).ids
        else:
            special = body.add_special if body.add_special_tokens is None else body.add_special_tokens
            bos, parse = text.tokenizer.adds_bos and special is True, body.parse_special is not False
            ids = await asyncio.to_thread(text.tokenizer.encode, given[0], bos=bos, specials=parse)
        tokens = _pieces(text.tokenizer, ids) if body.with_pieces else ids
        return exchange.answer({"tokens": tokens, "count": len(ids), "max_model_len": text.context})


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[dict[str, Any]]:
    return [{"id": token, "piece": tokenizer.decode([token], specials=True, continues=True)} for token in ids]


async def detokenize(exchange: Exchange) -> Any:
    """The answer to `POST /detokenize`: text with control tokens as their literals, under both names clients read."""
    body = await exchange.body(DetokenizeBody)
    async with exchange.models.use(exchange.name(body.model)) as model:
        check_ids(body.tokens, model.text, "tokens")
        said = model.text.tokenizer.decode(body.tokens, specials=True)
    return exchange.answer({"content": said, "prompt": said})


ENDPOINTS = (
    Endpoint("POST", "/v1/tokenize", tokenize, "Text, or a conversation, as tokens.", TokenizeBody),
    Endpoint("POST", "/v1/detokenize", detokenize, "Tokens as text.", DetokenizeBody),
)
