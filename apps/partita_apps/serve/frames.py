"""What server and child say to each other: typed frames, a 4-byte length (big endian) and msgpack each.

Not here: the sockets (`channel`). Invariant: both ends run the same version, said in the first frame of the child. A
frame that cannot be read ends the connection, and with it the child.
"""

from __future__ import annotations

import msgspec

from partita.engine.request import Cancel, Event, Request

VERSION = 2
MAX_FRAME = 64 << 20  # bytes


class Load(msgspec.Struct, frozen=True, tag=True):
    """The first frame of the server: what to load. Fields as the options of `partita serve`; adapters: folders by
    name."""

    model: str
    backend: str = "auto"
    device: str | None = None
    dtype: str = "auto"
    threads: int | None = None
    adapters: dict[str, str] = {}
    context: int | str | None = None
    sinks: int | None = None
    kv: str = "auto"
    max_waiting: int = 64
    prefix_bytes: int | None = None


class PutAdapter(msgspec.Struct, frozen=True, tag=True):
    """The loaded model with an adapter, under a name that requests may have from now on. folder: None to take it away;
    replies that use it go on."""

    name: str
    folder: str | None


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Finish what runs, take nothing new, then exit with status 0."""


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first frame of the child."""

    version: int
    pid: int


class Loading(msgspec.Struct, frozen=True, tag=True):
    """done of total layers are on the device."""

    done: int
    total: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The model computes. context: tokens of one row. note: what `auto` decided, in a line. bytes: in use before there
    is a row; row_bytes: of one row with a full context; free: memory left for rows."""

    backend: str
    device: str
    dtype: str
    kv: str
    context: int
    trained_context: int
    bytes: int
    row_bytes: int
    free: int
    note: str | None = None


class NotLoaded(msgspec.Struct, frozen=True, tag=True):
    """It cannot be loaded, in a line; the child exits. memory: it may be once there is more room."""

    message: str
    field: str | None = None
    memory: bool = False


class AdapterPut(msgspec.Struct, frozen=True, tag=True):
    """The answer to `PutAdapter`. message: why it was not done, None where it was."""

    name: str
    message: str | None = None


class Events(msgspec.Struct, frozen=True, tag=True):
    """What one step of the engine gave."""

    events: list[Event]


class Beat(msgspec.Struct, frozen=True, tag=True):
    """After each step, and once a second without work. step_seconds: what the next step is predicted to take; memory:
    bytes this process holds; rows: replies being written; prefilling, waiting: requests before that."""

    step_seconds: float
    rows: int
    prefilling: int
    waiting: int
    cache_bytes: int
    prefix_bytes: int
    memory: int
    generated: int
    prefilled: int
    reused: int


Down = Load | Request | Cancel | PutAdapter | Stop
"""From the server to the child."""
Up = Hello | Loading | Loaded | NotLoaded | Events | AdapterPut | Beat
"""From the child to the server."""
