"""Damaged and unsupported model files end in one line on standard error that names the file, and status 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .mistakes import Mistake, ask, write_gguf

SUPPORTED = ("gemma3", "llama")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder to spoil."""
    return shutil.copytree(tiny_model, tmp_path / "folder")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.05, 0.5, 0.99])
def test_a_truncated_gguf(mistake: Mistake, model: Path, tmp_path: Path, part: float) -> None:
    body = model.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(body[: int(len(body) * part)])
    line = mistake(*ask("cut.gguf"), words=["cut.gguf"])
    assert any(what in line for what in ("empty", "not a GGUF file", "damaged", "cut off")), line


def damaged(body: bytes, at: int, new: bytes) -> bytes:
    return body[:at] + new + body[at + len(new) :]


@pytest.mark.parametrize(
    ("at", "new", "words"),
    [
        (0, b"GGML", ["not a GGUF file"]),
        (4, b"\x63", ["GGUF version 99"]),
        (4, b"\x00\x00\x00\x03", ["big-endian"]),
        (8, b"\xff" * 8, ["do not fit", "fetch it again"]),
        (16, b"\xff" * 8, ["do not fit", "fetch it again"]),
        (24, b"\xff" * 8, ["a metadata key", "fetch it again"]),
        (32, b"\xff", ["not UTF-8", "fetch it again"]),
        (24 + 8 + len("general.architecture"), b"\x63", ["value type 99", "fetch it again"]),
    ],
)
def test_a_corrupted_gguf_header(mistake: Mistake, model: Path, tmp_path: Path, at: int, new: bytes, words) -> None:
    (tmp_path / "bad.gguf").write_bytes(damaged(model.read_bytes(), at, new))
    mistake(*ask("bad.gguf"), words=["bad.gguf", *words])


def test_a_corrupted_gguf_vocabulary(mistake: Mistake, model: Path, tmp_path: Path) -> None:
    body = model.read_bytes()
    for key in (b"tokenizer.ggml.merges", b"tokenizer.ggml.tokens"):
        (tmp_path / "bad.gguf").write_bytes(body.replace(key, key[:-1] + b"?"))
        mistake(*ask("bad.gguf"), words=["bad.gguf", "tokenizer.ggml."])


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_truncated_safetensors(mistake: Mistake, folder: Path, part: float) -> None:
    file = folder / "model.safetensors"
    body = file.read_bytes()
    file.write_bytes(body[: int(len(body) * part)])
    line = mistake(*ask(folder), words=["model.safetensors"])
    assert any(what in line for what in ("empty", "damaged", "cut off")), line


@pytest.mark.parametrize(
    ("at", "new", "words"),
    [
        (0, b"\xff" * 8, ["header", "damaged"]),
        (8, b"x", ["header", "not JSON"]),
        (30, b"\xff\xfe", ["header", "not JSON"]),
    ],
)
def test_corrupted_safetensors(mistake: Mistake, folder: Path, at: int, new: bytes, words: list[str]) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(damaged(file.read_bytes(), at, new))
    mistake(*ask(folder), words=["model.safetensors", *words])


def test_safetensors_that_contradict_themselves(mistake: Mistake, folder: Path) -> None:
    file = folder / "model.safetensors"
    body = file.read_bytes()
    file.write_bytes(body.replace(b'"F32"', b'"F99"', 1))
    mistake(*ask(folder), words=["model.safetensors", "unknown dtype 'F99'"])
    file.write_bytes(body.replace(b'"F32"', b'"F16"', 1))
    mistake(*ask(folder), words=["model.safetensors", "bytes"])
    file.write_bytes(body.replace(b"model.norm.weight", b"model.norm.weighs", 1))
    mistake(*ask(folder), words=["model.norm.weight"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", ["there is no config.json"]),
        ("model.safetensors", ["no model.safetensors"]),
        ("tokenizer.json", ["no tokenizer.json and no tokenizer.model"]),
    ],
)
def test_a_folder_that_lacks_a_file(mistake: Mistake, folder: Path, name: str, words: list[str]) -> None:
    (folder / name).unlink()
    mistake(*ask(folder), words=[str(folder), *words])


def test_a_run_that_trained_all_weights_is_no_model_but_has_one(mistake: Mistake, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    folder.rename(run / "model")
    mistake(*ask(run), words=["there is no config.json", f"give the model of this run, {run / 'model'}"])


def test_damaged_settings(mistake: Mistake, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / name).write_text('{"half": ')
        mistake(*ask(folder), words=[name, "JSON"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "martian"}, ["'martian' is not supported", "llama"]),
        ({"model_type": None}, ["None is not supported"]),
        ({"hidden_size": "wide"}, ["hidden_size must be an integer"]),
        ({"hidden_size": 72}, ["the config says"]),
        ({"rope_theta": None}, ["rope_theta is missing"]),
        ({"rope_scaling": {"rope_type": "spiral"}}, ["rope_type 'spiral' is not supported"]),
        ({"hidden_act": "relu6"}, ["hidden_act 'relu6' is not supported"]),
        ({"auto_map": {"AutoModel": "x.X"}}, ["'auto_map'", "never done"]),
        ({"quantization_config": {"quant_method": "quanto"}}, ["'quanto'", "not read"]),
    ],
)
def test_a_config_that_is_not_supported(mistake: Mistake, folder: Path, change: dict, words: list[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    mistake(*ask(folder), words=words)


def test_an_unknown_gguf_architecture(mistake: Mistake, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "martian.gguf", architecture="martian")
    mistake(*ask(path), words=["'martian' is not implemented", *SUPPORTED])
