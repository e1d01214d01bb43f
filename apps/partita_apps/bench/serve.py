"""What a server gives its clients: tokens/s of several at once, the wait for the first, the steadiness of a running
reply while a long prompt arrives, and memory; beside a peer's server on the same weights, one after the other.

Each server is a process of its own on a free port of the loopback, and ends with the measurement.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .children import prompts as prompt_ids
from .children import threads_of
from .clients import Load, at_once, complete
from .peers import SERVING, model_for
from .report import row

UNLISTED = "default_model"
"""What mlx-lm's server calls the model that it was started with, which it does not list."""
MIB = 2**20
BUSY = 256
"""Tokens of the reply that is being written meanwhile, at least."""
WAIT = 300.0
"""Seconds that a server has to start."""


Figures = dict[tuple[str, str], float]
"""By what was measured, and its unit."""


@dataclass(frozen=True)
class Server:
    """One that answers. model: its name there."""

    port: int
    model: str
    process: subprocess.Popen[bytes]

    def resident(self) -> int:
        """Bytes that it and its child processes hold, shared pages counted once where the system says so."""
        import psutil

        own = psutil.Process(self.process.pid)
        found = 0
        for each in [own, *own.children(recursive=True)]:
            memory = each.memory_full_info()
            found += getattr(memory, "pss", memory.rss)
        return found


def run(
    *,
    model: Path,
    runs: int,
    clients: Sequence[int],
    prompt: int,
    tokens: int,
    arriving: int,
    against: str | None,
    peer_python: str | None,
    threads: int | None,
    **sides: Any,
) -> list[dict[str, Any]]:
    """clients: how many at once. prompt, tokens: of each. arriving: tokens of the prompt that comes while a reply is
    being written, 0 for none."""
    count, context = threads or 1, max(arriving, prompt) + max(tokens, BUSY) + 64
    texts = _texts(model, prompt, runs * sum(clients) + max(clients) + 2)
    options = [f"--{name}={value}" for name, value in sides.items() if value not in (None, "auto")]
    own = [sys.executable, "-m", "partita_apps.cli", "serve", str(model), "--port={port}", f"--threads={count}"]
    ours = _figures([*own, f"--context={context}", *options], model, texts, clients, tokens, runs, arriving)
    theirs: Figures = {}
    if against is not None:
        with model_for(against, model) as given:
            command = [peer_python or sys.executable, *SERVING[against]]
            filled = [word.replace("{model}", str(given)) for word in command]
            filled = [word.replace("{threads}", str(count)).replace("{context}", str(context)) for word in filled]
            theirs = _figures(filled, given, texts, clients, tokens, runs, 0)
    about = f"{threads_of(threads)}{f' / {against}' if against else ''}"
    return [row(f"{name}, {about}", value, theirs.get((name, unit)), unit) for (name, unit), value in ours.items()]


def _figures(
    command: Sequence[str],
    model: Path,
    texts: Sequence[str],
    clients: Sequence[int],
    tokens: int,
    runs: int,
    arriving: int,
) -> Figures:
    """By name and unit. arriving: as in `run`."""
    found: Figures = {}
    with serving(command) as server:
        following = iter(texts)  # no prompt is asked twice, so that none is remembered
        for count in (1, max(clients)):  # the model is loaded, and what it computes with compiled
            at_once(server.port, server.model, [next(following) for _ in range(count)], 8)
        for count in clients:
            loads = [
                at_once(server.port, server.model, [next(following) for _ in range(count)], tokens) for _ in range(runs)
            ]
            name = f"{count} client{'s' * (count > 1)}"
            found[name, "tokens/s"] = statistics.median(load.rate for load in loads)
            found[f"first token, {name}", "s"] = statistics.median(load.first for load in loads)
        if arriving:
            found |= _disturbed(server, model, next(following), tokens, arriving)
        found["the server after it", "MiB"] = server.resident() / MIB
    return found


def _disturbed(server: Server, model: Path, text: str, tokens: int, arriving: int) -> Figures:
    """Times between the tokens of a running reply, before and while a long prompt is read."""
    quiet = complete(server.port, server.model, text, tokens)
    (long,) = _texts(model, arriving, 1)
    found: list[Load] = []

    def other() -> None:
        time.sleep(3 * statistics.median(quiet.gaps))
        found.append(at_once(server.port, server.model, [f"Another text: {long}"], 2))

    thread = threading.Thread(target=other)
    thread.start()
    busy = complete(server.port, server.model, text, max(tokens, BUSY))
    thread.join()
    (load,) = found
    begun, ended = load.replies[0].begun, load.replies[0].times[0]
    gaps = [after - before for before, after in zip(busy.times, busy.times[1:], strict=False) if begun < after < ended]
    name = "between tokens"
    return {
        (name, "ms"): 1e3 * statistics.median(quiet.gaps),
        (f"{name} while {arriving} tokens arrive", "ms"): 1e3 * statistics.median(gaps),
        (f"{name} while {arriving} tokens arrive, at most", "ms"): 1e3 * max(gaps),
    }


@contextmanager
def serving(command: Sequence[str]) -> Iterator[Server]:
    """A server's process, `{port}` in its command replaced by a free one; it ends with the block.

    It finds an empty cache of Hugging Face's: mlx-lm's server lists what is in there before the model that it was
    started with, and answers nothing where there is none.
    """
    from partita.errors import BackendUnavailable

    port = _free_port()
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as cache:
        words = [word.replace("{port}", str(port)) for word in command]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": cache}
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        try:
            model = _answered(port, process)
            if model is None:
                log.seek(0)
                said = _last_words(log.read().decode("utf-8", "replace"))
                raise BackendUnavailable(f"{' '.join(words[1:3])} does not serve: {said} (see --peer-python)")
            yield Server(port, model, process)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answered(port: int, process: subprocess.Popen[bytes]) -> str | None:
    """The name of the model that a server lists, None where it ended or did not answer in time."""
    import http.client
    import json

    until = time.monotonic() + WAIT
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/v1/models")
            listed = json.loads(connection.getresponse().read())["data"]
            return str(listed[0]["id"]) if listed else UNLISTED
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            time.sleep(0.1)
        finally:
            connection.close()
    return None


def _last_words(text: str) -> str:
    """The last line of a log that says something: Python's servers rule a line under what failed."""
    from partita.printable import printable

    lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    return printable(lines[-1]) if lines else "it said nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _texts(model: Path, length: int, count: int) -> list[str]:
    """Prompts of about `length` tokens, each beginning elsewhere in a text, so that no two begin alike."""
    from partita.checkpoint.open import open_checkpoint
    from partita.text.load import load_tokenizer

    tokenizer = load_tokenizer(open_checkpoint(model))
    return [tokenizer.decode(ids) for ids in prompt_ids(model, length, count)]
