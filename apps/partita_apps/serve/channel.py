"""The channel between the server and the process of a model: the one module that knows sockets.

The server's end belongs to an event loop, the child's end blocks. They are a socket pair, whose other end the child
inherits; where that cannot be (Windows), a connection over the loopback, which begins with a secret that the child
reads from its standard input. Not here: what frames mean, and when a process is to end.

Invariants: what cannot be read ends a channel as `Closed`, whatever it was. No process but our own child is signalled.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from .frames import MAX_FRAME, Down, Up

PASSES_SOCKETS = sys.platform != "win32"
START_SECONDS = 60.0  # of a machine that is very busy
_SECRET_BYTES = 64
_SIZE = struct.Struct(">I")
_STEP = 0.01  # seconds between two looks at a process


class Closed(Exception):
    """There is nothing more to read, or to write to: why, in a few words."""


class Channel:
    """The server's end, and the process at the other one. For one event loop. up: the frames that it sends."""

    def __init__(
        self,
        process: subprocess.Popen[Any],
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        up: Any = Up,
    ):
        self._process = process
        self._reader, self._writer = streams
        self._encoder, self._decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(up)

    @classmethod
    async def open(cls, program: Sequence[str], *, loopback: bool = not PASSES_SOCKETS, up: Any = Up) -> Channel:
        """Start a program, which is told its end as `--fd N` or `--port N`. Raises Closed where it does not start."""
        try:
            return cls(*await (_over_loopback(program) if loopback else _over_pair(program)), up)
        except OSError as error:
            raise Closed(f"it could not start: {error.strerror or error}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, frame: msgspec.Struct) -> None:
        """Give a frame to the event loop, which writes it; lost where the other end is gone.

        Raises ValueError for a frame above MAX_FRAME.
        """
        data = self._encoder.encode(frame)
        if len(data) > MAX_FRAME:
            raise ValueError(f"a frame of {len(data)} bytes; {MAX_FRAME} at most")
        if not self._writer.is_closing():
            self._writer.write(_SIZE.pack(len(data)) + data)

    async def drain(self) -> None:
        """Wait until the other end has taken most of what was sent. Raises Closed."""
        try:
            await self._writer.drain()
        except OSError as error:
            raise Closed(str(error)) from None

    async def receive(self) -> Any:
        """The next frame. Raises Closed at the end, and where bytes are none: the process is ended then."""
        try:
            (size,) = _SIZE.unpack(await self._reader.readexactly(_SIZE.size))
            if size > MAX_FRAME:
                raise self.nonsense(f"a frame of {size} bytes")
            data = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            raise Closed("it ended") from None
        try:
            return self._decoder.decode(data)
        except Exception:  # msgspec's errors, and those of the values that it makes
            raise self.nonsense("what is no frame") from None

    def nonsense(self, what: str) -> Closed:
        """End a process that has sent something else than it should."""
        self.kill()
        return Closed(f"it sent {what}")

    async def close(self, patience: float = 1.0) -> int:
        """Close this end. The process has some seconds to end by itself, and is made to then; at once if cancelled.

        Its status, negative for a signal.
        """
        try:
            if not await self._ends(patience):
                self.kill()
            await self._ends(START_SECONDS)
        except asyncio.CancelledError:
            self.kill()
            self._process.wait()  # nobody else does, and it has no choice now
            raise
        finally:
            self._writer.close()
        return self._process.returncode or 0

    def terminate(self) -> None:
        """Ask the process to end now."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process, whatever it does. Like `terminate`, this is seen as `Closed` by who receives."""
        self._process.kill()

    async def _ends(self, patience: float) -> bool:
        """Whether the process ends within some seconds."""
        deadline = time.monotonic() + patience
        while self._process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(_STEP)
        return self._process.poll() is not None


Opened = tuple[subprocess.Popen[Any], tuple[asyncio.StreamReader, asyncio.StreamWriter]]


async def _over_pair(program: Sequence[str]) -> Opened:
    ours, theirs = socket.socketpair()
    with theirs:
        number = theirs.fileno()
        try:
            process = _started([*program, "--fd", str(number)], pass_fds=(number,), stdin=subprocess.DEVNULL)
        except OSError:
            ours.close()
            raise
    with _or_ended(process, ours):
        return process, await asyncio.open_connection(sock=ours)


async def _over_loopback(program: Sequence[str]) -> Opened:
    secret = secrets.token_hex(_SECRET_BYTES // 2).encode()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        process = _started([*program, "--port", str(port)], stdin=subprocess.PIPE)
        with _or_ended(process, server):
            assert process.stdin is not None
            with process.stdin as pipe:
                pipe.write(secret)
            return process, await _accepted(server, process, secret)


@contextmanager
def _or_ended(process: subprocess.Popen[Any], ours: socket.socket) -> Generator[None, None, None]:
    """A process that no channel comes to does not stay, nor does our end."""
    try:
        yield
    except BaseException:
        ours.close()
        process.kill()
        process.wait()
        raise


async def _accepted(
    server: socket.socket, process: subprocess.Popen[Any], secret: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The connection that begins with the secret. Others are closed."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            connection, _ = server.accept()
        except BlockingIOError:
            await asyncio.sleep(_STEP)
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, writer = await asyncio.open_connection(sock=connection)
        known = False
        try:
            known = await _knows(reader, secret)
        finally:  # also where this is cancelled
            if not known:
                writer.close()
        if known:
            return reader, writer
    how = "it did not call back" if process.returncode is None else ended(process.returncode)
    raise Closed(f"it could not start ({how})")


async def _knows(reader: asyncio.StreamReader, secret: bytes) -> bool:
    """Whether a connection begins with the secret, soon."""
    try:
        async with asyncio.timeout(1.0):
            return hmac.compare_digest(await reader.readexactly(_SECRET_BYTES), secret)
    except (TimeoutError, asyncio.IncompleteReadError, OSError):
        return False


def _started(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """A process that Ctrl-C in our terminal does not reach. What it writes goes where our log goes."""
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    else:
        options["start_new_session"] = True
    return subprocess.Popen(command, stdout=2, **options)


def ended(status: int | None) -> str:
    """How a process ended, in words."""
    return f"signal {-status}" if status is not None and status < 0 else f"status {status}"


class Line:
    """The child's end. Frames are sent by one thread, and received by one. down: the frames that come."""

    def __init__(self, connection: socket.socket, down: Any = Down):
        self._connection, self._file = connection, connection.makefile("rb")
        self._encoder, self._decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(down)

    @classmethod
    def of(cls, arguments: Sequence[str], down: Any = Down) -> Line:
        """The end that `Channel.open` has told this process. Raises Closed where there is none."""
        try:
            match arguments:
                case ["--fd", number]:
                    connection = socket.socket(fileno=int(number))
                    connection.set_inheritable(False)  # a process that we start must not keep the channel open
                case ["--port", number]:
                    connection = socket.create_connection(("127.0.0.1", int(number)), START_SECONDS)
                    connection.settimeout(None)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connection.sendall(sys.stdin.buffer.read())
                case _:
                    raise Closed("this program is started by `partita serve`")
        except (OSError, ValueError) as error:
            raise Closed(f"this program is started by `partita serve`: {error}") from None
        return cls(connection, down)

    def close(self) -> None:
        self._file.close()
        self._connection.close()

    def send(self, *frames: msgspec.Struct) -> None:
        """All of them in one write. Raises Closed."""
        encoded = map(self._encoder.encode, frames)
        try:
            self._connection.sendall(b"".join(_SIZE.pack(len(data)) + data for data in encoded))
        except OSError as error:
            raise Closed(str(error)) from None

    def receive(self) -> Any:
        """The next frame. Raises Closed at the end, and where bytes are none."""
        size = _SIZE.unpack(self._exactly(_SIZE.size))[0]
        if size > MAX_FRAME:
            raise Closed(f"the server sent a frame of {size} bytes")
        try:
            return self._decoder.decode(self._exactly(size))
        except Exception:  # msgspec's errors, and those of the values that it makes
            raise Closed("the server sent what is no frame") from None

    def _exactly(self, count: int) -> bytes:
        try:
            data = self._file.read(count)
        except OSError as error:
            raise Closed(str(error)) from None
        if len(data) < count:
            raise Closed("the server ended")
        return data
