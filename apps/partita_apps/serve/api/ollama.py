"""Three read-only routes of Ollama's, by which its clients find the models that they then use through OpenAI's.

Invariant: what a client may send to a model is what was loaded: to be shown, a model is loaded.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from ..asked import Refused
from ..fields import Body
from ..model_text import ModelText
from ..registry import Description
from ..streams import while_heard
from .exchange import Endpoint, Exchange

VERSION = "0.13.4"
"""Of Ollama, whose clients ask for at least so much before they use `/v1/responses`."""
_ARCHITECTURE = "partita"
"""Under which name `model_info` has the context's length: clients look it up."""


class ShowBody(Body, kw_only=True):
    HINTS = frozenset({"verbose"})
    model: str | None = None
    name: str | None = None


async def version(exchange: Exchange) -> Any:
    """The answer to `GET /api/version`."""
    return exchange.answer({"version": VERSION})


async def tags(exchange: Exchange) -> Any:
    """The answer to `GET /api/tags`."""
    models = [exchange.models.describe(name) for name in exchange.models.names()]
    return exchange.answer({"models": [_listed(model) for model in models]})


async def show(exchange: Exchange) -> Any:
    """The answer to `POST /api/show`."""
    body = await exchange.body(ShowBody)
    name = body.model or body.name
    if not name:
        raise Refused("`model` is missing", field="model")
    exchange.models.describe(name)  # one that is not there is refused before anything is loaded
    return exchange.answer(await while_heard(exchange.request.receive, _shown(exchange, name)))


async def _shown(exchange: Exchange, name: str) -> dict[str, Any]:
    async with exchange.models.use(name) as model:
        text = model.text
        listed = _listed(exchange.models.describe(name))
        return {
            "modelfile": "",
            "parameters": "",
            "template": text.tokenizer.chat_template or "",
            "details": listed["details"],
            "modified_at": listed["modified_at"],
            "model_info": {
                "general.architecture": _ARCHITECTURE,
                "general.basename": name,
                f"{_ARCHITECTURE}.context_length": text.context,
            },
            "capabilities": capabilities(text),
        }


def capabilities(text: ModelText) -> list[str]:
    """In Ollama's words. A base model, which has no template, only completes."""
    if text.template is None:
        return ["completion"]
    form = text.reply_format
    thinks = form.thought is not None
    return ["completion", "tools", *(["thinking"] if thinks else [])]


def _listed(model: Description) -> dict[str, Any]:
    identity = f"{model.name} {model.created} {model.bytes}"
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": datetime.fromtimestamp(model.created, UTC).isoformat(),
        "size": model.bytes,
        "digest": hashlib.sha256(identity.encode()).hexdigest(),
        "details": {
            "parent_model": model.base or "",
            "format": "",
            "family": _ARCHITECTURE,
            "families": [_ARCHITECTURE],
            "parameter_size": "",
            "quantization_level": "" if model.facts is None else model.facts.dtype,
        },
    }


ENDPOINTS = (
    Endpoint("GET", "/api/version", version, "Ollama's version, for its clients.", dialect="ollama"),
    Endpoint("GET", "/api/tags", tags, "Models, for Ollama's clients.", dialect="ollama"),
    Endpoint("POST", "/api/show", show, "A model, for Ollama's clients.", ShowBody, "ollama"),
)
