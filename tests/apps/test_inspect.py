"""`partita inspect`: what is told of files and folders of every form, whole, foreign and damaged; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import partita
from partita_apps.cli import run

from .. import gguf_models
from ..chat_forms import FORMS

Inspect = Callable[..., str]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Inspect:
    """inspect(*arguments) is what the command prints; it must end well."""

    def inspect(*arguments: object) -> str:
        capsys.readouterr()  # what fixtures said
        status = run(["inspect", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (status, err) == (0, "")
        return out

    return inspect


@pytest.fixture
def document(inspect: Inspect) -> Callable[[Path], dict[str, Any]]:
    return lambda path: json.loads(inspect(path, "--json"))


def test_a_folder(tiny_model: Path, inspect: Inspect) -> None:
    out = inspect(tiny_model)
    nbytes = (tiny_model / "model.safetensors").stat().st_size / 1e3
    assert out.splitlines()[0] == f"{tiny_model}: folder, 1 file, {nbytes:.0f} kB"
    for words in (
        "partita can load it",
        "llama",
        "303 tokens, 3 special; stops at <|endoftext|>, <|im_end|>",
        "takes no tools",
    ):
        assert words in out
    assert "embed_tokens" not in out


def test_every_tensor(tiny_model: Path, inspect: Inspect) -> None:
    tensors = load_file(tiny_model / "model.safetensors")
    rows = {line.split()[0]: line for line in inspect(tiny_model, "--tensors").splitlines() if line.strip()}
    for name, value in tensors.items():
        assert " × ".join(map(str, value.shape)) in rows[name]


@pytest.mark.parametrize("name", ["llama", "gemma4-experts", "qwen3_5_moe", "gpt_oss", "lfm2"])
def test_a_document_of_a_folder(
    name: str, tiny_family: Callable[[str], Path], document: Callable[[Path], dict[str, Any]]
) -> None:
    folder = tiny_family(name)
    found, stored = document(folder), load_file(folder / "model.safetensors")
    assert found["refused"] == []
    assert found["form"] == "folder"
    assert {row["name"]: row["shape"] for row in found["tensors"]} == {key: [*x.shape] for key, x in stored.items()}
    assert sum(row["bytes"] for row in found["tensors"]) == sum(value.nbytes for value in stored.values())
    config = json.loads((folder / "config.json").read_text())
    assert found["architecture"] == config["model_type"]
    assert found["model"]["layers"] == config["num_hidden_layers"]
    assert found["metadata"]["hidden_size"] == config["hidden_size"] == found["model"]["hidden_size"]
    assert bool(found["model"]["experts"]) == (name in ("gemma4-experts", "qwen3_5_moe", "gpt_oss"))
    assert found["model"]["recurrent_layers"] == (3 if name == "qwen3_5_moe" else 0)
    assert found["model"]["convolution_layers"] == (2 if name == "lfm2" else 0)


def test_what_a_scheme_keeps_beside_a_weight_is_counted_with_it(
    tiny_model: Path, tmp_path: Path, document: Callable[[Path], dict[str, Any]]
) -> None:
    partita.convert(tiny_model, tmp_path / "out", quantize="4:32", calibration="none")
    found, stored = document(tmp_path / "out"), load_file(tmp_path / "out" / "model.safetensors")
    types = {row["type"]: row for row in found["types"]}
    assert {"4-bit:32", "6-bit:32", "F32"} == set(types)
    assert types["4-bit:32"]["bits"] == pytest.approx(4 + 32 / 32)
    assert sum(row["bytes"] for row in found["types"]) == sum(value.nbytes for value in stored.values())


@pytest.mark.parametrize("name", ["gemma4-experts", "qwen3_5_moe-tiled"])
def test_a_file(name: str, tmp_path: Path, document: Callable[[Path], dict[str, Any]], inspect: Inspect) -> None:
    partita.convert(gguf_models.write(name, tmp_path), tmp_path / "m.gguf", quantize="Q8_0", calibration="none")
    found, reader = document(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    assert found["refused"] == []
    assert found["architecture"] == found["metadata"]["general.architecture"]
    assert {(row["name"], row["type"], row["bytes"]) for row in found["tensors"]} == {
        (tensor.name, tensor.tensor_type.name, int(tensor.n_bytes)) for tensor in reader.tensors
    }
    assert found["metadata"]["tokenizer.ggml.tokens"] == "303 values"
    assert "tokenizer.ggml.tokens = 303 values" in inspect(tmp_path / "m.gguf")


def test_a_file_of_an_architecture_that_is_not_known(
    tmp_path: Path, document: Callable[[Path], dict[str, Any]], inspect: Inspect
) -> None:
    """What is in it is told all the same."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.ones((8, 256), np.float16))
    writer.add_tensor("blk.0.weight", np.zeros((2, 66), np.uint8), raw_dtype=gguf.GGMLQuantizationType.IQ2_XXS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = document(tmp_path / "m.gguf")
    (line,) = found["refused"]
    assert line.startswith("m.gguf: GGUF architecture 'mamba' is not implemented; these are: cohere2, ")
    assert found["model"] is found["tokenizer"] is None
    assert [row["type"] for row in found["types"]] == ["F16", "IQ2_XXS"]
    assert "refused        m.gguf: GGUF architecture 'mamba'" in inspect(tmp_path / "m.gguf")


def test_everything_that_would_be_refused(
    tiny_family: Callable[[str], Path], tmp_path: Path, document: Callable[[Path], dict[str, Any]]
) -> None:
    folder = shutil.copytree(tiny_family("llama"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{")
    found = document(folder)
    assert len(found["refused"]) == 2
    assert "there is no tensor 'model.layers.1.mlp.up_proj.weight'" in found["refused"][0]
    assert "tokenizer.json" in found["refused"][1]
    assert found["model"]["layers"] == 4
    (folder / "config.json").write_text("[]")
    found = document(folder)
    assert found["model"] is None
    assert len(found["tensors"]) == len(tensors)
    assert "config.json" in found["refused"][0]


def test_a_folder_whose_weights_were_cut_off(
    tiny_model: Path, tmp_path: Path, document: Callable[[Path], dict[str, Any]]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "m")
    (file := folder / "model.safetensors").write_bytes(file.read_bytes()[:-100])
    found = document(folder)
    assert (found["files"], found["bytes"], found["tensors"]) == (1, file.stat().st_size, [])
    assert "it was cut off" in found["refused"][0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("imatrix", "an importance matrix, not a model; partita convert SOURCE DEST --imatrix FILE reads it"),
        ("adapter", "a LoRA adapter in GGUF, which is not read"),
        ("mmproj", "the projector of a vision or audio model"),
    ],
)
def test_a_file_that_holds_no_language_model(
    kind: str, words: str, tmp_path: Path, inspect: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its contents are shown, and every command says what it is."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_type(kind)
    writer.add_tensor("one", np.ones((8, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert f"refused        m.gguf: {words}" in inspect(tmp_path / "m.gguf").replace("`", "")
    assert run(["chat", str(tmp_path / "m.gguf"), "-p", "hi"]) == 2
    assert words in capsys.readouterr().err


def test_a_quantization_that_is_not_read(
    tiny_model: Path, tmp_path: Path, document: Callable[[Path], dict[str, Any]]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "exl9"}}))
    found = document(folder)
    assert found["refused"] == ["config.json: weights quantized with 'exl9' are not read"]
    assert found["types"][0]["type"] == "F32"


def test_what_a_template_takes_and_how_replies_begin(
    tiny_model: Path, tmp_path: Path, document: Callable[[Path], dict[str, Any]]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "m")
    (folder / "chat_template.jinja").write_text(FORMS["coder"].template + "{# tools #}")
    template = document(folder)["template"]
    assert template["tools"]
    assert template["calls"] == "<tool_call>"


def test_an_adapter_and_a_file_of_tensors(
    tiny_model: Path, tmp_path: Path, document: Callable[[Path], dict[str, Any]], inspect: Inspect
) -> None:
    (data := tmp_path / "d.jsonl").write_text('{"text": "the quick brown fox"}\n' * 8)
    partita.finetune(tiny_model, data, out=tmp_path / "run", steps=1, rank=4, backend="torch")
    folder = next(path.parent for path in (tmp_path / "run").rglob("adapter_config.json"))
    found = document(folder)
    assert found["adapter"]["rank"] == 4
    assert found["refused"] == []
    assert sum(row["bytes"] for row in found["tensors"]) > 0
    assert "rank 4" in inspect(folder)
    alone = document(tiny_model / "model.safetensors")
    assert alone["form"] == "safetensors"
    assert len(alone["refused"]) == 1
    assert "name the folder that holds it" in alone["refused"][0]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "m.gguf does not exist"), (b"GGUF", "m.gguf"), (b"hello", "m.gguf")]
)
def test_what_is_no_model(
    content: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "m.gguf").write_bytes(content)
    assert run(["inspect", str(tmp_path / "m.gguf")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err


def test_nothing_is_read_of_a_weight(tiny_model: Path, inspect: Inspect, monkeypatch: pytest.MonkeyPatch) -> None:
    from partita.files.safetensors import SafetensorsSet

    def read(self: SafetensorsSet, name: str) -> np.ndarray:
        raise AssertionError(name)

    monkeypatch.setattr(SafetensorsSet, "read", read)
    assert "partita can load it" in inspect(tiny_model)
