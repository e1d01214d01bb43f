"""One request and its answer, as a dialect sees them: a typed body in, replies out, whole or streamed.

Invariant: whatever was accepted and not done stands in the answer's headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .. import fields, replies
from ..asked import Ask, Ended, Event, Refused
from ..metrics import Metrics
from ..settings import Settings
from ..streams import EventStream, Gone, Replies, Writer, whole
from .errors import Dialect

if TYPE_CHECKING:
    from ..app.pages import Pages

LARGE = 1 << 18
"""Bytes from which on a body is parsed in a thread, so that other streams go on."""


@dataclass(frozen=True)
class Endpoint:
    """A route. path: `{name:path}` for the rest of one. alias: whether it is also there without `/v1`. body: its type,
    None without one. what: a line for the description."""

    method: str
    path: str
    answer: Callable[[Exchange], Awaitable[Any]]
    what: str
    body: type[fields.Body] | None = None
    dialect: Dialect = "openai"


@dataclass(frozen=True)
class Service:
    """What all requests share."""

    models: replies.Models
    settings: Settings
    metrics: Metrics
    endpoints: Sequence[Endpoint]
    pages: Pages


@dataclass
class Exchange:
    """ignored: fields that were accepted and not done."""

    service: Service
    request: Request
    ignored: list[str] = field(default_factory=list[str])

    @property
    def models(self) -> replies.Models:
        return self.service.models

    @property
    def pages(self) -> Pages:
        """What the server's own page works with."""
        return self.service.pages

    @property
    def id(self) -> str:
        """Of the request, as in the header `x-request-id`."""
        return self.request.scope["state"]["request_id"]

    async def body(self, kind: type[fields.T]) -> fields.T:
        """The request's body. Raises Refused, which names a field, and Gone."""
        try:
            data = await self.request.body()
        except ClientDisconnect:
            raise Gone from None
        value = fields.decoded(data) if len(data) < LARGE else await asyncio.to_thread(fields.decoded, data)
        body, ignored = fields.read(value, kind, strict=self.service.settings.strict)
        self.ignored += ignored
        return body

    def name(self, asked: str | None) -> str:
        """The model's name that was asked for; the first that the server has where none was. Raises Refused where the
        server is strict."""
        if not asked and self.service.settings.strict:
            raise Refused("`model` is missing", field="model")
        return asked or next(iter(self.models.names()), "")

    def replies(self, asks: Sequence[Ask]) -> Replies:
        """A reply to each. They begin when they are read, and must be closed."""
        return [self.service.metrics.counted(replies.reply(self.models, ask)) for ask in asks]

    async def whole(self, asks: Sequence[Ask]) -> list[list[Event]]:
        """All events of the replies, unless the client goes away meanwhile. Raises Refused, Gone."""
        return await whole(self.request.receive, self.replies(asks))

    def stream(self, asks: Sequence[Ask], writer: Writer) -> EventStream:
        """The answer that streams the replies."""
        return EventStream(self.replies(asks), writer, self.headers(), silence=self.service.settings.silence)

    def answer(
        self, document: Any, events: Sequence[Sequence[Event]] = (), *, headers: Mapping[str, str] | None = None
    ) -> Response:
        """A JSON answer. events: of its replies, whose warnings the headers have."""
        last = [each[-1] for each in events if each]
        warnings = [text for event in last if isinstance(event, Ended) for text in event.warnings]
        more = {**self.headers(), **(headers or {})}
        if warnings:
            more["x-partita-warnings"] = "; ".join(warnings)[:1000].encode("ascii", "replace").decode()
        return Response(msgspec.json.encode(document), headers=more, media_type="application/json")

    def headers(self) -> dict[str, str]:
        names = fields.listed(self.ignored)
        return {"x-partita-ignored": names} if names else {}
