"""Fine-tuning over HTTP, for the page: JSON in and out below /app/tuning, and a run's events as a stream.

Knows no process and no file. Invariants: data come as a body and by no other way; a request names runs and data by ids
that were made here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ... import fields
from ...api.exchange import Endpoint, Exchange
from ...asked import Refused
from ...streams import while_heard
from ..chats import Nothing
from ..log import Stream, frame
from .live import Live
from .store import MAX_DATA, Record, Store, thinned
from .tunings import CHOSEN, Tunings, defaults

_GATHER = 0.1  # seconds in which steps are gathered before they are sent
Json = dict[str, Any]
Id = Annotated[str, Meta(max_length=64)]
Prompt = Annotated[str, Meta(min_length=1, max_length=4000)]
Number = Annotated[int, Meta(ge=1, le=10**9)]


class Chosen(fields.Body, kw_only=True):
    """What a person chooses of a run's settings; null: as `partita finetune` would decide."""

    rank: Number | None = None
    steps: Number | None = None
    epochs: Annotated[float, Meta(gt=0, lt=1e6)] | None = None
    learning_rate: Annotated[float, Meta(gt=0, le=10)] | None = None
    max_length: Annotated[int, Meta(ge=2, le=10**9)] | None = None
    batch_size: Number | None = None
    accumulate: Number | None = None
    sample: Annotated[list[Prompt], Meta(max_length=8)] | None = None

    @property
    def given(self) -> Json:
        found = {name: getattr(self, name) for name in CHOSEN}
        return {name: value for name, value in found.items() if value is not None}


class NewData(fields.Body, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    data: bytes
    """As base64."""


class Asked(fields.Body, kw_only=True):
    """What a run would take."""

    model: Annotated[str, Meta(max_length=500)]
    data: Id
    settings: Chosen = msgspec.field(default_factory=Chosen)


class NewRun(Asked, kw_only=True):
    name: Annotated[str, Meta(max_length=100)] = ""


# Data


async def overview(exchange: Exchange) -> Any:
    tunings = of(exchange)
    active = None if tunings.live is None else tunings.live.record.id
    return exchange.answer(
        {
            "runs": [brief(each, tunings.store) for each in tunings.records()],
            "data": tunings.store.uploads(),
            "active": active,
            "defaults": defaults(),
            "limits": {"data_bytes": MAX_DATA},
        }
    )


async def upload(exchange: Exchange) -> Any:
    body = await exchange.body(NewData)
    return exchange.answer(await of(exchange).upload(body.name, body.data))


async def drop_data(exchange: Exchange) -> Any:
    await exchange.body(Nothing)
    of(exchange).drop_upload(_id(exchange))
    return exchange.answer({})


# Runs


async def predict(exchange: Exchange) -> Any:
    body = await exchange.body(Asked)
    found = of(exchange).predict(body.model, body.data, body.settings.given)
    return exchange.answer(await while_heard(exchange.request.receive, found))


async def start(exchange: Exchange) -> Any:
    body, tunings = await exchange.body(NewRun), of(exchange)
    return exchange.answer(document(tunings.start(body.name, body.model, body.data, body.settings.given), tunings))


async def one(exchange: Exchange) -> Any:
    tunings = of(exchange)
    return exchange.answer(document(tunings.find(_id(exchange)), tunings))


async def stop(exchange: Exchange) -> Any:
    await exchange.body(Nothing)
    tunings = of(exchange)
    return exchange.answer(document(tunings.stop(_id(exchange)), tunings))


async def resume(exchange: Exchange) -> Any:
    await exchange.body(Nothing)
    tunings = of(exchange)
    return exchange.answer(document(tunings.resume(_id(exchange)), tunings))


async def delete(exchange: Exchange) -> Any:
    await exchange.body(Nothing)
    await of(exchange).delete(_id(exchange))
    exchange.pages.changes.tell("models", {})
    return exchange.answer({})


async def use(exchange: Exchange) -> Any:
    await exchange.body(Nothing)
    model = await of(exchange).use(_id(exchange))
    exchange.pages.changes.tell("models", {})
    return exchange.answer({"model": model})


async def events(exchange: Exchange) -> Any:
    """Of the run that goes on; of another one there are none, but how it ended."""
    tunings, request = of(exchange), exchange.request
    record, live = tunings.find(_id(exchange)), tunings.live
    said = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
    if not said.isdecimal() or len(said) > 18:
        raise Refused("`after` must be the number of an event", field="after")
    if live is None or live.record is not record:
        live = None
    return Stream(pieces(tunings, record, live, int(said), exchange.service.settings.silence))


def of(exchange: Exchange) -> Tunings:
    """Raises Refused where the server has no data folder."""
    found = exchange.pages.tunings
    if found is None:
        raise Refused("this server has no data folder, so that it fine-tunes nothing", "conflict")
    return found


def _id(exchange: Exchange) -> str:
    return exchange.request.path_params["id"]


# Answers


def brief(record: Record, store: Store) -> Json:
    """For a list of runs."""
    ended = record.ended or {}
    return {
        "id": record.id,
        "name": record.name,
        "model": record.model,
        "data": record.data,
        "rows": record.rows,
        "created": record.created,
        "state": record.state,
        "used": record.used,
        "adapter": store.has_adapter(record),
        "step": record.step,
        "steps": record.steps,
        "seconds": record.seconds,
        "message": record.message,
        "field": record.field,
        "test_loss": ended.get("test_loss"),
    }


def document(record: Record, tunings: Tunings) -> Json:
    """Everything of a run. last: the number of the event up to which this tells, for who goes on with its events."""
    store, live = tunings.store, tunings.live
    last = live.log.last if live is not None and live.record is record else None
    rows = store.rows(record)
    train = [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
    valid = [(row["step"], row["valid_loss"]) for row in rows if "valid_loss" in row]
    return {
        **brief(record, store),
        "settings": record.settings,
        "ready": record.ready,
        "ended": record.ended,
        "samples": record.samples,
        "notes": record.notes,
        "train": thinned(train),
        "valid": valid,
        "running": last is not None,
        "last": last,
    }


async def pieces(
    tunings: Tunings, record: Record, live: Live | None, after: int, silence: float
) -> AsyncGenerator[bytes, None]:
    """Events behind a number, several at a time; b"" after so many seconds without one. live: None of a run that does
    not go on."""
    if live is None:
        yield frame(after + 1, "end", {"state": record.state, "message": record.message, "field": record.field})
        return
    while True:
        found = live.log.since(after)
        if found is None:  # so long ago that it is forgotten: the whole run is to be asked for again
            after = live.log.last
            yield frame(after, "reset", {})
        elif found:
            after = found[-1].number
            yield b"".join(frame(*event) for event in found)
        elif live.log.closed or tunings.leaving:
            return
        else:
            try:
                async with asyncio.timeout(silence):
                    await live.log.wait()
            except TimeoutError:
                yield b""
            else:
                await asyncio.sleep(_GATHER)


ENDPOINTS = (
    Endpoint("GET", "/app/tuning", overview, "Fine-tuning: runs and data."),
    Endpoint("POST", "/app/tuning/data", upload, "Data to fine-tune on.", NewData),
    Endpoint("POST", "/app/tuning/data/{id}/delete", drop_data, "Remove data.", Nothing),
    Endpoint("POST", "/app/tuning/predict", predict, "What a run would take.", Asked),
    Endpoint("POST", "/app/tuning/runs", start, "Begin a run.", NewRun),
    Endpoint("GET", "/app/tuning/runs/{id}", one, "A run."),
    Endpoint("GET", "/app/tuning/runs/{id}/events", events, "What happens to a run, as a stream."),
    Endpoint("POST", "/app/tuning/runs/{id}/stop", stop, "Save a run and end it.", Nothing),
    Endpoint("POST", "/app/tuning/runs/{id}/resume", resume, "Go on with a run.", Nothing),
    Endpoint("POST", "/app/tuning/runs/{id}/delete", delete, "Remove a run and its adapter.", Nothing),
    Endpoint("POST", "/app/tuning/runs/{id}/use", use, "Make a run's adapter one that requests may name.", Nothing),
)
