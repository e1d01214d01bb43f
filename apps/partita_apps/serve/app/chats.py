"""Routes for chats: lists, trees, changes, and what is kept of a reply's tokens."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType

from .. import fields
from ..api.exchange import Endpoint, Exchange
from ..asked import Refused
from . import documents
from .asks import checked
from .trace import part

PAGE = 200
"""Chats of one answer."""
MOST_TOKENS = 20_000
"""Of a reply's table, in one answer."""
Name = Annotated[str, Meta(max_length=1000)]


class ChatBody(fields.Body, kw_only=True):
    title: Name | UnsetType = UNSET
    folder: Name | UnsetType = UNSET
    pinned: bool | UnsetType = UNSET
    model: Name | UnsetType = UNSET
    settings: dict[str, Any] | UnsetType = UNSET
    leaf: Name | UnsetType = UNSET

    def given(self, *names: str) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not UNSET}
        return {**found, "settings": checked(found["settings"])} if "settings" in found else found


class NewChat(fields.Body, kw_only=True):
    title: Name = ""
    folder: Name = ""
    model: Name | None = None
    settings: dict[str, Any] | None = None


class Nothing(fields.Body, kw_only=True):
    pass


async def listed(exchange: Exchange) -> Any:
    """`GET /app/chats`: `folder`, `deleted`, and `before`, the cursor `more` of an earlier answer."""
    asked, pages = exchange.request.query_params, exchange.pages
    deleted = asked.get("deleted", "").lower() in ("1", "true", "yes")
    found = await pages.call(
        pages.history.chats, folder=asked.get("folder"), deleted=deleted, limit=PAGE + 1, before=asked.get("before")
    )
    shown = found[:PAGE]
    more = shown[-1].cursor if len(found) > PAGE else None
    folders = await pages.call(pages.history.folders)
    return exchange.answer({"chats": [documents.chat(each) for each in shown], "folders": folders, "more": more})


async def create(exchange: Exchange) -> Any:
    body, pages = await exchange.body(NewChat), exchange.pages
    model = body.model or next(iter(exchange.models.names()), "")
    if model:
        exchange.models.describe(model)
    settings = checked(body.settings or {})
    found = await pages.call(pages.history.create, model=model, title=body.title, settings=settings, folder=body.folder)
    pages.changes.chat(found.id, "created")
    return exchange.answer(documents.chat(found))


async def one(exchange: Exchange) -> Any:
    """`GET /app/chats/ID`: all of it, and the run that is under way."""
    ident, pages = exchange.request.path_params["id"], exchange.pages
    chat = await pages.call(pages.history.chat, ident)
    messages = await pages.call(pages.history.messages, ident)
    traced = await pages.call(pages.history.traced, ident)
    tree = await asyncio.to_thread(documents.tree, messages, traced, pages.rendering, chat.leaf)
    run = documents.run(pages.runs.of_chat(ident))
    return exchange.answer({"chat": documents.chat(chat), "messages": tree, "run": run})


async def change(exchange: Exchange) -> Any:
    body, pages = await exchange.body(ChatBody), exchange.pages
    values = body.given("title", "folder", "pinned", "model", "settings", "leaf")
    if "model" in values:
        exchange.models.describe(values["model"])
    found = await pages.call(pages.history.change, exchange.request.path_params["id"], **values)
    pages.changes.chat(found.id, "changed")
    return exchange.answer(documents.chat(found))


async def delete(exchange: Exchange) -> Any:
    return await _gone(exchange, exchange.pages.history.delete, "deleted")


async def restore(exchange: Exchange) -> Any:
    return await _gone(exchange, exchange.pages.history.restore, "restored")


async def erase(exchange: Exchange) -> Any:
    return await _gone(exchange, exchange.pages.history.erase, "erased")


async def _gone(exchange: Exchange, action: Any, word: str) -> Any:
    """Raises Refused (conflict) while a reply of the chat is being written."""
    await exchange.body(Nothing)
    ident, pages = exchange.request.path_params["id"], exchange.pages
    with pages.runs.claim(ident):
        await pages.call(action, ident)
    pages.changes.chat(ident, word)
    return exchange.answer({"id": ident, "change": word})


async def branch(exchange: Exchange) -> Any:
    await exchange.body(Nothing)
    pages = exchange.pages
    found = await pages.call(pages.history.branch, exchange.request.path_params["id"])
    pages.changes.chat(found.id, "created")
    return exchange.answer(documents.chat(found))


async def trace(exchange: Exchange) -> Any:
    """`GET /app/messages/ID/trace`: `from` and `count` are of tokens."""
    ident, pages = exchange.request.path_params["id"], exchange.pages
    start, count = (_number(exchange, name, usual) for name, usual in (("from", 0), ("count", MOST_TOKENS)))
    rows = await pages.call(pages.history.trace, ident)
    return exchange.answer(part(rows, start, min(count, MOST_TOKENS)))


def _number(exchange: Exchange, name: str, usual: int) -> int:
    given = exchange.request.query_params.get(name)
    if given is None:
        return usual
    if not given.isdecimal() or len(given) > 9:
        raise Refused(f"`{name}` must be a number >= 0, got {given[:50]!r}", field=name)
    return int(given)


ENDPOINTS = (
    Endpoint("GET", "/app/chats", listed, "Chats of the page, pinned and new ones first."),
    Endpoint("POST", "/app/chats", create, "A new chat.", NewChat),
    Endpoint("GET", "/app/chats/{id}", one, "A chat with all of its messages."),
    Endpoint("POST", "/app/chats/{id}", change, "Another title, folder, model, leaf, other settings.", ChatBody),
    Endpoint("POST", "/app/chats/{id}/delete", delete, "Out of the lists, for a while.", Nothing),
    Endpoint("POST", "/app/chats/{id}/restore", restore, "Back into the lists.", Nothing),
    Endpoint("POST", "/app/chats/{id}/erase", erase, "Gone for good.", Nothing),
    Endpoint("POST", "/app/messages/{id}/branch", branch, "A new chat with what led to a message.", Nothing),
    Endpoint("GET", "/app/messages/{id}/trace", trace, "The tokens of a reply."),
)
