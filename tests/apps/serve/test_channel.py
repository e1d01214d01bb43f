"""Frames on their way, and what is no frame: it ends a channel, and neither side."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.engine.request import Cancel, Failed, Finished, Progress, Request, Token, Warned
from partita_apps.serve.asked import Refused
from partita_apps.serve.channel import Channel, Closed, Line
from partita_apps.serve.frames import MAX_FRAME, VERSION, Beat, Events, Hello, Load, Loaded, Loading, NotLoaded, Stop
from partita_apps.serve.worker import Patience, Worker

GARBAGE = (sys.executable, str(Path(__file__).with_name("garbage_child.py")))
ENDED = cast(Any, SimpleNamespace(pid=0, returncode=0, poll=lambda: 0, kill=lambda: None))
"""What a channel knows of a process that has ended."""
BEAT = Beat(0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9)
EVENTS = Events(
    [
        Progress(1, 2, 3, 0),
        Token(1, 7, 0.5, ((7, 0.5), (8, 0.25))),
        Warned(2, "one tool's schema is not enforced"),
        Finished(1, "stop"),
        Failed(3, "no room", "memory", "context"),
    ]
)
UP = [
    Hello(VERSION, 1),
    Loading(1, 2),
    Loaded("torch", "cpu", "float32", "16", 9, 9, 1, 1, 1),
    NotLoaded("no"),
    EVENTS,
    BEAT,
]
DOWN = [Load("model", adapters={"a": "b"}), Request(1, [1, 2], 3, logit_bias={5: 1.0}), Cancel(1), Stop()]


def packed(frame: Any) -> bytes:
    data = msgspec.msgpack.encode(frame)
    return struct.pack(">I", len(data)) + data


async def received(data: bytes, count: int) -> list[Any]:
    """What the server reads of so many bytes, which are the last."""
    ours, theirs = socket.socketpair()
    channel = Channel(ENDED, await asyncio.open_connection(sock=ours))
    with theirs:
        theirs.sendall(data)
    try:
        return [await channel.receive() for _ in range(count)]
    finally:
        await channel.close()


def read(data: bytes, count: int) -> list[Any]:
    """What the child reads."""
    ours, theirs = socket.socketpair()
    with ours:
        line = Line(ours)
        with theirs:
            theirs.sendall(data)
        try:
            return [line.receive() for _ in range(count)]
        finally:
            line.close()


def test_frames_arrive_as_they_were() -> None:
    assert asyncio.run(received(b"".join(map(packed, UP)), len(UP))) == UP
    assert read(b"".join(map(packed, DOWN)), len(DOWN)) == DOWN


def frames(known: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """Bytes, most of them nearly frames: cut, with bytes changed, or msgpack of something else."""
    whole = st.sampled_from([packed(frame) for frame in known])
    changed = st.tuples(whole, st.integers(0, 200), st.binary(min_size=1, max_size=4)).map(
        lambda t: t[0][: t[1] % len(t[0])] + t[2] + t[0][t[1] % len(t[0]) + len(t[2]) :]
    )
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.just("type"), inner, max_size=4)
        ),
        max_leaves=8,
    )
    return st.binary(max_size=64) | whole.map(lambda data: data[:-1]) | changed | values.map(packed)


@settings(max_examples=200)
@given(frames(UP))
def test_the_server_survives_any_bytes(data: bytes) -> None:
    known = tuple(type(frame) for frame in UP)
    try:
        assert isinstance(asyncio.run(received(data, 1))[0], known)
    except Closed:
        return


@settings(max_examples=200)
@given(frames(DOWN))
def test_the_child_survives_any_bytes(data: bytes) -> None:
    known = tuple(type(frame) for frame in DOWN)
    try:
        assert isinstance(read(data, 1)[0], known)
    except Closed:
        return


def test_bombs_are_no_frames() -> None:
    many = b"\xdd\xff\xff\xff\xff"
    with pytest.raises(Closed):
        asyncio.run(received(struct.pack(">I", 5) + many, 1))
    event = b"\x82\xa4type\xa6Events\xa6events" + many
    with pytest.raises(Closed):
        asyncio.run(received(struct.pack(">I", len(event)) + event, 1))
    deep = b"\x91" * 200_000 + b"\xc0"
    with pytest.raises(Closed):
        asyncio.run(received(struct.pack(">I", len(deep)) + deep, 1))
    event = b"\x82\xa4type\xa6Events\xa6events" + deep
    with pytest.raises(Closed):
        asyncio.run(received(struct.pack(">I", len(event)) + event, 1))


@pytest.mark.parametrize(
    "said",
    [
        b"\xff" * 8,
        struct.pack(">I", MAX_FRAME + 1),
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        packed(Hello(VERSION, 1)),
        packed(Stop()),
        b"".join(map(packed, UP)),
    ],
    ids=["bytes", "too long", "no msgpack", "twice", "the wrong way", "all kinds"],
)
@pytest.mark.parametrize("after", ["hello", "loaded"])
def test_nonsense_ends_a_process_and_nothing_else(after: str, said: bytes) -> None:
    async def test() -> None:
        worker = Worker(Load(f"{after}:{said.hex()}"), program=GARBAGE, patience=Patience(pause=0.01))
        if after == "hello":
            with pytest.raises(Refused) as error:
                await worker.start()
            assert error.value.kind == "engine"
        else:
            async for event in worker.events(Request(0, [1], 1)):
                last = event
            assert isinstance(last, Failed)
            assert "ended (signal 9)" in last.message
        await worker.stop()

    asyncio.run(test())


@pytest.mark.parametrize("patience", [0.0, 30.0])
def test_a_close_that_is_cancelled_leaves_no_process(patience: float) -> None:
    """As where a task is cancelled twice: the second time while it closes."""

    async def test() -> None:
        channel = await Channel.open((sys.executable, "-c", "import time; time.sleep(60)"))
        closing = asyncio.create_task(channel.close(patience))
        await asyncio.sleep(0)  # it waits for the process
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(ChildProcessError):  # it was waited for
            os.waitpid(channel.pid, os.WNOHANG)

    asyncio.run(test())


def test_a_load_is_cancelled_in_the_moment_in_which_a_frame_comes() -> None:
    async def test() -> None:
        frame = asyncio.get_running_loop().create_future()

        async def receive() -> Any:
            return await frame

        waiting = asyncio.create_task(Worker(Load("any"))._soon(receive()))
        for _ in range(3):
            await asyncio.sleep(0)
        frame.set_result(Loading(1, 2))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(test())


def test_another_version_is_refused() -> None:
    code = (
        "import sys, time; from partita_apps.serve.channel import Line; from partita_apps.serve.frames import Hello\n"
        f"Line.of(sys.argv[1:]).send(Hello({VERSION + 1}, 1)); time.sleep(600)"
    )

    async def test() -> None:
        worker = Worker(Load("any"), program=(sys.executable, "-c", code))
        with pytest.raises(Refused, match="another version than the server: start the server again"):
            await worker.start()
        await worker.stop()

    asyncio.run(test())


def test_only_who_knows_the_secret_is_heard() -> None:
    """A process of somebody else that is faster than ours is turned away."""
    code = (
        "import socket, sys, time\n"
        "from partita_apps.serve.channel import Line\n"
        "from partita_apps.serve.frames import Hello\n"
        "other = socket.create_connection(('127.0.0.1', int(sys.argv[2]))); other.sendall(b'0' * 64)\n"
        "assert other.recv(1) == b''\n"
        f"Line.of(sys.argv[1:]).send(Hello({VERSION}, 5)); time.sleep(600)"
    )

    async def test() -> None:
        channel = await Channel.open((sys.executable, "-c", code), loopback=True)
        assert await channel.receive() == Hello(VERSION, 5)
        channel.kill()
        await channel.close()

    asyncio.run(test())


def test_a_start_that_is_cancelled_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the loopback, while the secret is waited for."""
    code = "import socket, sys, time; a = socket.create_connection(('127.0.0.1', int(sys.argv[2]))); time.sleep(600)"
    made: list[Any] = []

    async def test() -> None:
        connect = asyncio.open_connection

        async def noted(**how: Any) -> Any:
            made.append(await connect(**how))
            return made[-1]

        monkeypatch.setattr(asyncio, "open_connection", noted)
        opening = asyncio.create_task(Channel.open((sys.executable, "-c", code), loopback=True))
        while not made:
            await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert all(writer.is_closing() for _, writer in made)

    asyncio.run(test())


@pytest.mark.parametrize("arguments", [[], ["--fd", "99"], ["--fd"], ["--port", "1"]])
def test_the_child_is_no_command_for_people(arguments: list[str]) -> None:
    program = [sys.executable, "-m", "partita_apps.serve.child", *arguments]
    done = subprocess.run(program, input="", capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert os.path.basename(__file__) not in done.stderr
