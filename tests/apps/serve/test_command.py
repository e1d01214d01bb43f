"""`partita serve` as people start it: a process with a real model, its port, its page, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ..mistakes import Mistake
from .started import Start


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_server_from_its_start_to_its_end(start: Start, tiny_model: Path, backend: str) -> None:
    server = start(tiny_model, f"--backend={backend}")
    assert server.url == f"http://127.0.0.1:{server.port}"
    status, health = server.ask("GET", "/health")
    assert status == 200
    assert json.loads(health)["models"]["loaded"] == 0
    assert server.chat() == server.chat(model="tiny")
    mapped = [Path(each.path).name for each in psutil.Process(server.process.pid).memory_maps()]
    assert not [name for name in mapped if name.startswith(("libtorch", "libmlx", "libllvmlite"))]
    (child,) = [
        each for each in psutil.Process(server.process.pid).children() if "partita_apps.serve.child" in each.cmdline()
    ]
    assert server.end() == 0
    assert not child.is_running()
    assert "Traceback" not in server.log.read_text()


def test_ctrl_c_ends_it_as_well(start: Start, tiny_model: Path) -> None:
    server = start(tiny_model)
    assert server.end(signal.SIGINT) == 0


def test_the_page_is_there_and_its_token_in_the_data_folder(
    start: Start, tiny_model: Path, environment: dict[str, str]
) -> None:
    """The link with the token is for a terminal and for `status`; the address alone is for programs and logs."""
    server = start(tiny_model, "--only")
    status, page = server.ask("GET", "/")
    assert (status, '<script type="module"' in page) == (200, True)
    file = Path(environment["PARTITA_DATA"]) / "page-token"
    token = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert token not in page + server.url + server.log.read_text()
    assert server.ask("GET", "/app/nothing")[0] == 401
    assert server.ask("GET", "/app/nothing", **{"x-partita-page": token})[0] == 404
    assert server.end() == 0
    again = start(tiny_model, "--only")
    assert again.ask("GET", "/app/nothing", **{"x-partita-page": token})[0] == 404


def test_a_key_is_asked_for_and_the_page_shows_nothing_without(start: Start, tiny_model: Path) -> None:
    server = start(tiny_model, PARTITA_API_KEY="secret")
    assert server.ask("GET", "/v1/models")[0] == 401
    assert server.ask("GET", "/v1/models", authorization="Bearer secret")[0] == 200
    status, page = server.ask("GET", "/")
    assert (status, "tiny" in page) == (200, False)


def test_pinned_models_are_loaded_at_the_start(start: Start, tiny_model: Path) -> None:
    server = start(tiny_model, "--pin", "--backend=numpy")
    until = time.monotonic() + 60
    while json.loads(server.ask("GET", "/health")[1])["models"]["loaded"] != 1:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_mistakes_are_one_line(mistake: Mistake, tiny_model: Path, start: Start) -> None:
    assert "./nowhere does not exist" in mistake("serve", "./nowhere")
    assert "--api-key" in mistake("serve", tiny_model, "--host", "0.0.0.0")
    assert "--kv" in mistake("serve", tiny_model, "--kv", "k1")
    server = start(tiny_model)
    assert f"--port {server.port} is taken" in mistake("serve", tiny_model, "--port", str(server.port))
    assert "--open" in mistake("serve", "install", "--open")
    mistake("serve", "install", "--no-such-option")
    mistake("serve", tiny_model, tiny_model)


def test_a_second_one_is_the_first(start: Start, tiny_model: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """On a usual port of its own, so that neither a person's server nor another test is in the way."""
    program = tmp_path / "other_port.py"
    program.write_text(
        "import sys\n"
        "from partita_apps import cli\n"
        "from partita_apps.serve import command, listen\n"
        "listen.PORT = command.PORT = int(sys.argv.pop(1))\n"
        "cli.main()\n"
    )
    first = start(tiny_model)

    def run(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, str(program), str(first.port), "serve", *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)

    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    environment["BROWSER"] = str(browser)
    again = run(tiny_model, "--open")
    out, err = again.communicate(timeout=60)
    assert (again.returncode, out) == (0, "")
    assert f"running already: {first.url}" in err
    token = (Path(environment["PARTITA_DATA"]) / "page-token").read_text().strip()
    assert opened.read_text().strip() == f"{first.url}/#token={token}"
    assert token not in err
    said = run("status")
    assert f"its page: {first.url}/#token={token}" in said.communicate(timeout=60)[0]
    elsewhere = run(shutil.copytree(tiny_model, tmp_path / "another"))
    assert elsewhere.stdout is not None
    url = elsewhere.stdout.readline().strip()
    assert first.port < int(url.rpartition(":")[2]) < first.port + 100
    elsewhere.terminate()
    _, err = elsewhere.communicate(timeout=60)
    assert (elsewhere.returncode, f"({first.port} is taken)" in err) == (0, True)


def test_the_service_commands(environment: dict[str, str], tmp_path: Path, tiny_model: Path) -> None:
    manager = tmp_path / "bin"
    manager.mkdir()
    for name in ("systemctl", "launchctl"):
        (manager / name).write_text('#!/bin/sh\ncase "$*" in *is-active*) echo active ;; esac\n')
        (manager / name).chmod(0o755)
    own = {**environment, "PATH": f"{manager}{os.pathsep}{environment['PATH']}", "HOME": str(tmp_path)}

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "partita_apps.cli", "serve", *arguments]
        done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    status, said = run("status", "--json")
    assert (status, json.loads(said)["installed"]) == (0, False)
    status, said = run("install", str(tiny_model), "--port", "1300")
    assert status == 0, said
    written = Path(said.strip()).read_text()
    assert "1300" in written
    assert str(tiny_model) in written
    assert json.loads(run("status", "--json")[1])["running"] is True
    assert run("uninstall")[0] == 0
    assert run("uninstall")[0] == 2
