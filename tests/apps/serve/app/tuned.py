"""Fine-tuning without HTTP, over a registry of the tiny model: what tests of it share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from partita_apps.serve.app.tuning.log import Event
from partita_apps.serve.app.tuning.store import Upload
from partita_apps.serve.app.tuning.tunings import Tunings
from partita_apps.serve.frames import Load
from partita_apps.serve.names import Names, entry
from partita_apps.serve.registry import Registry

T = TypeVar("T")
QUICK = {"rank": 4, "max_length": 64, "learning_rate": 5e-3}
"""Settings that make a run of the tiny model short and strong."""


def run(test: Coroutine[Any, Any, T]) -> T:
    """In a loop of its own, in which nothing hangs."""

    async def bounded() -> T:
        async with asyncio.timeout(240):
            return await test

    return asyncio.run(bounded())


def chats(count: int = 12) -> bytes:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"the fox number {i}"},
                {"role": "assistant", "content": "the lazy dog jumps over the fox"},
            ]
        }
        for i in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@asynccontextmanager
async def tuning(
    folder: Path, model: Path, backend: str = "torch", changed: Callable[[str], None] = lambda id: None, **registry: Any
) -> AsyncGenerator[tuple[Tunings, Registry], None]:
    """folder: of fine-tuning. registry: more of it."""
    names = Names([entry(str(model))], None)
    load = Load("", backend=backend, dtype="float32", context=128)
    async with Registry(names, load, **registry) as models, Tunings(folder, models, changed) as tunings:
        yield tunings, models


async def uploaded(tunings: Tunings, content: bytes | None = None, name: str = "letters.jsonl") -> Upload:
    return await tunings.upload(name, chats() if content is None else content)


async def followed(tunings: Tunings, until: Callable[[Event], bool] = lambda event: False) -> list[Event]:
    """Events of the run that goes on, to its end or to the first one of which something holds."""
    live, found = tunings.live, list[Event]()
    assert live is not None
    while True:
        new = live.log.since(found[-1].number if found else 0)
        assert new is not None
        for event in new:
            found.append(event)
            if until(event):
                return found
        if live.log.closed:
            break
        if not new:
            await live.log.wait()
    while tunings.live is not None:  # its process is gone then
        await asyncio.sleep(0.01)
    return found


def at_step(step: int) -> Callable[[Event], bool]:
    return lambda event: event.kind == "step" and event.data["step"] >= step


def losses(tunings: Tunings, id: str) -> list[tuple[int, float]]:
    rows = tunings.store.rows(tunings.find(id))
    return [(row["step"], row["train_loss"]) for row in rows if "train_loss" in row]
