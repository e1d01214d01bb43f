"""What is refused, in the form and with the status that each dialect's clients expect. Data in, data out.

Clients act on the words of an overflow: those of its messages are OpenAI's and Anthropic's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from ..asked import Kind, Refused

Dialect = Literal["openai", "anthropic", "ollama", "page"]
STATUS: Mapping[Kind, int] = MappingProxyType(
    {
        "invalid": 400,
        "context": 400,
        "unauthorized": 401,
        "forbidden": 403,
        "not_found": 404,
        "method": 405,
        "too_large": 413,
        "media_type": 415,
        "busy": 429,
        "conflict": 409,
        "memory": 503,
        "engine": 503,
        "internal": 500,
    }
)
GONE = 499
"""What a request whose client went away before its answer is counted as; nobody is sent it."""
_OPENAI_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
_OPENAI_CODES: Mapping[Kind, str] = {
    "context": "context_length_exceeded",
    "unauthorized": "invalid_api_key",
    "not_found": "not_found",
    "too_large": "request_too_large",
    "busy": "rate_limit_exceeded",
    "memory": "insufficient_memory",
    "engine": "model_unavailable",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def is_page(path: str) -> bool:
    """Whether a route is one that the server's own page calls."""
    return path == "/app" or path.startswith("/app/")


def dialect_of(path: str) -> Dialect:
    """The dialect of a route."""
    if path.startswith("/api/"):
        return "ollama"
    if is_page(path):
        return "page"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def status(why: Refused) -> int:
    """Of HTTP. What can never fit in memory is the request's fault, what cannot now is not."""
    return 400 if why.kind == "memory" and why.retry_after is None else STATUS[why.kind]


def document(why: Refused, dialect: Dialect) -> dict[str, Any]:
    """The body of an answer, and the data of a stream's error event."""
    if dialect == "ollama":
        return {"error": why.message}
    if dialect == "page":
        return {"error": {"message": why.message, "type": why.kind, "field": why.field}}
    code = status(why)
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(code, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message(why, dialect)}}
    kind = _OPENAI_TYPES.get(code, "invalid_request_error")
    known = _OPENAI_CODES.get(why.kind)
    return {"error": {"message": message(why, dialect), "type": kind, "param": why.field, "code": known}}


def message(why: Refused, dialect: Dialect) -> str:
    """In a dialect's own words, where clients look for them."""
    if why.kind != "context" or why.needed is None or why.limit is None:
        return why.message
    if dialect == "anthropic":
        return f"prompt is too long: {why.needed} tokens > {why.limit} maximum"
    return (
        f"This model's maximum context length is {why.limit} tokens. However, your messages resulted in {why.needed} "
        "tokens. Please reduce the length of the messages."
    )


def headers(why: Refused) -> dict[str, str]:
    """Of the answer, beside its type."""
    found = {} if why.retry_after is None else {"retry-after": str(why.retry_after)}
    return {**found, "www-authenticate": "Bearer"} if why.kind == "unauthorized" else found
