"""A model's process and its supervision, with an engine that computes nothing (`stub_child`)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from partita.engine.request import Constraint, Event, Failed, Finished, Progress, Request, Token
from partita_apps.serve.asked import Refused
from partita_apps.serve.channel import PASSES_SOCKETS
from partita_apps.serve.frames import MAX_FRAME, Load
from partita_apps.serve.worker import MAX_UNREAD, Patience, Worker

from . import stub_child as stub

PROGRAM = (sys.executable, str(Path(__file__).with_name("stub_child.py")))
PATIENCE = Patience(step=0.5, first_step=0.5, loading=20.0, pause=0.01, longest_pause=0.05)
T = TypeVar("T")


def children() -> list[int]:
    """Processes of models that this one has."""
    found: list[int] = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if "stub_child.py" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def worker(model: str = "stub", **options: Any) -> Worker:
    return Worker(Load(model), **{"program": PROGRAM, "patience": PATIENCE, **options})


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
        assert os.getsid(pid) == pid  # Ctrl-C in our terminal is not for it
        await of.stop()
        assert await gone(pid)
        assert (of.state, of.pid) == ("stopped", None)
        assert await heard(of, asks()) == [Failed(0, "the model is being unloaded")]

    run(test())


def test_many_start_one_process() -> None:
    async def test() -> None:
        of = worker()
        assert len({id(facts) for facts in await asyncio.gather(*(of.start() for _ in range(20)))}) == 1
        assert children() == [of.pid]
        await of.stop()

    run(test())


def test_a_killed_process_is_told_and_begun_again() -> None:
    async def test() -> None:
        of = worker()
        await of.start()
        first = of.pid
        assert first is not None

        async def until_killed() -> list[Event]:
            found: list[Event] = []
            async with aclosing(of.events(asks(stub.SLOW, 100_000))) as events:
                async for event in events:
                    found.append(event)
                    if isinstance(event, Token) and event.token == 1:
                        os.kill(first, signal.SIGKILL)
            return found

        streams = await asyncio.gather(until_killed(), heard(of, asks(stub.SLOW, 100_000, mark=1)))
        for stream in streams:
            assert isinstance(stream[-1], Failed)
            assert stream[-1].message == "the model's process ended (signal 9)"
        assert tokens(await heard(of, asks())) == [0, 1, 2, 3, 4]
        assert of.pid != first
        await of.stop()

    run(test())


def test_a_request_that_ends_the_process_twice_is_refused() -> None:
    async def test() -> None:
        of = worker()
        for _ in range(2):
            *_, last = await heard(of, asks(stub.DIE))
            assert last == Failed(last.id, "the model's process ended (signal 9)")
        assert await heard(of, asks(stub.DIE)) == [
            Failed(0, "the model's process ended twice while it computed this request", "input")
        ]
        assert tokens(await heard(of, asks())) == [0, 1, 2, 3, 4]
        *_, last = await heard(of, asks(stub.DIE, mark=1))  # another one
        assert isinstance(last, Failed)
        assert last.kind == "internal"
        await of.stop()

    run(test())


def test_who_was_there_when_it_died_is_no_suspect_once_it_has_finished() -> None:
    async def test() -> None:
        of = worker()
        for mark in range(4):
            dies, bystander = await asyncio.gather(heard(of, asks(stub.DIE, mark=mark)), heard(of, asks(stub.SLOW)))
            assert isinstance(dies[-1], Failed)
            assert isinstance(bystander[-1], Failed)
            assert isinstance((await heard(of, asks(stub.SLOW)))[-1], Finished)
        await of.stop()

    run(test())


def test_a_process_that_hangs_is_ended() -> None:
    async def test() -> None:
        of = worker()
        *_, last = await heard(of, asks(stub.HANG))
        assert last == Failed(1, "the model's process hung and was ended (signal 9)")
        assert tokens(await heard(of, asks())) == [0, 1, 2, 3, 4]
        pid = of.pid
        await asyncio.sleep(1.5)  # without work it says little
        assert tokens(await heard(of, asks())) == [0, 1, 2, 3, 4]
        assert of.pid == pid
        await of.stop()

    run(test())


def test_what_the_engine_raises(capfd: pytest.CaptureFixture[str]) -> None:
    """A line for the client; the rest is in the log."""

    async def test() -> None:
        of = worker()
        assert await heard(of, asks(stub.REFUSE)) == [Failed(1, "2 tokens do not fit", "input", "context")]
        assert await heard(of, asks(stub.BREAK)) == [
            Failed(2, "the engine did not take the request (ZeroDivisionError)")
        ]
        *_, last = await heard(of, asks(stub.RAISE))
        assert last == Failed(3, "the model's process ended (status 1)")
        await of.stop()

    run(test())
    assert capfd.readouterr().err.count("ZeroDivisionError: at 0x7f0012345678") == 2


def test_closing_the_events_cancels() -> None:
    async def test() -> None:
        of = worker()
        async with aclosing(of.events(asks(stub.SLOW, 1_000_000))) as events:
            async for event in events:
                if isinstance(event, Token):
                    break
        await heard(of, asks())
        while of.beat is None or of.beat.rows:
            await asyncio.sleep(0.01)
        task = asyncio.create_task(heard(of, asks(stub.SLOW, 1_000_000)))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
        while of.beat.rows:
            await asyncio.sleep(0.01)
        await of.stop()

    run(test())


def test_requests_that_wait_for_memory_take_no_processor() -> None:
    async def test() -> None:
        of = worker()
        waiting = asyncio.create_task(heard(of, asks(stub.WAIT)))
        while of.beat is None or not of.beat.waiting:
            await asyncio.sleep(0.01)
        before = of.beat.reused
        await asyncio.sleep(1)
        assert of.beat.reused - before < 20
        assert tokens(await heard(of, asks())) == [0, 1, 2, 3, 4]  # others go on
        waiting.cancel()
        await asyncio.wait([waiting])
        while of.beat.waiting:
            await asyncio.sleep(0.01)
        await of.stop()

    run(test())


def test_what_nobody_reads_is_bounded() -> None:
    async def test() -> None:
        of = worker()
        async with aclosing(of.events(asks(stub.FLOOD, 1_000_000_000))) as events:
            assert isinstance(await anext(events), Progress)
            while of.beat is None or not of.beat.rows:
                await asyncio.sleep(0.01)
            while of.beat.rows:  # until it is cancelled
                await asyncio.sleep(0.01)
            rest = [event async for event in events]
        assert isinstance(rest[-1], Failed)
        assert "nobody has read" in rest[-1].message
        assert MAX_UNREAD <= len(rest) <= MAX_UNREAD + 2
        assert tokens(await heard(of, asks())) == [0, 1, 2, 3, 4]
        await of.stop()

    run(test())


def test_a_request_that_no_frame_takes() -> None:
    async def test() -> None:
        of = worker()
        huge = Request(0, [0], 1, constraint=Constraint("lark", "x" * MAX_FRAME))
        (event,) = await heard(of, huge)
        assert event == Failed(1, "the request is too large for the model's process", "input")
        assert tokens(await heard(of, asks())) == [0, 1, 2, 3, 4]
        await of.stop()

    run(test())


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("damaged", "engine", "model.safetensors is damaged"),
        ("huge", "memory", "it needs 9 GiB, 1 GiB are free"),
        ("broken", "engine", r"cannot be loaded \(ZeroDivisionError; the log says more\)"),
        ("dying", "engine", r"it ended \(status 7\) before the model was loaded"),
        ("hanging", "engine", "no layer within 3 s"),
    ],
)
def test_a_model_that_is_not_loaded(model: str, kind: str, message: str) -> None:
    async def test() -> None:
        of = worker(model, patience=Patience(loading=3 if model == "hanging" else 20, pause=0.01))
        for _ in range(1 if model == "hanging" else 2):
            with pytest.raises(Refused, match=message) as error:
                await of.start()
            assert error.value.kind == kind
            assert "0x" not in error.value.message
        if model != "hanging":
            (event,) = await heard(of, asks())
            assert isinstance(event, Failed)
            assert event.kind == ("memory" if kind == "memory" else "internal")
        assert of.state == "unloaded"
        await of.stop()

    run(test())


def test_a_program_that_is_not_there() -> None:
    async def test() -> None:
        of = worker(program=("/nowhere/python",))
        with pytest.raises(Refused, match="could not start: No such file"):
            await of.start()

    run(test())


def test_the_pause_grows_until_a_request_finishes() -> None:
    async def test() -> None:
        of = worker("dying", patience=Patience(pause=0.1, longest_pause=0.3))
        took: list[float] = []
        for _ in range(5):
            began = time.monotonic()
            with pytest.raises(Refused):
                await of.start()
            took.append(time.monotonic() - began)
        assert [seconds >= least for seconds, least in zip(took, (0, 0.1, 0.2, 0.3, 0.3), strict=True)] == [True] * 5
        await of.stop()

    run(test())


@pytest.mark.parametrize("how", ["stop", "SIGTERM"])
def test_requests_finish_before_a_process_does(how: str) -> None:
    async def test() -> None:
        of = worker()
        await of.start()
        running = asyncio.create_task(heard(of, asks(stub.SLOW, 40)))
        while of.beat is None or not of.beat.rows:
            await asyncio.sleep(0.01)
        pid = of.pid
        assert pid is not None
        if how == "SIGTERM":
            os.kill(pid, signal.SIGINT)  # which is for the server alone
            os.kill(pid, signal.SIGTERM)
            while of.state == "loaded":
                await asyncio.sleep(0.01)
        await of.stop()
        assert tokens(await running) == list(range(40))
        assert await gone(pid)

    run(test())


@pytest.mark.parametrize("does", [stub.HANG, stub.SLOW])
def test_stop_does_not_wait_for_ever(does: int) -> None:
    async def test() -> None:
        of = worker(patience=Patience())
        running = asyncio.create_task(heard(of, asks(does, 1_000_000)))
        while of.beat is None or not of.beat.generated:
            await asyncio.sleep(0.01)
        pid = of.pid
        assert pid is not None
        await of.stop(0.1)
        assert await gone(pid)
        *_, last = await running
        assert last == Failed(1, "the model was unloaded")

    run(test())


def test_stop_while_it_is_loading() -> None:
    async def test() -> None:
        of = worker("hanging")
        starting = asyncio.create_task(of.start())
        while of.progress != (3, 3):
            await asyncio.sleep(0.01)
        assert of.state == "loading"
        await of.stop()
        with pytest.raises(Refused, match="being unloaded"):
            await starting
        assert not children()

    run(test())


SERVER = """
import asyncio, sys
from partita.engine.request import Request
from partita_apps.serve.frames import MAX_FRAME, Load
from partita_apps.serve.worker import Worker
async def main():
    worker = Worker(Load("stub"), program=sys.argv[2:], loopback=sys.argv[1] == "True")
    async for event in worker.events(Request(0, [5], 1_000_000)):
        if worker.pid: print(worker.pid, flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("loopback", [False, True][not PASSES_SOCKETS :])
def test_no_process_outlives_a_killed_server(loopback: bool) -> None:
    command = [sys.executable, "-c", SERVER, str(loopback), *PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        server.kill()
        assert run(gone(pid))


def test_an_adapter_that_a_model_does_not_take_is_none_of_its_own() -> None:
    """The process goes on, and neither it nor the next one has an adapter of that name."""

    async def test() -> None:
        of = worker()
        await of.put_adapter("early", None)  # not loaded: there is nobody to be told
        await of.start()
        pid = of.pid
        answers = await asyncio.gather(
            *(of.put_adapter("poet", "/nowhere") for _ in range(3)),
            of.put_adapter("other", None),
            return_exceptions=True,
        )
        assert [type(each) for each in answers] == [Refused, Refused, Refused, type(None)]
        assert "the adapter cannot be used" in str(answers[0])
        assert isinstance((await heard(of, asks()))[-1], Finished)
        assert of.pid == pid
        await of.stop()

    run(test())


def test_two_thousand_requests_leave_nothing_behind() -> None:
    async def test() -> None:
        of, own = worker(), psutil.Process()
        for _ in range(500):
            await heard(of, asks(tokens=2))
        assert of.beat is not None
        before = own.num_fds(), own.memory_info().rss, of.beat.memory
        for _ in range(400):
            streams = await asyncio.gather(*(heard(of, asks(tokens=2)) for _ in range(5)))
            assert all(isinstance(stream[-1], Finished) for stream in streams)
        after = own.num_fds(), own.memory_info().rss, of.beat.memory
        assert after[0] == before[0]
        assert after[1] - before[1] < 4 << 20
        assert after[2] - before[2] < 4 << 20
        await of.stop()

    run(test())


def test_the_server_needs_no_array_library() -> None:
    code = (
        "import partita_apps.serve.worker, partita_apps.serve.registry, partita_apps.serve.child, sys\n"
        "partita_apps.serve.names.list_models()\n"
        "print(*({'torch', 'mlx', 'numba', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
