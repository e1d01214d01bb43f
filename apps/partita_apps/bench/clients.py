"""Clients of a server, for measuring it: streams of `/v1/completions` read side by side, each token with its time.

Knows the API that all servers share and no server. Each client is a thread with a connection of its own, on the
loopback; the greedy reply of a client depends on its prompt alone.
"""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier

SECONDS = 600.0
"""Without a sign of life from the server."""
ATTEMPTS, PAUSE = 20, 0.25
"""A connection that is reset before the first token is made again, so often and after so many seconds: Python's own
HTTP server, which mlx-lm's is, has a queue for five."""


@dataclass
class Reply:
    """begun, times: of the request and of each piece of text, in seconds of one clock. tokens: as the server counts."""

    begun: float
    times: list[float] = field(default_factory=list[float])
    text: str = ""
    tokens: int = 0
    error: str | None = None

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.times[0] - self.begun

    @property
    def gaps(self) -> list[float]:
        """Seconds between two pieces."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


@dataclass(frozen=True)
class Load:
    """What some clients got at once. seconds: from the first request to the last piece."""

    replies: Sequence[Reply]
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second of all clients together."""
        return sum(reply.tokens for reply in self.replies) / self.seconds

    @property
    def first(self) -> float:
        """Median seconds to the first piece."""
        return statistics.median(reply.first for reply in self.replies)


def complete(port: int, model: str, prompt: str, tokens: int) -> Reply:
    """The most probable continuation of a text, as a stream. An error of the server is in the reply."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    reply = Reply(time.perf_counter())
    for left in reversed(range(ATTEMPTS)):
        try:
            _read_stream(reply, port, body)
        except ConnectionResetError as error:  # by a server that keeps a short queue: it counts as waiting
            reply.error = repr(error)
            if left and not reply.times:
                reply.error = None
                time.sleep(PAUSE)
                continue
        except (OSError, http.client.HTTPException, ValueError) as error:
            reply.error = repr(error)
        break
    if not reply.times and reply.error is None:
        reply.error = "it ended without a word"
    return reply


def _read_stream(reply: Reply, port: int, body: dict[str, object]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            reply.error = f"status {response.status}: {response.read(400).decode('utf-8', 'replace')}"
            return
        for event in _events(response):
            _read(reply, event)
    finally:
        connection.close()


def at_once(port: int, model: str, prompts: Sequence[str], tokens: int) -> Load:
    """A client for each prompt, all begun together. Raises DataError where one was not answered."""
    from partita.errors import DataError

    ready = Barrier(len(prompts))

    def one(prompt: str) -> Reply:
        ready.wait()
        return complete(port, model, prompt, tokens)

    with ThreadPoolExecutor(len(prompts)) as clients:
        replies = list(clients.map(one, prompts))
    failed = [reply.error for reply in replies if reply.error is not None]
    if failed:
        raise DataError(f"{len(failed)} of {len(replies)} clients were not answered: {failed[0]}")
    begun, ended = min(reply.begun for reply in replies), max(reply.times[-1] for reply in replies)
    return Load(replies, ended - begun)


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, object]]:
    """The data of a stream of server-sent events, up to its end mark."""
    while line := response.readline():
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield json.loads(data)


def _read(reply: Reply, event: dict[str, object]) -> None:
    if event.get("error"):
        reply.error = json.dumps(event["error"])
    usage, choices = event.get("usage"), event.get("choices")
    if isinstance(usage, dict):
        reply.tokens = int(usage["completion_tokens"])
    if isinstance(choices, list) and choices and choices[0].get("text"):
        reply.times.append(time.perf_counter())
        reply.text += choices[0]["text"]
        reply.tokens = max(reply.tokens, len(reply.times))  # a server that does not count: a piece a token
