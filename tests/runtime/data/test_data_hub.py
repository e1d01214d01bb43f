"""Data sets of a Hub: which files are which split; fetched once from a loopback server, then pinned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from partita.errors import SourceError
from partita.sources import datasets as data_hub

from ..sources import loopback
from ..sources.loopback import closed_port, send, serving

isolated = loopback.isolated  # each test of this module has its own caches and settings

COMMIT = "c0ffee" * 6 + "beef"
TRAIN = b'{"text": "a fox"}\n{"text": "a dog"}\n'
FILES = {
    "README.md": b"# data",
    "load_data.py": b"raise SystemExit",
    "train-00000-of-00002.jsonl": TRAIN,
    "train-00001-of-00002.jsonl": TRAIN,
    "validation.jsonl": b'{"text": "a day"}\n',
}

RUN = """
import json, sys
from partita.data import files as data_files
from partita.errors import PartitaError
try:
    files = data_files.find(sys.argv[1], offline=sys.argv[2] == "offline")
    print(json.dumps({name: [str(path) for path in getattr(files, name)] for name in ("train", "valid", "test")}))
except PartitaError as error:
    print(json.dumps({"error": str(error)}))
"""


def found(name: str, offline: bool = False) -> dict:
    """`files.find` in a fresh process, since the Hub's library reads its settings once, on import."""
    command = [sys.executable, "-W", "error", "-c", RUN, name, "offline" if offline else ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


class DataHub:
    """The few routes of a Hub that fetching a data set needs."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.asked = files, []

    def __call__(self, request):
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        if path.startswith("/api/datasets/owner/name"):
            siblings = [{"rfilename": name, "size": len(body)} for name, body in self.files.items()]
            body = json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode()
            return send(request, 200, body, Content_Type="application/json")
        if path.startswith("/datasets/owner/name/resolve/"):
            body = self.files[path.split("/", 6)[6]]
            return send(request, 200, body, ETag=f'"{abs(hash(body)):040d}"', X_Repo_Commit=COMMIT)
        return send(request, 404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")


def test_a_data_set_arrives_once_without_what_is_not_needed(monkeypatch):
    hub = DataHub(FILES)
    with serving(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        got = found("hf:owner/name")
        assert [Path(path).name for path in got["train"]] == [
            "train-00000-of-00002.jsonl",
            "train-00001-of-00002.jsonl",
        ]
        assert [Path(path).name for path in got["valid"]] == ["validation.jsonl"]
        assert got["test"] == []
        assert Path(got["train"][0]).read_bytes() == TRAIN
        assert "datasets--owner--name" in got["train"][0]
        assert sorted(path.name for path in Path(got["train"][0]).parent.iterdir()) == sorted(list(FILES)[2:])
        hub.asked.clear()
        assert found("hf:owner/name") == got
        assert hub.asked == []
        assert "nothing is fetched offline" in found("hf:owner/name@v2", offline=True)["error"]
        assert "has no file that begins with other" in found("hf:owner/name:other")["error"]
        assert "neither a folder here nor a repository" in found("hf:owner/other")["error"]
    assert found("hf:owner/name", offline=True) == got  # the server is gone
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert "cannot be reached" in found("hf:owner/name@v2")["error"]


def chosen(*names: str, file: str | None = None) -> dict[str, list[str]]:
    return data_hub.choose(data_hub.HubData("o/n", file=file), names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.jsonl", "dev.jsonl", "test.jsonl"], {"train": 0, "valid": 1, "test": 2}),
        (["data/val/0000.jsonl", "data/train/0000.jsonl"], {"train": 1, "valid": 0}),
        (["chats.jsonl", "README.md"], {"train": 0}),
        (["chats_test.jsonl"], {"train": 0}),  # the only one there is
        (["train.jsonl", "a/test.jsonl", "b/test.jsonl"], {"train": 0}),  # which test is not guessed
        (["train.jsonl", "x/../../y.jsonl", "/etc/z.jsonl", "train.parquet"], {"train": 0}),
    ],
)
def test_files_and_splits(names, expected):
    assert chosen(*names) == {split: [names[i]] for split, i in expected.items()}


def test_different_data_is_not_mixed():
    names = ["data/train_gen-00000-of-00001.jsonl", *(f"data/train_sft-0000{i}-of-00002.jsonl" for i in range(2))]
    with pytest.raises(SourceError, match=r"pick one, as hf:o/n:data/train_gen-00000-of-00001.jsonl"):
        chosen(*names)
    assert chosen(*names, file="data/train_sft") == {"train": names[1:]}
    assert chosen("a.jsonl", "test.jsonl", file="test") == {"train": ["test.jsonl"]}


def test_what_a_repository_lacks_is_said(monkeypatch):
    with pytest.raises(SourceError, match=r"no file to train on.*\.jsonl.*\.parquet"):
        chosen("README.md", "data.csv")
    monkeypatch.setattr(data_hub, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="pip install pyarrow"):
        chosen("data/train-00000-of-00001.parquet")
    monkeypatch.setattr(data_hub, "find_spec", lambda name: "there")
    assert chosen("data/train-00000-of-00001-ab12.parquet") == {"train": ["data/train-00000-of-00001-ab12.parquet"]}


def test_names():
    assert data_hub.parse("hf:o/n") == data_hub.HubData("o/n")
    full = data_hub.parse("hf:o/n@v1.0:data/train")
    assert (full.revision, full.file, full.name) == ("v1.0", "data/train", "hf:o/n@v1.0:data/train")
    for name in ("hf:o", "hf:o/n:../x", "hf:o/--n", "hf:o/n@", "hf:/n"):
        with pytest.raises(SourceError, match="is not a data set's name"):
            data_hub.parse(name)
