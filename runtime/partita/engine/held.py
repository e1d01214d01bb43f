"""What the caches of traced rows hold, as data for people to see. Reads the host's mirror alone: never the device.

Not here: which slots those tokens are in, which follows from the numbers (`Ring`). Rows that are not traced cost one
look at their request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..cache.state import Cache
from .request import Event, Finished, Held, Ring
from .row import Row

SECONDS = 0.25  # between two reports of a row that decodes


def held(id: int, cache: Cache, row: int) -> Held:
    """What one row of a cache holds."""
    spec, slots, rings = cache.spec, cache.slots(row), list[Ring]()
    for span, capacity in cache.capacity.items():
        layers = sum(layer.span == span for layer in spec.attention.values())
        rings.append(Ring(layers, span.sinks, span.window, spec.ring(span), capacity))
    rings.sort(key=lambda ring: (ring.window is not None, -(ring.window or 0)))
    return Held(
        id=id,
        seen=cache.offsets[row],
        reached=cache.reached[row],
        sinks=slots.sinks,
        window=slots.window,
        free=slots.free,
        context=spec.context,
        bytes=cache.nbytes // cache.batch,
        kv=str(spec.kv),
        key_bits=spec.kv.key_bits,
        value_bits=spec.kv.value_bits,
        sink_bits=spec.kv.sink_bits,
        group=spec.kv.group_size,
        rings=tuple(rings),
    )


def with_held(events: Sequence[Event], rows: Iterable[tuple[Row, Cache, int]], now: float) -> list[Event]:
    """The events of a step, and what those rows' caches hold: of each that is traced now and then, and before its end.

    rows: with their caches, and the place in them. now: seconds.
    """
    ends, reports = {event.id for event in events if isinstance(event, Finished)}, dict[int, Event]()
    for row, cache, place in rows:
        due = not row.ended and now - row.reported >= SECONDS
        if row.request.trace and (due or row.id in ends):
            row.reported = now
            reports[row.id] = held(row.id, cache, place)
    if not reports:
        return list(events)
    found = list[Event]()
    for event in events:
        if isinstance(event, Finished) and event.id in reports:
            found.append(reports.pop(event.id))
        found.append(event)
    return [*found, *reports.values()]
