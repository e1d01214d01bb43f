"""Routes for what a page begins with: the models and their memory, presets, and how other tools are connected."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from msgspec import Meta

import partita

from .. import fields
from ..api.exchange import Endpoint, Exchange
from ..api.models import entry
from ..asked import Refused
from ..clients.agents import AGENTS
from ..clients.apps import APPS
from ..clients.guide import Client, Server
from ..clients.libraries import LIBRARIES
from . import documents, replying
from .asks import checked
from .chats import Name
from .defaults import defaults_of

MOST_PRESETS = 200
Json = dict[str, Any]


class ModelBody(fields.Body, kw_only=True):
    model: Name


class PresetBody(fields.Body, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    settings: Json


class NameBody(fields.Body, kw_only=True):
    name: Name


async def state(exchange: Exchange) -> Any:
    """`GET /app/state`."""
    from ...markup import attachments  # with what pages need alone

    pages, names = exchange.pages, exchange.models.names()
    path = pages.history.file
    return exchange.answer(
        {
            "version": partita.__version__,
            "models": [_model(exchange, name) for name in names],
            "default_model": next(iter(names), None),
            "presets": await pages.call(pages.history.presets),
            "history": {"path": None if path is None else str(path), "on": pages.kept},
            "runs": [documents.run(run) for run in pages.runs],
            "limits": {
                "attachment_bytes": attachments.LARGEST,
                "attachment_characters": replying.MOST_FILE,
                "attachments": replying.MOST_FILES,
                "text": replying.MOST_TEXT,
            },
            "url": _url(exchange),
            "needs_key": exchange.service.settings.api_key is not None,
            "clients": [_client(each) for each in _clients().values()],
        }
    )


def _model(exchange: Exchange, name: str) -> Json:
    """predicted: bytes in memory once it is loaded; free: that there are; progress: layers while it is being loaded."""
    models = exchange.models
    described = models.describe(name)
    found = entry(described) | {"predicted": models.predicted(name), "free": models.free()}
    if described.state == "loading":
        found["progress"] = list(getattr(models.workers().get(described.base or name), "progress", (0, 0)))
    return found


def _url(exchange: Exchange) -> str:
    return f"http://{exchange.request.headers['host']}"


def _clients() -> dict[str, Client]:
    return {client.name: client for client in (*AGENTS, *LIBRARIES, *APPS)}


def _client(client: Client) -> Json:
    command = f"partita clients {client.name}"
    return {
        "name": client.name,
        "title": client.title,
        "api": client.api,
        "tested": client.tested(),
        "command": command,
    }


async def client(exchange: Exchange) -> Any:
    """`GET /app/clients/NAME`: the settings of a tool, with the address, and the context of the model that is named."""
    name, asked = exchange.request.path_params["name"], exchange.request.query_params.get("model")
    found = _clients().get(name)
    if found is None:
        raise Refused(f"unknown tool {name[:100]!r}; expected one of {', '.join(_clients())}", "not_found")
    model = exchange.models.describe(asked or next(iter(exchange.models.names()), ""))
    keyed = exchange.service.settings.api_key is not None
    server = Server(_url(exchange), model.name, model.context or 0, keyed=keyed, running=True)
    return exchange.answer({**_client(found), **asdict(found.settings(server))})


async def defaults(exchange: Exchange) -> Any:
    """`GET /app/defaults?model=`: what settings are that nobody chose, and whose word that is."""
    name = exchange.request.query_params.get("model") or next(iter(exchange.models.names()), "")
    return exchange.answer({"defaults": defaults_of(await exchange.models.generation_config(name))})


async def load(exchange: Exchange) -> Any:
    """`POST /app/models/load`: the answer comes when it is loaded; meanwhile `/app/events` tells how far it is."""
    body, models = await exchange.body(ModelBody), exchange.models
    models.describe(body.model)
    exchange.pages.changes.tell("models", {})
    try:
        async for _ in models.loading(body.model):
            pass
    finally:
        exchange.pages.changes.tell("models", {})
    return exchange.answer(_model(exchange, body.model))


async def unload(exchange: Exchange) -> Any:
    body, models = await exchange.body(ModelBody), exchange.models
    await models.unload(body.model)
    exchange.pages.changes.tell("models", {})
    return exchange.answer(_model(exchange, body.model))


async def put_preset(exchange: Exchange) -> Any:
    body, pages = await exchange.body(PresetBody), exchange.pages
    known = await pages.call(pages.history.presets)
    if body.name not in known and len(known) >= MOST_PRESETS:
        raise Refused(f"there are {MOST_PRESETS} presets: delete one first", field="name")
    await pages.call(pages.history.put_preset, body.name, checked(body.settings))
    return await _presets(exchange)


async def drop_preset(exchange: Exchange) -> Any:
    body, pages = await exchange.body(NameBody), exchange.pages
    await pages.call(pages.history.drop_preset, body.name)
    return await _presets(exchange)


async def _presets(exchange: Exchange) -> Any:
    pages = exchange.pages
    pages.changes.tell("models", {})  # upon which pages fetch the state
    return exchange.answer({"presets": await pages.call(pages.history.presets)})


ENDPOINTS = (
    Endpoint("GET", "/app/state", state, "What a page begins with."),
    Endpoint("GET", "/app/clients/{name}", client, "How a tool is connected."),
    Endpoint("GET", "/app/defaults", defaults, "Settings that nobody chose."),
    Endpoint("POST", "/app/models/load", load, "A model into memory.", ModelBody),
    Endpoint("POST", "/app/models/unload", unload, "A model out of memory.", ModelBody),
    Endpoint("POST", "/app/presets", put_preset, "Settings under a name.", PresetBody),
    Endpoint("POST", "/app/presets/drop", drop_preset, "A preset is deleted.", NameBody),
)
