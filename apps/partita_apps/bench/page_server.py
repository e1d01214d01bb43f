"""The server's own application over a scripted model, for measurements of the page: nothing is computed.

What is slow is then the page, the server, or what lies between them. The model's text (tokenizer, template, parsers)
is a real one's; its worker says a prepared text at a given rate, traced as the real one traces. Not here: the browser
(`page`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partita.engine.request import Event, Finished, Held, Progress, Request, Ring, Token
from partita.errors import BackendUnavailable

from ..serve import frames
from ..serve.asked import Refused
from ..serve.model_text import ModelText
from ..serve.registry import Description

NAME = "scripted"
CONTEXT = 32_768
_TICK = 0.01  # seconds between portions of tokens
_PROSE = (
    "A fugue begins with one voice alone, which states the *subject*; the second answers a fifth above, while the "
    "first goes on with a countersubject. What follows is **counterpoint**: lines that are whole by themselves.\n\n"
)
_REST = """## Part {n}

- The exposition, with `{n}` entries
- The episodes, which have [no subject](https://example.org/{n})
- A stretto, where entries overlap

```python
def voice(subject: list[int], at: int = {n}) -> list[int]:
    "Answer a subject."
    return [note + 7 for note in subject if note > at]  # a fifth above
```

| voice | begins | interval |
|---|--:|:-:|
| alto | {n} | $\\frac{{3}}{{2}}$ |
| tenor | 8 | $2^{{{n}/12}}$ |

"""


def markdown(parts: int) -> str:
    """A text of prose, lists, code, tables and formulas; a part has some 250 tokens."""
    return "".join(_PROSE + _REST.format(n=n + 1) for n in range(parts))


class Worker:
    """Says `ids`, and again from their beginning, `rate` of them a second."""

    def __init__(self, ids: Sequence[int], rate: int) -> None:
        self._ids, self._rate = ids, rate
        self.state, self.beat = "ready", None

    @property
    def facts(self) -> frames.Loaded:
        return frames.Loaded("none", "none", "none", "dense", CONTEXT, CONTEXT, bytes=1, row_bytes=1, free=1 << 30)

    async def events(self, request: Request) -> AsyncGenerator[Event, None]:
        total = len(request.prompt)
        yield Progress(request.id, total, total, 0)
        begun = time.monotonic()
        for said in range(request.max_tokens):
            ahead = said / self._rate - (time.monotonic() - begun)
            if ahead > _TICK:
                if request.trace and said:
                    yield _held(request, total + said)
                await asyncio.sleep(ahead)
            yield _token(request, self._ids[said % len(self._ids)], 1 / self._rate)
        yield Finished(request.id, "length")


def _token(request: Request, token: int, seconds: float) -> Token:
    others = tuple((max(token - i, 0), 0.4 / 2**i) for i in range(request.alternatives))
    return Token(request.id, token, 0.4 if others else None, others, seconds if request.trace else None)


def _held(request: Request, seen: int) -> Held:
    sinks, window = min(seen, 4), min(max(seen - 4, 0), CONTEXT - 4)
    ring = Ring(30, 4, CONTEXT - 4, CONTEXT + 27, min(CONTEXT + 27, 255))
    slots = {"sinks": sinks, "window": window, "free": CONTEXT - sinks - window, "context": CONTEXT}
    bits = {"kv": "16", "key_bits": 16, "value_bits": 16, "sink_bits": 16, "group": 32}
    return Held(request.id, seen=seen, reached=seen, bytes=seen * 1000, rings=(ring,), **slots, **bits)


@dataclass(frozen=True)
class Model:
    text: ModelText
    worker: Worker
    name: str = NAME
    adapter: str = ""


class Registry:
    """What the server needs of one, with one model in it that is always loaded."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def __aenter__(self) -> Registry:
        return self

    async def __aexit__(self, *error: Any) -> None: ...

    def names(self) -> Sequence[str]:
        return [NAME]

    def describe(self, name: str) -> Description:
        facts = self._model.worker.facts
        return Description(NAME, None, "loaded", 1_700_000_000, 1000, 2000, CONTEXT, False, facts)

    async def generation_config(self, name: str) -> Mapping[str, Any]:
        return {}

    def free(self) -> int:
        return 1 << 33

    def predicted(self, name: str) -> int:
        return 2000

    async def unload(self, name: str) -> None:
        raise Refused("the scripted model is always loaded", "conflict")

    def workers(self) -> Mapping[str, Any]:
        return {NAME: self._model.worker}

    async def loading(self, name: str) -> AsyncGenerator[tuple[int, int], None]:
        for layers in [(0, 0)][:0]:
            yield layers

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Any]:
        yield self._model


def registry(path: Path, text: str, rate: int) -> Registry:
    """path: of the model whose tokenizer and template are used."""
    opened = ModelText.open(NAME, path, context=CONTEXT)
    ids = opened.tokenizer.encode(text, bos=False, specials=False)
    return Registry(Model(opened, Worker(ids, rate)))


@contextmanager
def serving(models: Registry, data: Path) -> Iterator[str]:
    """The address of the application, in a thread of this process. data: the folder of its history and token."""
    import uvicorn

    from ..serve.listen import listening
    from ..serve.server import build_app, uvicorn_server
    from ..serve.settings import Settings

    bound = listening("127.0.0.1", 0)
    port = bound.getsockname()[1]
    app = build_app(models, Settings(port=port, data=data))
    config = uvicorn.Config(app, http="h11", ws="none", log_config=None, lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn_server(config, app.leave)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started:
            if time.monotonic() > until or not thread.is_alive():
                raise BackendUnavailable("the server does not start: `partita serve` shows why")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        bound.close()


@dataclass(frozen=True)
class Chats:
    """Ids. long: of the one with many turns, whose last message is `last`. empty: of those for replies."""

    long: str
    last: str
    empty: Sequence[str]


def seed(data: Path, turns: int, replies: Sequence[int]) -> Chats:
    """Chats in the history of a data folder: one of so many turns, and empty ones for replies of so many tokens."""
    from ..history import History

    history = History.open(data / "history.sqlite3")
    try:
        empty = [history.create(model=NAME, settings={"max_tokens": tokens}).id for tokens in replies]
        chat, parent = history.create(model=NAME, title=f"{turns} turns").id, None
        for i in range(turns):
            parent = history.add(chat, parent=parent, role="user", content=f"Question {i}: what comes next?").id
            text = markdown(1) if i % 4 == 3 else _PROSE
            parent = history.add(chat, parent=parent, role="assistant", content=text, model=NAME).id
        return Chats(chat, str(parent), empty)
    finally:
        history.close()
