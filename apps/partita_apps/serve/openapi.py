"""A description of the routes in OpenAPI's form, made of the types that bodies are read with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

import partita

if TYPE_CHECKING:
    from .api.exchange import Endpoint

Json = dict[str, Any]
_ERROR = {"description": "What was wrong, in the form of the API's errors.", "content": {"application/json": {}}}
_ANSWER = {"description": "The answer.", "content": {"application/json": {}}}
_STREAM = {"text/event-stream": {}}


def document(endpoints: Sequence[Endpoint]) -> Json:
    """Of all routes; bodies by reference."""
    bodies = [each.body for each in endpoints if each.body is not None]
    schemas, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    references = dict(zip(bodies, schemas, strict=True))
    paths: dict[str, Json] = {}
    for each in endpoints:
        path = re.sub(r"{(\w+):path}", r"{\1}", each.path)
        paths.setdefault(path, {})[each.method.lower()] = _operation(each, path, references)
    security = {"bearer": {"type": "http", "scheme": "bearer"}, "key": _KEY}
    return {
        "openapi": "3.1.0",
        "info": {"title": "partita", "version": partita.__version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": security},
        "security": [{}, {"bearer": []}, {"key": []}],
    }


_KEY = {"type": "apiKey", "in": "header", "name": "x-api-key"}


def _operation(endpoint: Endpoint, path: str, references: dict[Any, Json]) -> Json:
    answer = _ANSWER
    if endpoint.body is not None and any(field.name == "stream" for field in msgspec.structs.fields(endpoint.body)):
        answer = {**_ANSWER, "content": {**_ANSWER["content"], **_STREAM}}
    found: Json = {"summary": endpoint.what, "responses": {"200": answer, "4XX": _ERROR, "5XX": _ERROR}}
    names = re.findall(r"{(\w+)}", path)
    if names:
        found["parameters"] = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    if endpoint.body is not None:
        content = {"application/json": {"schema": references[endpoint.body]}}
        found["requestBody"] = {"required": True, "content": content}
    return found
