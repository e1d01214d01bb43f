"""Which models are loaded, and when."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
import weakref
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from partita.cache.budget import RESERVE
from partita.engine.request import Failed, Finished, Request
from partita_apps.serve.asked import Refused
from partita_apps.serve.frames import Load, Loaded
from partita_apps.serve.names import Entry, Names
from partita_apps.serve.registry import Registry
from partita_apps.serve.worker import Patience, Worker

from .test_worker import asks, children, gone, heard, run, tokens, worker

MIB = 1 << 20


@pytest.fixture
def models(tiny_model: Path, tmp_path: Path) -> Callable[..., Entry]:
    """Makes a model of a name."""

    def make(name: str, **options: Any) -> Entry:
        path = shutil.copytree(tiny_model, tmp_path / name)
        return Entry(name, path, MIB, **options)

    return make


def registry(*entries: Entry, room: int = 100, **options: Any) -> Registry:
    """With processes that compute nothing. room: how many models fit."""
    names = Names(entries, None)
    made = Registry(names, Load(""), start=lambda load: worker(load.model), free=lambda: free(), **options)

    def free() -> int:
        return RESERVE + (room - len(made.workers())) * MIB

    return made


def states(of: Registry) -> str:
    """A letter for each model's state."""
    return "".join(of.describe(name).state[0] for name in of.names())


async def replies(of: Registry, name: str) -> None:
    async with of.use(name) as model:
        assert tokens(await heard(model.worker, asks())) == [0, 1, 2, 3, 4]


def test_a_model_is_loaded_when_it_is_asked_for(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a", adapters={"poet": "p"}), models("b")) as of:
            assert of.names() == ["a", "a:poet", "b"]
            before = of.describe("a")
            assert (before.state, before.context, before.memory, before.facts) == ("unloaded", None, 0, None)
            assert before.created > 1_700_000_000
            async with of.use("a:poet") as model:
                assert (model.name, model.adapter, model.text.context) == ("a", "poet", model.worker.facts.context)
                assert tokens(await heard(model.worker, asks())) == [0, 1, 2, 3, 4]
                after = of.describe("a:poet")
                assert (after.name, after.base, after.state) == ("a:poet", "a", "loaded")
                assert (after.context, after.memory > MIB) == (1000, True)
            assert states(of) == "llu"
            assert list(of.workers()) == ["a"]
        assert states(of) == "uuu"
        assert not children()
        with pytest.raises(Refused, match="shutting down"):
            await replies(of, "a")

    run(test())


def test_one_process_for_all_who_ask_at_once(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a")) as of:
            await asyncio.gather(*(replies(of, "a") for _ in range(20)))
            assert len(children()) == 1

    run(test())


def test_the_least_recently_used_gives_way(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a", pinned=True), models("b"), models("c"), models("d"), room=3) as of:
            for name in "abc":
                await replies(of, name)
            await replies(of, "b")
            assert states(of) == "lllu"
            await replies(of, "d")
            assert states(of) == "llul"
            await replies(of, "c")
            assert states(of) == "lull"
            assert len(children()) == 3

    run(test())


def test_what_is_used_is_not_unloaded(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a"), models("b", pinned=True), models("c"), room=2, patience=0.1) as of:
            await replies(of, "b")
            async with of.use("a"):
                with pytest.raises(Refused, match="257 MiB of memory, 256 MiB are free beside b, a, which") as error:
                    await replies(of, "c")
                assert (error.value.kind, error.value.retry_after) == ("memory", 10)
                assert states(of) == "llu"
            await replies(of, "c")
            assert states(of) == "ull"

    run(test())


def test_a_load_waits_until_memory_is_used_no_more(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a"), models("b"), models("c"), room=1) as of:
            async with of.use("a"):
                waiting = [asyncio.create_task(replies(of, name)) for name in "bc"]
                await asyncio.sleep(0.2)
                assert states(of) == "l" + "l" * 2
                assert len(children()) == 1
            await asyncio.gather(*waiting)
            assert len(children()) == 1

    run(test())


def test_a_model_alone_is_tried_whatever_is_free(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a"), room=0) as of:
            await replies(of, "a")

    run(test())


def test_room_is_made_where_the_process_finds_none(models: Callable[..., Entry]) -> None:
    """What its process says counts, for it knows the device."""

    async def test() -> None:
        async with registry(models("a"), models("huge")) as of:
            await replies(of, "a")
            with pytest.raises(Refused, match="it needs 9 GiB") as error:
                await replies(of, "huge")
            assert error.value.kind == "memory"
            assert states(of) == "uu"

    run(test())


def test_pinned_models_are_loaded_at_once(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a"), models("b", pinned=True), ttl=0.1) as of:
            while states(of) != "ul":
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            assert states(of) == "ul"

    run(test())


def test_idle_models_are_unloaded_after_a_time(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a"), ttl=0.2) as of:
            async with of.use("a") as model:
                await asyncio.sleep(0.6)
                pid, text = model.worker.pid, weakref.ref(model.text)
                assert states(of) == "l"
            del model
            while of.workers():
                await asyncio.sleep(0.01)
            assert pid is not None
            assert await gone(pid)
            assert text() is None
            await replies(of, "a")

    run(test())


def test_signs_of_life_while_it_loads(models: Callable[..., Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partita_apps.serve.registry._LOOK", 0.001)

    async def test() -> None:
        async with registry(models("a")) as of:
            async with aclosing(of.loading("a")) as loading:
                said = [step async for step in loading]
            assert said[0] == (0, 0)
            assert sorted(said) == said
            assert states(of) == "l"
            async with aclosing(of.loading("a")) as loading:
                assert [step async for step in loading] == []

    run(test())


def test_who_gives_up_waiting_ends_no_load(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a")) as of:
            impatient, patient = (asyncio.create_task(replies(of, "a")) for _ in range(2))
            await asyncio.sleep(0.05)
            impatient.cancel()
            await patient
            assert len(children()) == 1

    run(test())


@pytest.mark.parametrize("damage", ["damaged", "tokenizer"])
def test_a_model_that_is_damaged(models: Callable[..., Entry], damage: str) -> None:
    """Weights are the process's business, and a tokenizer the server's."""
    model = models(damage)
    if damage == "tokenizer":
        (model.path / "tokenizer.json").write_text("{}")

    async def test() -> None:
        async with registry(model, models("a")) as of:
            for _ in range(2):
                with pytest.raises(Refused, match=r"\w+\.(safetensors|json)") as error:
                    await replies(of, damage)
                assert error.value.kind == "engine"
            await replies(of, "a")
            assert states(of) == "ul"
            assert len(children()) == 1

    run(test())


def test_a_process_that_died_is_begun_again(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a")) as of:
            await replies(of, "a")
            (pid,) = children()
            os.kill(pid, signal.SIGKILL)
            while states(of) == "l":
                await asyncio.sleep(0.01)
            await replies(of, "a")
            assert children() != [pid]

    run(test())


def test_a_pinned_model_is_begun_again_before_anybody_asks(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a", pinned=True)) as of:
            pids = list[int]()
            while len(pids) < 3:
                while of.describe("a").state != "loaded":
                    await asyncio.sleep(0.01)
                pids += children()
                os.kill(pids[-1], signal.SIGKILL)
                while of.describe("a").state == "loaded":
                    await asyncio.sleep(0.01)
            assert len(set(pids)) == 3

    run(test())


def test_a_model_that_dies_again_and_again_holds_up_no_other(models: Callable[..., Entry]) -> None:
    patience = Patience(pause=20.0)

    async def test() -> None:
        names = Names([models("dying"), models("a")], None)
        async with Registry(names, Load(""), start=lambda load: worker(load.model, patience=patience)) as of:
            with pytest.raises(Refused, match="status 7"):
                await replies(of, "dying")
            waiting = asyncio.create_task(replies(of, "dying"))
            await asyncio.sleep(0.1)
            await replies(of, "a")
            assert not waiting.done()
            waiting.cancel()
            await asyncio.wait([waiting])

    run(test())


def test_replies_finish_before_the_server_ends(models: Callable[..., Entry]) -> None:
    async def test() -> None:
        async with registry(models("a")) as of:

            async def slow() -> None:
                async with of.use("a") as model:
                    events = await heard(model.worker, Request(0, [5], 40))
                    assert isinstance(events[-1], Finished)

            running = asyncio.create_task(slow())
            while not of.workers() or of.workers()["a"].beat is None:
                await asyncio.sleep(0.01)
        await running

    run(test())


# Races


@dataclass
class Pretended:
    """A Worker without a process. alive: all that are, by model; what must never be is asserted where it would be."""

    load: Load
    alive: dict[str, Pretended]
    room: int
    chance: random.Random
    used: int = 0
    state: str = "unloaded"
    beat: None = None
    progress: tuple[int, int] = (0, 0)
    starts: list[str] = field(default_factory=list)

    @property
    def facts(self) -> Loaded:
        return Loaded("stub", "cpu", "float32", "16", 9, 9, MIB, 1, 1)

    async def rest(self) -> None:
        pass

    async def start(self) -> Loaded:
        if self.state != "loaded":
            assert self.load.model not in self.alive
            self.alive[self.load.model] = self
            assert len(self.alive) <= self.room
            self.starts.append(self.load.model)
            await asyncio.sleep(self.chance.random() * 0.002)
            if self.chance.random() < 0.1:
                del self.alive[self.load.model]
                raise Refused("it failed", "engine")
            self.state = "loaded"
        return self.facts

    async def stop(self, patience: float = 0.0) -> None:
        assert not self.used
        self.state = "stopped"
        await asyncio.sleep(self.chance.random() * 0.002)
        self.alive.pop(self.load.model, None)

    def die(self) -> None:
        self.state = "unloaded"
        self.alive.pop(self.load.model)


@pytest.mark.parametrize("patience", [0, 60])
def test_loads_unloads_and_requests_at_the_same_time(
    models: Callable[..., Entry], patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of each: no model is there twice, none is unloaded while it is used, and everybody is answered."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # of all that other tests left
    chance, alive, answered = random.Random(5), dict[str, Pretended](), [0, 0]
    entries, starts = [models(name) for name in "abcd"], list[str]()
    room = 2

    def make(load: Load) -> Worker:
        return cast(Worker, Pretended(load, alive, room, chance, starts=starts))

    async def client(of: Registry) -> None:
        for _ in range(60):
            await asyncio.sleep(chance.random() * 0.01)
            try:
                async with of.use(chance.choice("abcd")) as model:
                    pretended = cast(Pretended, model.worker)
                    pretended.used += 1
                    assert pretended.state == "loaded"
                    await asyncio.sleep(chance.random() * 0.004)
                    pretended.used -= 1
                    if not pretended.used and chance.random() < 0.05:
                        pretended.die()
                answered[0] += 1
            except Refused:
                answered[1] += 1

    async def test() -> None:
        names = Names(entries, None)
        free = lambda: RESERVE + (room - len(alive)) * MIB  # noqa: E731
        async with Registry(names, Load(""), start=make, ttl=0.02, free=free, patience=patience) as of:
            await asyncio.gather(*(client(of) for _ in range(12)))
        assert not alive

    run(test())
    assert sum(answered) == 12 * 60
    assert answered[0] > (400 if patience else 100)
    assert len(starts) > 50


def test_processes_come_and_go_under_requests(models: Callable[..., Entry]) -> None:
    """The same with processes, of which some are killed."""
    chance = random.Random(6)

    async def client(of: Registry) -> None:
        for _ in range(10):
            async with of.use(chance.choice("ab")) as model:
                if chance.random() < 0.15 and model.worker.pid is not None:
                    os.kill(model.worker.pid, signal.SIGKILL)
                (*_, last) = await heard(model.worker, Request(0, [0, chance.randrange(1000)], 3))
                assert isinstance(last, Finished | Failed)

    async def test() -> None:
        async with registry(models("a"), models("b"), ttl=0.05) as of:
            began = time.monotonic()
            await asyncio.gather(*(client(of) for _ in range(8)))
            assert len(children()) <= 2
            assert time.monotonic() - began < 50
        assert not children()

    run(test())
