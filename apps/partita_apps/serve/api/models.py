"""The list of models, in one form that OpenAI's and Anthropic's clients read, and local ones besides."""

from __future__ import annotations

import time
from typing import Any

from ..registry import Description
from .exchange import Endpoint, Exchange

Json = dict[str, Any]


def entry(model: Description) -> Json:
    """context: what requests have, once the model was loaded that of its cache; null where nobody knows it."""
    facts = model.facts
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(model.created))
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "partita",
        "type": "model",
        "display_name": model.name,
        "created_at": created,
        "parent": model.base,
        "context_length": model.context,
        "context_window": model.context,
        "max_model_len": model.context,
        "max_input_tokens": model.context,
        "max_tokens": model.context,
        "loaded_context_length": None if facts is None else facts.context,
        "state": model.state,
        "pinned": model.pinned,
        "size": model.bytes,
        "memory": model.memory,
        "meta": {
            "n_ctx": model.context,
            "n_ctx_train": None if facts is None else facts.trained_context,
            "size": model.bytes,
            **{name: None if facts is None else getattr(facts, name) for name in ("backend", "device", "dtype", "kv")},
            "row_bytes": None if facts is None else facts.row_bytes,
        },
    }


async def listed(exchange: Exchange) -> Any:
    """The answer to `GET /v1/models`."""
    data = [entry(exchange.models.describe(name)) for name in exchange.models.names()]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return exchange.answer({"object": "list", "data": data, "has_more": False, **ends})


async def one(exchange: Exchange) -> Any:
    """The answer to `GET /v1/models/{id}`. Raises Refused."""
    return exchange.answer(entry(exchange.models.describe(exchange.request.path_params["name"])))


ENDPOINTS = (
    Endpoint("GET", "/v1/models", listed, "The models that requests may name."),
    Endpoint("GET", "/v1/models/{name:path}", one, "One of them."),
)
