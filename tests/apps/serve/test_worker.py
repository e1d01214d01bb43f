"""A model's process and its supervision, with an engine that computes nothing (`stub_child`)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from partita.engine.request import Event, Failed, Finished, Progress, Request, Token
from partita_apps.serve.asked import Refused
from partita_apps.serve.channel import PASSES_SOCKETS
from partita_apps.serve.frames import Load
from partita_apps.serve.worker import Patience, Worker

from . import stub_child as stub

PROGRAM = (sys.executable, str(Path(__file__).with_name("stub_child.py")))
PATIENCE = Patience(step=0.5, first_step=0.5, loading=20.0, pause=0.01, longest_pause=0.05)
T = TypeVar("T")


def worker(model: str = "stub", **options: Any) -> Worker:
    return Worker(Load(model), program=PROGRAM, **{"patience": PATIENCE, **options})


def asks(does: int = stub.PLAIN, tokens: int = 5, mark: int = 0) -> Request:
    """mark: tells requests apart that ask for the same."""
    return Request(0, [does, mark], tokens)


async def heard(of: Worker, request: Request) -> list[Event]:
    async with aclosing(of.events(request)) as events:
        return [event async for event in events]


def run(test: Coroutine[Any, Any, T]) -> T:
    """In a loop of its own, in which nothing hangs."""

    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await test

    return asyncio.run(bounded())


def tokens(events: list[Event]) -> list[int]:
    return [event.token for event in events if isinstance(event, Token)]


async def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.mark.parametrize("loopback", [False, True][not PASSES_SOCKETS :])
def test_a_model_is_loaded_computes_and_is_stopped(loopback: bool) -> None:
    async def test() -> None:
        of = worker(loopback=loopback)
        assert of.state == "unloaded"
        with pytest.raises(Refused, match="not loaded"):
            _ = of.facts
        facts = await of.start()
        assert facts == of.facts
        assert (facts.context, of.state, of.progress) == (stub.CONTEXT, "loaded", (3, 3))
        first, *rest = await heard(of, asks(tokens=4))
        assert first == Progress(1, 2, 2, 0)
        assert tokens(rest) == [0, 1, 2, 3]
        assert rest[-1] == Finished(1, "length")
        assert of.beat is not None
        assert of.beat.memory > 1 << 20
        pid = of.pid
        assert pid is not None
        await of.stop()
        assert await gone(pid)
        assert (of.state, of.pid) == ("stopped", None)
        assert await heard(of, asks()) == [Failed(0, "the model is being unloaded")]

    run(test())
