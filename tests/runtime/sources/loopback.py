"""What the tests of fetching share: loopback servers, small wheels, clean settings, `resolve` in a child process."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from partita.errors import SourceError
from partita.sources import resolve as sources

GGUF = b"GGUF" + bytes(range(256)) * 700  # a body to move about; no test here looks inside
NAME = "pypi:demo-model==1.0"


class Recorder:
    """A Progress that keeps what it was told, and insists on the order of calls."""

    def __init__(self):
        self.pieces: list[dict] = []
        self.open = False

    def start(self, total, what):
        assert not self.open
        self.open = True
        self.pieces.append({"total": total, "what": what, "count": 0})

    def advance(self, n):
        assert self.open
        assert n > 0
        self.pieces[-1]["count"] += n

    def done(self):
        assert self.open
        self.open = False


class Loopback(ThreadingHTTPServer):
    """A server on a free port whose every answer comes from `answer(request)`; a client that goes away is no error."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    with Loopback(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def send(request, status: int, body: bytes = b"", **headers: str) -> None:
    request.send_response(status)
    for key, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(key.replace("_", "-"), value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_wheel(
    folder: Path,
    files: dict[str, bytes],
    version: str = "1.0",
    distribution: str = "demo_model",
    record: str | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{distribution}-{version}.dist-info"
    path = folder / f"{distribution}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, body in files.items():
            wheel.writestr(name, body)
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nRequires-Python: <3\n"
        wheel.writestr(f"{info}/METADATA", metadata + "Requires-Dist: nothing-of-this-name\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        sums = {name: base64.urlsafe_b64encode(hashlib.sha256(body).digest()) for name, body in files.items()}
        rows = [f"{name},sha256={value.decode().rstrip('=')},{len(files[name])}" for name, value in sums.items()]
        wheel.writestr(f"{info}/RECORD", "\n".join(rows) if record is None else record)
    return path


def everything(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def refused(name: str | None, *words: str, **options) -> str:
    with pytest.raises(SourceError) as caught:
        sources.resolve(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


RUN = """
import json, sys
from partita.sources import resolve as sources
from partita.errors import SourceError
try:
    print(json.dumps({"path": str(sources.resolve(sys.argv[1], **json.loads(sys.argv[2])))}))
except SourceError as error:
    print(json.dumps({"error": str(error)}))
"""


def start(name: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-c", RUN, name, json.dumps(options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    return json.loads(out)


def elsewhere(name: str, **options) -> dict:
    """`resolve` in a fresh process, since the Hub's library reads its settings once, on import."""
    return outcome(start(name, **options))


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """No setting of the machine's pip or Hub reaches a test, and no cache but its own."""
    for variable in list(os.environ):
        if variable.upper().startswith(("PIP_", "HF_", "HUGGINGFACE_")) or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder that is the whole package index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"
