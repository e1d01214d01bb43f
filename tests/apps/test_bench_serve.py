"""`partita bench serve`: a real server, its clients, and what they are told of each."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from partita.errors import BackendUnavailable, DataError
from partita_apps.bench import bench
from partita_apps.bench.clients import ATTEMPTS, Load, Reply, at_once, complete
from partita_apps.bench.serve import serving


def test_a_server_and_its_clients(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partita_apps.bench.serve.BUSY", 128)
    options = ["--clients", "1,3", "--runs", "1", "--prompt", "16", "--tokens", "16", "--arriving", "300", "--json"]
    done = CliRunner().invoke(bench, ["serve", "--model", str(tiny_model), *options], catch_exceptions=False)
    found = json.loads(done.stdout)["rows"]
    rows = {row["name"]: row for row in found}
    assert len(rows) == len(found)
    assert [row["unit"] for row in found] == ["tokens/s", "s", "tokens/s", "s", "ms", "ms", "ms", "MiB"]
    assert all(row["ours"] > 0 for row in rows.values())
    names = "; ".join(rows)
    for part in ("1 client,", "3 clients,", "while 300 tokens arrive", "the server after it"):
        assert part in names


def test_what_a_load_comes_to() -> None:
    replies = [Reply(1.0, [2.0, 3.0], "a", 2), Reply(1.5, [2.0, 2.5, 4.0], "b", 3)]
    load = Load(replies, 3.0)
    assert load.rate == pytest.approx(5 / 3)
    assert load.first == 0.75
    assert replies[1].gaps == [0.5, 1.5]


def test_errors_of_a_server_are_not_figures(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "partita_apps.cli", "serve", str(tiny_model), "--port={port}", "--backend=numpy"]
    with serving(command) as server:
        assert server.model == "tiny"
        assert "404" in str(complete(server.port, "nothing", "the quick", 4).error)
        with pytest.raises(DataError, match="1 of 1 clients were not answered: status 400"):
            at_once(server.port, server.model, ["the " * 2000], 4)
        assert server.resident() > 1 << 20


def test_what_does_not_serve_is_one_line() -> None:
    program = "import sys; sys.exit('no such model')"
    with pytest.raises(BackendUnavailable, match="no such model"), serving([sys.executable, "-c", program]):
        pass


@pytest.mark.parametrize("end", ["", "\\n" + "-" * 40])
def test_a_rule_under_an_error_is_not_the_error(end: str) -> None:
    program = f"import sys; sys.exit('ValueError: no cache\\x1b[2J{end}')"
    with (
        pytest.raises(BackendUnavailable, match=r"does not serve: ValueError: no cache\\x1b\[2J \(see"),
        serving([sys.executable, "-c", program]),
    ):
        pass


@pytest.mark.parametrize("resets", [0, 2, 1000])
def test_a_connection_that_is_reset_is_made_again(resets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of times, then it is an error."""
    monkeypatch.setattr("partita_apps.bench.clients.PAUSE", 0.0)
    text = b'data: {"choices": [{"text": "a"}]}\n\n'
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for place in range(min(resets + 1, ATTEMPTS)):
                connection, _ = listening.accept()
                read = b""
                while not read.endswith(b"}"):  # what is not read would reset the connection by itself
                    read += connection.recv(65536)
                if place < resets:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + text)
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        reply = complete(listening.getsockname()[1], "any", "hi", 1)
        thread.join()
    if resets < ATTEMPTS:
        assert (reply.error, reply.text, reply.tokens) == (None, "a", 1)
    else:
        assert "ConnectionResetError" in str(reply.error)


PEER = """
import http.server, json, os, sys
class Lists(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        names = [*os.listdir(os.environ["HF_HUB_CACHE"]), "given"]  # fails where there is none, as mlx-lm's does
        self.wfile.write(json.dumps({"data": [{"id": name} for name in names]}).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Lists).serve_forever()
"""


@pytest.mark.parametrize("held", [None, "models--another--one"])
def test_a_peer_lists_the_given_model_alone(held: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this person has of Hugging Face's, or nothing."""
    cache = tmp_path / "hub"
    if held is not None:
        (cache / held).mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    with serving([sys.executable, "-c", PEER, "{port}"]) as server:
        assert server.model == "given"


@pytest.mark.slow
def test_beside_mlx_lm(tiny_model: Path) -> None:
    """Its server and ours on the same weights, one after the other."""
    options = ["--clients", "1,2", "--runs", "1", "--prompt", "8", "--tokens", "8", "--arriving", "0", "--json"]
    command = ["serve", "--model", str(tiny_model), "--against", "mlx-lm", *options]
    done = CliRunner().invoke(bench, command, catch_exceptions=False)
    rows = json.loads(done.stdout)["rows"]
    assert [row["unit"] for row in rows] == ["tokens/s", "s", "tokens/s", "s", "MiB"]
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in rows)
