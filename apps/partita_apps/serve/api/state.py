"""What the server says of itself: whether it works, what it counts, and what it answers to."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

import partita

from .. import openapi
from .exchange import Endpoint, Exchange


async def health(exchange: Exchange) -> Any:
    """The answer to `GET /health`: 503 while a model that must be there is not, or its process has come to a halt.

    It needs no key, and names no model.
    """
    models = [exchange.models.describe(name) for name in exchange.models.names()]
    models = [model for model in models if model.base is None]
    missing = sum(model.pinned and model.state == "unloaded" for model in models)
    counts = {state: sum(model.state == state for model in models) for state in ("unloaded", "loading", "loaded")}
    document = {"status": "unavailable" if missing else "ok", "partita": partita.__version__, "models": counts}
    answer = exchange.answer(document)
    answer.status_code = 503 if missing else 200
    return answer


async def metrics(exchange: Exchange) -> Any:
    """The answer to `GET /metrics`, in Prometheus' text format."""
    return Response(exchange.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def described(exchange: Exchange) -> Any:
    """The answer to `GET /openapi.json`."""
    return exchange.answer(openapi.document(exchange.service.endpoints))


ENDPOINTS = (
    Endpoint("GET", "/health", health, "Whether the server works."),
    Endpoint("GET", "/metrics", metrics, "Counts, for Prometheus."),
    Endpoint("GET", "/openapi.json", described, "This description."),
)
