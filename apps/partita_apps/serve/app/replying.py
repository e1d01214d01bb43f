"""Routes for runs: a reply is begun, followed and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from .. import fields
from ..api.exchange import Endpoint, Exchange
from ..asked import Refused
from . import documents
from .asks import ask_of, has_something
from .chats import Name, Nothing
from .log import Stream, frame
from .pages import Pages
from .run import Task

if TYPE_CHECKING:
    from ...history import Chat, Message

MOST_TEXT = 4 << 20  # characters of a message
MOST_FILES = 20
MOST_FILE = 1 << 20  # characters of an attached one
_FOLLOW = 0.5  # seconds between two looks at a reply that another process writes


class File(Struct, kw_only=True):
    """text: of a new one. message: that has it already, under this name."""

    name: Annotated[str, Meta(min_length=1, max_length=300)]
    type: Annotated[str, Meta(max_length=200)] = "text/plain"
    text: Annotated[str, Meta(max_length=MOST_FILE)] | None = None
    message: Name | None = None


class RunBody(fields.Body, kw_only=True):
    do: Literal["send", "again", "continue", "token"]
    parent: Name | UnsetType | None = UNSET
    text: Annotated[str, Meta(max_length=MOST_TEXT)] = ""
    attachments: Annotated[list[File], Meta(max_length=MOST_FILES)] = msgspec.field(default_factory=list)
    message: Name | None = None
    position: fields.Token | None = None
    token: fields.Token | None = None


@dataclass(frozen=True)
class _Plan:
    """question: the message that is answered, or of which there is only the text yet. reply: whose tokens are taken."""

    question: Message
    begins: tuple[int, ...] = ()
    text: str = ""
    reply: Message | None = None


async def begin(exchange: Exchange) -> Any:
    """`POST /app/chats/ID/runs`. Raises Refused: conflict while the chat has a run."""
    body, pages = await exchange.body(RunBody), exchange.pages
    ident = exchange.request.path_params["id"]
    with pages.runs.claim(ident):
        chat = await pages.call(pages.history.chat, ident)
        if chat.deleted is not None:
            raise Refused("the chat was deleted: restore it first", "conflict")
        model = chat.model or next(iter(exchange.models.names()), "")
        exchange.models.describe(model)
        plan = await _plan(pages, chat, body, model)
        run = pages.runs.begin(await _task(pages, chat, model, plan))
    return exchange.answer({"run": run.task.run, "message": plan.question.id, "reply": run.task.run})


async def _plan(pages: Pages, chat: Chat, body: RunBody, model: str) -> _Plan:
    if body.do == "send":
        return _Plan(await _asked(pages, chat, body))
    if body.message is None:
        raise Refused(f"`message` is missing: which one is {body.do!r} about", field="message")
    message = await _of_chat(pages, chat, body.message, "message")
    if body.do == "again":
        if message.role == "assistant":
            raise Refused("`message` must be a question, to which another reply is written", field="message")
        return _Plan(message)
    if message.role != "assistant" or message.parent is None:
        raise Refused("`message` must be a reply", field="message")
    question = await _of_chat(pages, chat, message.parent, "message")
    if body.do == "token":
        return _Plan(question, _with_token(message, body, model), reply=message)
    if message.ids and message.model == model:
        return _Plan(question, message.ids, reply=message)
    if message.thought or message.calls:
        raise Refused("a reply of another model with thoughts or calls cannot be continued", field="message")
    return _Plan(question, text=message.content)


def _with_token(message: Message, body: RunBody, model: str) -> tuple[int, ...]:
    """The tokens of a reply up to a place, and another one there."""
    if body.position is None or body.token is None:
        missing = "position" if body.position is None else "token"
        raise Refused(f"`{missing}` is missing", field=missing)
    if message.model != model:
        raise Refused(f"the reply is {message.model}'s: its tokens are not those of {model}", field="message")
    if body.position > len(message.ids):
        raise Refused(f"`position` must be from 0 to {len(message.ids)}, got {body.position}", field="position")
    return (*message.ids[: body.position], body.token)


async def _asked(pages: Pages, chat: Chat, body: RunBody) -> Message:
    """What a person sent, written into the history."""
    if not body.text.strip() and not body.attachments:
        raise Refused("`text` is empty: write something, or attach a file", field="text")
    parent = chat.leaf if isinstance(body.parent, UnsetType) else body.parent
    if parent is not None:
        await _of_chat(pages, chat, parent, "parent")
    files = [await _file(pages, chat, each, f"attachments[{i}]") for i, each in enumerate(body.attachments)]
    return await pages.call(
        pages.history.add, chat.id, parent=parent, role="user", content=body.text, attachments=files
    )


async def _file(pages: Pages, chat: Chat, file: File, where: str) -> dict[str, str]:
    if file.text is not None:
        return {"name": file.name, "type": file.type, "text": file.text}
    if file.message is None:
        raise Refused(f"`{where}.text` is missing", field=f"{where}.text")
    holder = await _of_chat(pages, chat, file.message, f"{where}.message")
    found = next((each for each in holder.attachments if each.get("name") == file.name), None)
    if found is None:
        raise Refused(f"`{where}`: that message has no file {file.name[:200]!r}", field=where)
    return {"name": file.name, "type": str(found.get("type", file.type)), "text": str(found.get("text", ""))}


async def _of_chat(pages: Pages, chat: Chat, ident: str, field: str) -> Message:
    """A message of a chat that nobody is writing. Raises Refused."""
    found = await pages.call(pages.history.message, ident)
    if found.chat != chat.id:
        raise Refused(f"`{field}` {ident[:100]!r} is not of this chat", "not_found", field=field)
    if found.state == "running":
        raise Refused("that reply is still being written: stop it, or wait for its end", "conflict", field=field)
    return found


async def _task(pages: Pages, chat: Chat, model: str, plan: _Plan) -> Task:
    """The reply, written into the history as one that runs, and what is to be done."""
    history = pages.history
    path = await pages.call(history.path, chat.id, plan.question.id)
    ask = ask_of(chat, model, [each for each in path if has_something(each)], plan.begins)
    origin = None
    if plan.reply is not None:
        origin = next(iter(await pages.call(history.trace, plan.reply.id)), None)
    reply = await pages.call(
        history.add, chat.id, parent=plan.question.id, role="assistant", state="running", model=model
    )
    return Task(reply.id, chat.id, plan.question.id, ask, plan.text, origin)


async def events(exchange: Exchange) -> Any:
    """`GET /app/runs/RUN/events`, behind `after` or the header Last-Event-ID; what is over long ago is told from the
    history, from its beginning on."""
    ident, pages = exchange.request.path_params["id"], exchange.pages
    silence = exchange.service.settings.silence
    given = exchange.request.query_params.get("after") or exchange.request.headers.get("last-event-id") or "0"
    after = int(given) if given.isascii() and given.isdecimal() and len(given) < 10 else 0
    run = pages.runs.get(ident)
    if run is not None:
        return Stream(run.log.after(after, silence))
    message = await pages.call(pages.history.message, ident)
    if message.role != "assistant":
        raise Refused(f"unknown run {ident[:100]!r}", "not_found")
    return Stream(_told(pages, message))


async def _told(pages: Pages, message: Message) -> AsyncGenerator[bytes, None]:
    """A reply of the history as events; one that another process writes is followed until its end."""
    number, shown = 0, replace(message, content="", thought="", calls=[])
    blocks = pages.rendering.blocks()
    own = {"run": message.id, "chat": message.chat, "parent": message.parent, "reply": message.id}

    def event(kind: str, data: dict[str, Any]) -> bytes:
        nonlocal number
        number += 1
        return frame(number, kind, data)

    yield event("begin", {**own, "model": message.model})
    while True:
        if message.thought[len(shown.thought) :]:
            yield event("thought", {"text": message.thought[len(shown.thought) :]})
        if message.content[len(shown.content) :]:
            text = message.content[len(shown.content) :]
            change = await asyncio.to_thread(blocks.push, text)
            yield event("block", {"html": change.html, "rest": change.rest, "again": False, "text": text})
        for call in message.calls[len(shown.calls) :]:
            yield event("call", {"id": call.get("id"), **call.get("function", {})})
        if message.state != "running" or pages.leaving:
            break
        shown = message
        await asyncio.sleep(_FOLLOW)
        message = await pages.call(pages.history.message, message.id)
        yield b""
    change = await asyncio.to_thread(blocks.finish)
    yield event("block", {"html": change.html, "rest": "", "again": change.again})
    if message.state != "running":
        yield event("end", {"reason": None, "error": None, "warnings": [], **message.meta, "state": message.state})


async def stop(exchange: Exchange) -> Any:
    """`POST /app/runs/RUN/stop`: the answer comes when it has ended."""
    await exchange.body(Nothing)
    ident, pages = exchange.request.path_params["id"], exchange.pages
    run = pages.runs.get(ident)
    if run is None:
        message = await pages.call(pages.history.message, ident)
        if message.state == "running":
            raise Refused("another process writes this reply: stop it there", "conflict")
        return exchange.answer({"run": ident, "state": message.state})
    run.stop()
    await asyncio.wait([run.done])
    return exchange.answer(documents.run(run))


async def changes(exchange: Exchange) -> Any:
    """`GET /app/events`."""
    return Stream(exchange.pages.changes.listen(exchange.service.settings.silence))


ENDPOINTS = (
    Endpoint("POST", "/app/chats/{id}/runs", begin, "A reply is begun.", RunBody),
    Endpoint("GET", "/app/runs/{id}/events", events, "What a reply says, as it says it."),
    Endpoint("POST", "/app/runs/{id}/stop", stop, "A reply ends with what it has said.", Nothing),
    Endpoint("GET", "/app/events", changes, "What changes: chats, runs, models, trainings."),
)
