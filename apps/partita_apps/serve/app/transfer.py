"""Routes for texts on their way in and out: search, export, import, files that are attached."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.responses import Response, StreamingResponse

from partita.errors import DataError

from .. import fields
from ..api.exchange import Endpoint, Exchange
from ..asked import Refused
from . import documents
from .pages import Pages

MOST_IMPORT = 256 << 20
BOUNDS: Mapping[str, int] = MappingProxyType({"/app/import": MOST_IMPORT})
"""Bytes of a body, where they may be more than elsewhere."""
MOST_QUERY = 500  # characters
HITS = 50


class ImportBody(fields.Body, kw_only=True):
    document: dict[str, Any]


class FileBody(fields.Body, kw_only=True):
    """data: in base64. model: whose tokens are counted."""

    name: Annotated[str, Meta(min_length=1, max_length=300)]
    data: str
    model: str | None = None


async def search(exchange: Exchange) -> Any:
    """`GET /app/search?q=`: in titles and messages; what matches stands between the characters 2 and 3."""
    pages, query = exchange.pages, exchange.request.query_params.get("q", "")
    if len(query) > MOST_QUERY:
        raise Refused(f"`q` must have at most {MOST_QUERY} characters", field="q")
    hits = await pages.call(pages.history.search, query, HITS) if query.strip() else []
    return exchange.answer({"hits": [documents.hit(each) for each in hits]})


async def export(exchange: Exchange) -> Any:
    """`GET /app/export`: one chat (`chat`) or all, `format` json or markdown."""
    pages, asked = exchange.pages, exchange.request.query_params
    ident, form = asked.get("chat"), asked.get("format", "json")
    if form not in ("json", "markdown"):
        raise Refused(f"`format` must be json or markdown, got {form[:50]!r}", field="format")
    ids = [(await pages.call(pages.history.chat, ident)).id] if ident else await _all(pages)
    if form == "markdown":
        return StreamingResponse(_markdown(pages, ids), media_type="text/markdown; charset=utf-8")
    frame = await pages.call(pages.history.export, [])
    frame["presets"] = {} if ident else await pages.call(pages.history.presets)
    return StreamingResponse(_json(pages, ids, frame), media_type="application/json")


async def _all(pages: Pages) -> list[str]:
    found, before = list[str](), None
    while chats := await pages.call(pages.history.chats, limit=1000, before=before):
        found += [each.id for each in chats]
        before = chats[-1].cursor
    return found


async def _json(pages: Pages, ids: list[str], frame: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """The document of the history, a chat at a time."""
    rest = {name: value for name, value in frame.items() if name != "chats"}
    yield msgspec.json.encode(rest)[:-1] + b',"chats":['
    written = False
    for ident in ids:
        try:
            (chat,) = (await pages.call(pages.history.export, [ident]))["chats"]
        except Refused:  # erased meanwhile
            continue
        data = await asyncio.to_thread(msgspec.json.encode, chat)
        yield (b"," if written else b"") + data
        written = True
    yield b"]}"


async def _markdown(pages: Pages, ids: list[str]) -> AsyncGenerator[bytes, None]:
    for place, ident in enumerate(ids):
        try:
            text = await pages.call(pages.history.markdown, ident)
        except Refused:
            continue
        yield (("\n---\n\n" if place else "") + text).encode()


async def import_(exchange: Exchange) -> Any:
    body, pages = await exchange.body(ImportBody), exchange.pages
    found = await pages.call(pages.history.import_, body.document)
    pages.changes.chat(None, "imported")
    return exchange.answer({"chats": [documents.chat(each) for each in found]})


async def attach(exchange: Exchange) -> Response:
    """`POST /app/attachments`: a file as the text that goes with a message."""
    from ...markup import attachments

    body = await exchange.body(FileBody)
    if len(body.data) > attachments.LARGEST * 4 // 3 + 8:
        raise Refused(f"`data` has more than {attachments.LARGEST} bytes: attach a part of it", field="data")
    try:
        data = await asyncio.to_thread(base64.b64decode, body.data, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("`data` is not base64", field="data") from None
    try:
        found = await asyncio.to_thread(attachments.read, body.name, data)
    except DataError as error:
        raise Refused(str(error), field=error.field or "data") from None
    own = {"name": found.name, "type": found.type, "text": found.text, "note": found.note}
    tokens = await _tokens(exchange, body.model, found.text)
    return exchange.answer({**own, "characters": len(found.text), "tokens": tokens})


async def _tokens(exchange: Exchange, name: str | None, text: str) -> int | None:
    """How many a text is for a model; None where it is not loaded: it is not loaded for this."""
    if not name or exchange.models.describe(name).state != "loaded":
        return None
    async with exchange.models.use(name) as model:
        return len(await asyncio.to_thread(model.text.tokenizer.encode, text, bos=False))


ENDPOINTS = (
    Endpoint("GET", "/app/search", search, "Chats and messages with all words of a text."),
    Endpoint("GET", "/app/export", export, "Chats as a file."),
    Endpoint("POST", "/app/import", import_, "Chats of such a file.", ImportBody),
    Endpoint("POST", "/app/attachments", attach, "A file as text.", FileBody),
)
