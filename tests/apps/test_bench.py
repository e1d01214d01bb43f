"""`partita bench` beside a peer: turns, the check that both did the same work, what is refused, what is reported.

The peer is a script that answers as it is told: what a real one answers is tested where it is installed (`interop`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import partita
from partita.errors import DataError
from partita_apps import cli
from partita_apps.bench import children, models, ours
from partita_convert.gguf import shapes

from .mistakes import Mistake

TINY = shapes.Shape(1, 64, 2, 1, 32, 96, 400, tied=True, positions=512)
SMALL = ("--prompt", "8", "--tokens", "4", "--backend", "numpy", "--runs", "1")
GOOD = {
    "version": "fake 1",
    "prompt": 8,
    "tokens": [[1, 2, 3, 4]],
    "prefill": [2.0, 1.0],
    "decode": [1.5, 0.5],
    "peak": 2**21,
    "cpu": 3,
}
Peer = Callable[..., list[str]]


@pytest.fixture(scope="session")
def tiny_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    shapes.write_shape(TINY, path)
    return path


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    """peer(answer): options with a Python that is none and answers so, whatever program it is given."""

    def options(answer: object, status: int = 0) -> list[str]:
        python = tmp_path / "python"
        (tmp_path / "answer").write_text(answer if isinstance(answer, str) else json.dumps(answer))
        python.write_text(f"#!/bin/sh\ncat > {tmp_path}/task\ncat {tmp_path}/answer\necho a word >&2\nexit {status}\n")
        python.chmod(0o755)
        return ["--against", "llama.cpp", "--peer-python", str(python)]

    return options


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    status = cli.run(["bench", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


def test_what_is_reported(tiny_shape: Path, peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "decode", "--model", tiny_shape, *peer(GOOD), *SMALL)
    assert {"rows", "commit", "device", "versions"} <= found.keys()
    row, by_processor = found["rows"]
    assert {"name", "ours", "peer", "ratio", "unit"} <= row.keys()
    assert row["name"] == "decode after 8, numpy float32, 1 thread / llama.cpp"
    assert by_processor["name"] == f"{row['name']}, by processor time"
    assert (row["peer"], by_processor["peer"]) == (3 / 1.5, 3 / 0.5)
    assert row["ratio"] == row["ours"] / row["peer"]
    assert (row["tokens"], row["peer_version"]) == (4, "fake 1")
    task = json.loads((tmp_path / "task").read_text())
    assert task["rows"] == children.prompts(tiny_shape, 8)
    assert (task["tokens"], task["threads"], task["warm"], task["model"]) == (4, 1, 1, str(tiny_shape))


def test_prefill_of_several_lengths(tiny_shape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "p.png"
    short = ["--prompt", "4,8", "--backend", "numpy", "--runs", "1", "--plot", picture]
    found = document(capsys, "prefill", "--model", tiny_shape, *short)["rows"]
    assert [row["name"].split(",")[0] for row in found[::2]] == ["prefill of 4", "prefill of 8"]
    assert all(row["ours"] > 0 and row["peer"] is None for row in found)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_memory_beside_a_peer(tiny_shape: Path, peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    answer = peer({**GOOD, "tokens": [[0] * 16]})
    options = ["--tokens", "8", "--backend", "numpy", "--runs", "1"]
    (row,) = document(capsys, "memory", "--model", tiny_shape, *answer, *options)["rows"]
    assert (row["peer"], row["unit"]) == (2.0, "MiB")
    assert row["ours"] > 10


def test_startup_beside_a_peer(tiny_shape: Path, peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    answer = peer({**GOOD, "prompt": 16, "tokens": [[0] * 8]})
    found = document(capsys, "startup", "--model", tiny_shape, *answer, "--backend", "numpy", "--runs", "1")["rows"]
    assert [row["unit"] for row in found] == ["s", "s", "s", "s", "MiB"]
    assert [row["peer"] is None for row in found] == [True, True, False, False, False]
    assert 0 < found[2]["peer"] < found[2]["ours"]
    assert found[3]["peer"] == 3


def test_batch(tiny_shape: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "batch", "--model", tiny_shape, "--rows", "1,3", *SMALL)["rows"][::2]
    assert [row["rows"] for row in found] == [1, 3]
    assert found[0]["ratio"] == 1
    assert found[1]["ratio"] == found[1]["scaling"] == found[1]["ours"] / found[0]["ours"]


def test_cache_by_context(tiny_shape: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "p.png"
    options = ["--contexts", "16,48", "--kv", "16", "--ring", "k8v4", "--context", "64", "--runs", "1"]
    rows = document(capsys, "cache", "--model", tiny_shape, *options, "--backend", "numpy", "--plot", picture)["rows"]
    assert [row["name"].split(" / ")[0] for row in rows] == [
        "token at 16, kv 16",
        "token at 16, kv k8v4, ring of 64",
        "token at 48, kv 16",
        "token at 48, kv k8v4, ring of 64",
    ]
    assert all(row["ours"] > 0 and row["peer"] > 0 and row["unit"] == "ms" for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_both_are_measured_in_turns(tiny_shape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def measure(side: children.Side) -> dict[str, Any]:
        order.append(side.name)
        about = {"backend": "numpy", "dtype": "float32", "device": "cpu", "notes": []}
        return {**GOOD, **about, "decode": len(order), "tokens": [[1, 2, 9 if side.peer else 3, 4]]}

    monkeypatch.setattr(children.Side, "measure", measure)
    found = children.measured(
        tiny_shape,
        children.prompts(tiny_shape, 8),
        4,
        runs=2,
        cold=1,
        against="llama.cpp",
        peer_python=None,
        threads=None,
        dtype="auto",
        device=None,
        backend="numpy",
    )
    assert order == ["partita", "llama.cpp"] * 3
    assert found.medians("decode") == (4, 5)  # of 3 and 5, 4 and 6: the first pair does not count
    assert found.beside == {"same_tokens": 2, "tokens": 4, "peer_version": "fake 1"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({**GOOD, "tokens": [[1, 2, 3]]}, ["llama.cpp decoded 3 tokens", "4 were asked for"]),
        ({**GOOD, "prompt": 7}, ["llama.cpp consumed a prompt of 7 tokens", "8 were given"]),
        ({**GOOD, "tokens": []}, ["llama.cpp decoded 0 rows", "1 were given"]),
        ({"prompt": 8}, ["its answer is no measurement", "--peer-python"]),
        ("{no json", ["its answer is no measurement"]),
        ("", ["llama.cpp does not run in", "a word"]),
    ],
)
def test_a_peer_that_did_something_else(
    tiny_shape: Path, peer: Peer, capsys: pytest.CaptureFixture[str], answer: object, words: list[str]
) -> None:
    assert cli.run(["bench", "decode", "--model", str(tiny_shape), *peer(answer), *SMALL]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert all(word in said[0] for word in words), said


def test_a_peer_that_fails_says_why(tiny_shape: Path, peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    options = peer(GOOD, status=1)
    assert cli.run(["bench", "decode", "--model", str(tiny_shape), *options, *SMALL]) == 2
    said = capsys.readouterr().err.strip()
    assert said == f"partita: llama.cpp does not run in {options[-1]}: a word (see --peer-python)"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decode", "--model", "shape:2b"], ["unknown shape '2b'", "135m, 1b, 3b, 8b"]),
        (["decode", "--prompt", "many"], ["--prompt", "'many'"]),
        (["batch", "--rows", "1,0"], ["--rows", "'1,0'"]),
        (["cache", "--contexts", "1k,"], ["--contexts"]),
        (
            ["decode", "--model", "GGUF", "--against", "llama.cpp", "--peer-python", "./none"],
            ["./none", "No such file"],
        ),
        (["batch", "--model", "GGUF", "--against", "mlx-lm"], ["mlx-lm", "several rows"]),
        (["decode", "--model", "FOLDER", "--against", "llama.cpp"], ["reads GGUF files only"]),
        (["prefill", "--model", "GGUF", "--runs", "1", "--plot", "x.none"], ["x.none"]),
        (["decode", "--model", "GGUF", "--backend", "abacus"], ["abacus"]),
        (["memory", "--model", "GGUF", "--against", "llama.cpp", "--kv", "k8v4"], ["--kv", "ours alone"]),
    ],
)
def test_bad_input(
    mistake: Mistake, tiny_shape: Path, tiny_model: Path, arguments: list[str], words: list[str]
) -> None:
    named = {"GGUF": str(tiny_shape), "FOLDER": str(tiny_model)}
    backend = [] if "--backend" in arguments else ["--backend", "numpy"]
    mistake("bench", *(named.get(word, word) for word in arguments), *backend, words=words)


def test_a_shape_is_written_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARTITA_CACHE", str(tmp_path))
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    path = models.model_path("shape:tiny")
    assert tmp_path in path.parents
    before = path.stat()
    assert models.model_path("Shape:TINY") == path
    assert path.stat() == before
    with pytest.raises(DataError, match="unknown shape 'huge'"):
        models.model_path("shape:huge")


def test_ours_decodes_what_a_session_does(tiny_shape: Path) -> None:
    """Each row greedily, as alone."""
    model = partita.load(tiny_shape, backend="numpy")
    rows = children.prompts(tiny_shape, 8, 2)
    found = ours.once(model, rows, 5)
    assert found["prompt"] == 8
    for row, ids in zip(rows, found["tokens"], strict=True):
        expected: list[int] = []
        for _ in range(5):
            expected.append(int(np.argmax(partita.logits(model, [*row, *expected])[-1])))
        assert ids == expected
