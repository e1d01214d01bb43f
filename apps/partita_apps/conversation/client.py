"""A server that speaks OpenAI's API, over HTTP: its models, and replies as the chunks that it streams.

Not here: what is asked, and what a conversation is. Invariants: nothing is sent anywhere but to the address that was
given (no proxy is asked, no redirect followed); the key goes into a header and into no message; what a server answers
is bounded and typed; every failure is a SourceError of one line.
"""

from __future__ import annotations

import http.client
import queue
import re
import socket
import threading
from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from partita.errors import DataError, SourceError
from partita.files.bounded import is_table, parse

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 600.0
"""How long a server may say nothing: it may be loading a model, or reading a long prompt."""
TICK = 0.1
"""Seconds after which whoever waits for a chunk has a turn."""
_LIST, _LINE, _ERROR = 16 << 20, 4 << 20, 1 << 16  # bytes: of a document, of a line of a stream, of what failed
T = TypeVar("T")


class _Meta(msgspec.Struct):
    n_ctx: int | None = None
    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    kv: str | None = None
    row_bytes: int | None = None


class Listed(msgspec.Struct):
    """A model in a server's list. Only its id is in every server's."""

    id: str
    parent: str | None = None
    state: str | None = None
    loaded_context_length: int | None = None
    context_length: int | None = None
    max_model_len: int | None = None
    meta: _Meta | None = None

    @property
    def context(self) -> int | None:
        """Tokens, as far as it is said."""
        given = self.meta.n_ctx if self.meta else None
        return self.loaded_context_length or given or self.max_model_len or self.context_length


class _List(msgspec.Struct):
    data: list[dict[str, Any]] | None = None


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallDelta] | None = None


class Top(msgspec.Struct):
    token: str
    logprob: float | None = None
    id: Any = None
    bytes: Any = None

    @property
    def data(self) -> bytearray:
        """What it adds to a text."""
        try:
            return bytearray(self.bytes if isinstance(self.bytes, list) else self.token.encode())
        except (TypeError, ValueError):
            return bytearray(self.token.encode())


class Logprob(Top):
    top_logprobs: list[Top] | None = None


class Logprobs(msgspec.Struct):
    content: list[Logprob] | None = None


class Choice(msgspec.Struct):
    delta: Delta | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _ReplyDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _ReplyDetails | None = None


class Chunk(msgspec.Struct):
    """Of a streamed reply."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


@dataclass(frozen=True)
class Address:
    """prefix: of every path."""

    scheme: str
    host: str
    port: int | None
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """`http://host:port`, with or without `/v1`; without a scheme it is http. Raises DataError."""
        wrong = "`server` must be an address as http://127.0.0.1:1234"
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise DataError(wrong, field="server") from None
        if parts.username is not None or parts.password is not None:
            raise DataError("`server` takes no password in its address: put a key into PARTITA_API_KEY", field="server")
        path = parts.path.rstrip("/").removesuffix("/v1")
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise DataError(f"{wrong}, got {url!r}", field="server")
        if not re.fullmatch(r"[\w.:%-]+", host) or not re.fullmatch(r"[!-~]*", path):
            raise DataError(f"{wrong}, got {url!r}", field="server")
        return cls(parts.scheme, host, port, path)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if self.port is None else f':{self.port}'}{self.prefix}"


class Client:
    """key: sent as a bearer token, None for none. Raises DataError for a key that no header can hold."""

    def __init__(self, address: Address, key: str | None = None) -> None:
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise DataError("PARTITA_API_KEY must be printable ASCII characters without spaces")
        self.address, self._key = address, key

    def models(self) -> list[Listed]:
        """What requests may name. Raises SourceError."""
        exchange = Exchange(self, "GET", "/v1/models", silence=CONNECT_SECONDS)
        try:
            data = exchange.connect().read(_LIST)
        except (OSError, http.client.HTTPException) as error:
            raise self.lost(error) from None
        finally:
            exchange.release()
        return [_listed(entry) for entry in self.typed(data, _List).data or [] if isinstance(entry.get("id"), str)]

    def stream(self, body: Mapping[str, Any]) -> Generator[Chunk | None, None, None]:
        """Chunks of a chat completion; None each time that `TICK` seconds went by without one. Closed early, the
        server hears of it. Raises SourceError, also where the stream ends before it says so."""
        exchange = Exchange(self, "POST", "/v1/chat/completions", msgspec.json.encode(body))
        lines = Lines(exchange)
        try:
            ended = False
            for line in lines:
                if line is None:
                    yield None
                    continue
                name, _, data = line.partition(b":")
                data = data.strip()
                if name != b"data" or not data:  # comments, names of events
                    continue
                if data == b"[DONE]":
                    return
                chunk = self.typed(data, Chunk)
                if chunk.error is not None:
                    raise SourceError(f"{self.address}: {_message(chunk.error)}")
                ended = ended or any(choice.finish_reason is not None for choice in chunk.choices or ())
                yield chunk
            if not ended:
                raise self.lost(None)
        finally:
            lines.close()

    def headers(self) -> dict[str, str]:
        key = {} if self._key is None else {"authorization": f"Bearer {self._key}"}
        return {"content-type": "application/json", "accept": "application/json, text/event-stream", **key}

    def lost(self, error: Exception | None) -> SourceError:
        """What went wrong on the way to the server or back, in words."""
        if isinstance(error, ConnectionRefusedError):
            why = "no server answers there: `serve()` starts one"
        elif isinstance(error, socket.gaierror):
            why = "there is no machine of that name"
        elif isinstance(error, TimeoutError):
            why = "the server does not answer"
        elif error is None or isinstance(error, ConnectionError | http.client.IncompleteRead | EOFError):
            why = "the connection was lost before the reply had ended"
        elif isinstance(error, http.client.HTTPException):
            why = "what answers there speaks no HTTP"
        else:
            why = f"it cannot be reached ({getattr(error, 'strerror', None) or error})"
        return SourceError(f"{self.address}: {why}")

    def refused(self, answer: http.client.HTTPResponse) -> SourceError:
        """What a status other than 200 says."""
        with suppress(OSError, http.client.HTTPException, ValueError):
            document = parse(answer.read(_ERROR))
            if is_table(document):
                return SourceError(f"{self.address} answers {answer.status}: {_message(document)}{self._hint(answer)}")
        if answer.status // 100 == 3:
            return SourceError(
                f"{self.address} points elsewhere ({answer.status}), which is not followed: name that address"
            )
        return SourceError(f"{self.address} answers {answer.status} {answer.reason}{self._hint(answer)}")

    def _hint(self, answer: http.client.HTTPResponse) -> str:
        if answer.status == 401:
            return ": put its key into PARTITA_API_KEY" if self._key is None else ": PARTITA_API_KEY is not its key"
        return ": is this a server of OpenAI's API?" if answer.status in (404, 405) else ""

    def typed(self, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            raise SourceError(f"{self.address}: its answer is not of OpenAI's API") from None


def _listed(entry: dict[str, Any]) -> Listed:
    """An entry of a server's list; where it says other things than we know, its name alone."""
    try:
        return msgspec.convert(entry, Listed)
    except msgspec.ValidationError:
        return Listed(entry["id"])


def _message(error: Any) -> str:
    """The words of an error's document."""
    while is_table(error):
        error = error.get("error") or error.get("message") or error.get("detail") or "an error without a message"
    return " ".join(str(error).split())


@dataclass
class Exchange:
    """One request and its answer. silence: seconds in which nothing may come."""

    client: Client
    method: str
    path: str
    body: bytes | None = None
    silence: float = SILENT_SECONDS
    closed: bool = False
    sock: socket.socket | None = None
    connection: http.client.HTTPConnection = field(init=False)
    answer: http.client.HTTPResponse | None = None

    def __post_init__(self) -> None:
        address = self.client.address
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self.connection = kind(address.host, address.port, timeout=CONNECT_SECONDS)

    def connect(self) -> http.client.HTTPResponse:
        """Send the request and read the answer's head.

        Raises SourceError for a status other than 200, and what sockets raise.
        """
        self.connection.connect()
        self.sock = sock = self.connection.sock
        if self.closed:
            raise EOFError
        sock.settimeout(self.silence)
        self.connection.request(self.method, self.client.address.prefix + self.path, self.body, self.client.headers())
        self.answer = self.connection.getresponse()
        if self.answer.status != 200:
            raise self.client.refused(self.answer)
        return self.answer

    def close(self) -> None:
        """From any thread: whoever reads in another one gets an end, and so does the server."""
        self.closed = True
        with suppress(OSError):
            if self.sock is not None:
                self.sock.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Give the socket back; only from the thread that reads."""
        self.close()
        if self.answer is not None:
            self.answer.close()
        self.connection.close()


class Lines:
    """Lines of a stream, read by a thread of its own, so that whoever waits for one can do something else meanwhile."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._found: queue.Queue[bytes | Exception | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __iter__(self) -> Generator[bytes | None, None, None]:
        """None after each `TICK` seconds without a line."""
        while True:
            try:
                found = self._found.get(timeout=TICK)
            except queue.Empty:
                yield None
                continue
            if found is None:
                return
            if isinstance(found, SourceError):
                raise found
            if isinstance(found, Exception):
                raise self._exchange.client.lost(found)
            yield found

    def close(self) -> None:
        self._exchange.close()
        self._thread.join(TICK)

    def _read(self) -> None:
        try:
            answer = self._exchange.connect()
            if answer.headers.get_content_type() != "text/event-stream":
                raise SourceError(f"{self._exchange.client.address}: its answer is no stream of OpenAI's API")
            while line := answer.readline(_LINE + 1):
                if len(line) > _LINE:
                    raise SourceError(f"{self._exchange.client.address}: a line of its answer has no end")
                self._found.put(line)
            self._found.put(None)
        except Exception as error:  # whatever it is, the one who waits has to hear of it
            self._found.put(error)
        finally:
            self._exchange.release()
