"""The application: routes of every dialect behind the guard, and uvicorn under it. Knows no field of any body."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from ..terminal import HANGUP, leave_terminal
from .api import chat, completions, errors, messages, models, ollama, responses, state, tokens
from .api.exchange import Endpoint, Exchange, Service
from .app import chats, replying, token, transfer
from .app import state as page_state
from .app.pages import Pages
from .app.tuning import endpoints as tuning
from .asked import Refused
from .frames import Beat
from .metrics import Metrics
from .page import static
from .replies import Models
from .security import Guard
from .settings import Settings
from .streams import Gone

if TYPE_CHECKING:
    import uvicorn

_KNOWN = 0.01  # seconds, in which the event loop goes around several times
ENDPOINTS: Sequence[Endpoint] = (
    *static.ENDPOINTS,
    *chat.ENDPOINTS,
    *completions.ENDPOINTS,
    *responses.ENDPOINTS,
    *messages.ENDPOINTS,
    *models.ENDPOINTS,
    *tokens.ENDPOINTS,
    *ollama.ENDPOINTS,
    *state.ENDPOINTS,
    *page_state.ENDPOINTS,
    *chats.ENDPOINTS,
    *replying.ENDPOINTS,
    *transfer.ENDPOINTS,
    *tuning.ENDPOINTS,
)


def build_app(registry: Models, settings: Settings) -> Guard:
    """The ASGI application. The registry lives while it serves. Raises DataError where the data folder cannot be
    used."""
    metrics = Metrics(lambda: _beats(registry))
    own = token.new() if settings.data is None else token.ensure(settings.data)
    pages = Pages(registry, metrics, settings)
    app = _App(Service(registry, settings, metrics, ENDPOINTS, pages))
    return Guard(app, settings, own, transfer.BOUNDS, leave=pages.leave)


def serve(app: Guard, host: str, port: int, *, sockets: list[socket.socket] | None = None, drain: float = 30) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C; replies that are being written have `drain` seconds to end, and Ctrl-C
    after that does not wait for them. sockets: that are bound already, in place of host and port."""
    import uvicorn

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,  # longer than clients keep theirs, which else send into one that closes
        timeout_graceful_shutdown=max(int(drain), 1),
    )
    server = uvicorn_server(config, app.leave)
    before = {each: signal.signal(each, _nothing) for each in (signal.SIGTERM, signal.SIGINT)}
    if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:  # nohup: it is to go on then
        before[HANGUP] = signal.signal(HANGUP, lambda *_: _hung_up(server))
    try:
        server.run(sockets)  # it raises the signal again when it has ended, which then says nothing
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def uvicorn_server(config: uvicorn.Config, leave: Callable[[], None]) -> uvicorn.Server:
    """One that leaves no connection open. leave: called when it is told to end."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            leave()  # streams without an end would else keep it
            super().handle_exit(sig, frame)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            """Only connections that it knows are asked to end, and one accepted just now is known a moment later.

            Nothing is closed before that: asyncio loses a connection whose listener is.
            """
            loop = asyncio.get_running_loop()
            for listener in (each for server in self.servers for each in server.sockets):
                with contextlib.suppress(NotImplementedError):  # of Windows' loop, which knows it sooner
                    loop.remove_reader(listener)
            await asyncio.sleep(_KNOWN)
            await super().shutdown(sockets)
            for connection in list(self.server_state.connections):  # whose client reads nothing
                connection.transport.abort()

    return Server(config)


def _hung_up(server: uvicorn.Server) -> None:
    """The terminal is gone: as SIGTERM, and nothing more is said to it."""
    leave_terminal()
    server.handle_exit(signal.SIGTERM, None)


def _nothing(number: int, frame: object) -> None:
    """A signal that has been obeyed."""


def _beats(registry: Models) -> Mapping[str, Beat | None]:
    return {name: worker.beat for name, worker in registry.workers().items()}


class _App:
    """Routes, and the life of what they use."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._routes = [
            Route(path, self._handler(each), methods=[each.method])
            for each in service.endpoints
            for path in dict.fromkeys((each.path, each.path.removeprefix("/v1")))
        ]

    def _handler(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Any]]:
        async def answer(request: Request) -> Any:
            return await endpoint.answer(Exchange(self._service, request))

        return answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(self._life(), receive, send)
            return
        status, route = 0, "unknown"

        async def noted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            found, child = self._find(scope)
            route = found.path
            scope.update(child)
            await found.handle(scope, receive, noted)
        except Refused as why:
            status = errors.status(why)
            raise
        except Gone:
            status = status or errors.GONE
            raise
        finally:
            self._service.metrics.requests.labels(route, str(status or 500)).inc()

    def _find(self, scope: Scope) -> tuple[Route, Scope]:
        methods: list[str] = []
        for route in self._routes if scope["path"].isprintable() else ():  # a pattern's end is also before a line end
            match, child = route.matches(scope)
            if match is Match.FULL:
                return route, child
            if match is Match.PARTIAL:
                methods += sorted(route.methods or ())
        if methods:
            raise Refused(f"{scope['method']} is not for this path, expected {' or '.join(methods)}", "method")
        raise Refused(f"there is nothing at {scope['path'][:200]}", "not_found")

    @contextlib.asynccontextmanager
    async def _life(self) -> AsyncGenerator[None, None]:
        async with self._service.models, self._service.pages:
            yield


async def _live(life: contextlib.AbstractAsyncContextManager[None], receive: Receive, send: Send) -> None:
    """ASGI's lifespan around a context."""
    await receive()
    try:
        async with life:
            await send({"type": "lifespan.startup.complete"})
            await receive()
    except Exception as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        raise
    await send({"type": "lifespan.shutdown.complete"})
