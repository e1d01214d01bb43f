"""`partita convert` as a person types it: what is written, shown and said, and how every mistake ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from partita.checkpoint.open import open_checkpoint
from partita.quantization import Packed
from partita_apps.cli import run

from ..conftest import write_config, write_tokenizer, write_weights
from ..convert.test_write_folder import gguf_file

TEXT = "the quick brown fox jumps over the lazy dog and then the other fox thinks that this is the end " * 4
Convert = Callable[..., str]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (path := tmp_path / "text.txt").write_text(TEXT)
    return path


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Convert:
    """convert(*arguments) is what the command prints; it must end well."""

    def convert(*arguments: object, backend: bool = True) -> str:
        status = run(["convert", *map(str, arguments), *(["--backend", "numpy"] if backend else [])])
        out, err = capsys.readouterr()
        assert status == 0, err
        convert.said = err
        return out

    return convert


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Convert:
    """mistake(*arguments) is the one line on standard error."""

    def mistake(*arguments: object) -> str:
        assert run(["convert", *map(str, arguments), "--backend", "numpy"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("partita: ")
        assert err.count("\n") == 1, err
        return err

    return mistake


def test_four_bits(tiny_model: Path, tmp_path: Path, text: Path, convert: Convert) -> None:
    out = convert(tiny_model, tmp_path / "out", "--quantize", "4", "--check", text)
    assert all(word in out for word in ("down_proj", "4-bit:64", "6-bit:64", "bits a weight", "largest error", "KL"))
    again = open_checkpoint(tmp_path / "out")
    assert isinstance(again.read("model.layers.0.self_attn.q_proj.weight"), Packed)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "partita convert --to mlx --quantize 4" in card
    assert str(tmp_path) not in card
    assert convert.said == ""


def test_a_file_of_others_is_judged_beside_the_result(
    tiny_model: Path, tmp_path: Path, text: Path, convert: Convert, mistake: Convert
) -> None:
    """A file that is as the result loses as much; a rounder one more."""
    theirs = tmp_path / "theirs.gguf"
    convert(tiny_model, theirs, "--quantize", "Q4_0")
    out = convert(tiny_model, tmp_path / "a", "--quantize", "8", "--check", text, "--against", theirs)
    lines = [line for line in out.splitlines() if "perplexity" in line]
    assert len(lines) == 2
    assert lines[1].startswith(f"{theirs}, ")
    arguments = ("--quantize", "Q4_0", "--check", text, "--against", theirs, "--json")
    found = json.loads(convert(tiny_model, tmp_path / "b.gguf", *arguments))
    against = dict(found["against"])
    assert against.pop("path") == str(theirs)
    assert against.pop("bytes") == found["bytes"] == theirs.stat().st_size
    assert against == found["check"]
    plain = tmp_path / "c"
    assert "--against needs the text of --check" in mistake(tiny_model, plain, "--against", theirs)
    assert "nowhere.gguf does not exist" in mistake(
        tiny_model, plain, "--check", text, "--against", tmp_path / "nowhere.gguf"
    )
    assert not plain.exists()


def test_a_file_of_another_model_is_not_judged(tiny_model: Path, tmp_path: Path, text: Path, mistake: Convert) -> None:
    (other := tmp_path / "other").mkdir()
    rows = write_tokenizer(other, size=280)
    write_config(other, rows)
    write_weights(other, rows)
    said = mistake(tiny_model, tmp_path / "a", "--check", text, "--against", other)
    assert f"--against: other has {rows} tokens and {tiny_model.name} {rows + 20}: give a file of the same" in said
    assert not (tmp_path / "a").exists()


def test_json_is_one_document(tiny_model: Path, tmp_path: Path, text: Path, convert: Convert) -> None:
    document = json.loads(convert(tiny_model, tmp_path / "out", "--quantize", "mixed_3_6", "--check", text, "--json"))
    assert document["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert 3 < document["bits_per_weight"] < 8
    assert {"name", "source", "target", "error"} <= set(document["tensors"][0])
    assert document["recipe"] == "mixed_3_6"
    assert document["calibration"] == "partita's own"
    check = document["check"]
    assert check["kl"] > 0
    assert check["perplexity"] != check["source_perplexity"]
    assert 50 < check["tokens"] <= 2048


def test_measured_bits_on_its_own_text_and_on_ours(
    tiny_model: Path, tmp_path: Path, text: Path, convert: Convert
) -> None:
    own = json.loads(convert(tiny_model, tmp_path / "own", "--quantize", "measured:5", "--json"))
    assert "measured on a text that the model writes itself" in convert.said
    ours = json.loads(
        convert(tiny_model, tmp_path / "ours", "--quantize", "measured:5", "--calibration", text, "--json")
    )
    assert convert.said == ""
    assert ours["calibration"] == "text.txt"
    assert max(own["bits_per_weight"], ours["bits_per_weight"]) <= 5.01
    assert "--calibration text.txt" in (tmp_path / "ours" / "README.md").read_text()


def test_as_stored(tiny_model: Path, tmp_path: Path, convert: Convert) -> None:
    out = convert(tiny_model, tmp_path / "mlx", backend=False)
    assert "exact" in out
    assert "largest error" not in out
    convert(tmp_path / "mlx", tmp_path / "hf", "--to", "huggingface", backend=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_names_that_look_like_markup(tiny_model: Path, tmp_path: Path, convert: Convert) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "in")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.[/red].weight"] = np.ones((2, 32), np.float32)
    save_file(weights, folder / "model.safetensors")
    out = convert(folder, tmp_path / "[bold]out", "--dtype", "float16")
    assert "[/red]" in out
    assert "[bold]out" in out.replace("\n", "")


def test_a_gguf_file_is_known_by_its_name(tiny_model: Path, tmp_path: Path, convert: Convert) -> None:
    document = json.loads(convert(tiny_model, tmp_path / "m.gguf", "--quantize", "8", "--json"))
    assert {row["target"] for row in document["tensors"]} == {"Q8_0", "F32"}
    assert open_checkpoint(tmp_path / "m.gguf").stored_as("lm_head.weight") == "Q8_0"


@pytest.mark.parametrize(
    "options",
    [
        ["--quantize", "4"],
        ["--quantize", "NVFP4"],
        ["--to", "huggingface"],
        ["--to", "compressed-tensors", "--quantize", "4:32"],
    ],
)
def test_sizes_are_those_of_the_file(
    tiny_model: Path, tmp_path: Path, convert: Convert, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """What the command reports of each tensor, and what `inspect` finds in the file."""
    document = json.loads(convert(tiny_model, tmp_path / "out", *options, "--calibration", "none", "--json"))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    sizes = {row["name"]: row["bytes"] for row in document["tensors"]}
    assert sum(sizes.values()) == sum(value.nbytes for value in stored.values())
    assert run(["inspect", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["bytes"] for row in found["tensors"]} == sizes


def test_without_a_run_of_the_model(tiny_model: Path, tmp_path: Path, convert: Convert) -> None:
    document = json.loads(convert(tiny_model, tmp_path / "a", "--quantize", "4", "--calibration", "none", "--json"))
    assert document["calibration"] is None
    convert(tiny_model, tmp_path / "b", "--quantize", "4")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(before[name], after[name])


def test_a_model_that_cannot_be_run_is_rounded_all_the_same(tmp_path: Path, tiny_model: Path, convert: Convert) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    convert(folder, tmp_path / "out", "--quantize", "4")
    assert "rounded without a text to weigh errors by: model_type 'unheard_of'" in convert.said


def test_a_gguf_files_integers_are_kept(tmp_path: Path, convert: Convert) -> None:
    source = gguf_file(tmp_path / "m.gguf")
    document = json.loads(convert(source, tmp_path / "out", "--json", backend=False))
    assert all(row["error"] == 0 for row in document["tensors"])
    assert {row["target"] for row in document["tensors"]} == {"8-bit:32", "4-bit:32", "5-bit:32", "float32"}


# --- mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--quantize", "four"], ["--quantize 'four'", "BITS[:GROUP]", "measured:BPW"]),
        (["--quantize", "4:48"], ["--quantize '4:48'", "one of 32, 64, 128"]),
        (["--quantize", "measured:1"], ["measured:4.5"]),
        (["--quantize", "measured:"], ["bits a weight must be from 2 to 10", "got ''"]),
        (["--quantize", "4", "--imatrix", "m.gguf"], ["--imatrix is only for a GGUF file", "--to gguf"]),
        (["--quantize", "Q4_1"], ["is a GGUF type", "--to gguf"]),
        (["--to", "huggingface", "--quantize", "4"], ["--quantize", "dense weights only"]),
        (["--to", ""], ["--to ''", "mlx, huggingface, gguf"]),
        (["--to", "onnx"], ["--to 'onnx'", "mlx, huggingface, gguf"]),
        (["--to", "gguf"], ["ends in .gguf"]),
        (["--dtype", "int8"], ["--dtype 'int8'", "bfloat16"]),
        (["--exact", "--to", "huggingface"], ["--exact"]),
        (["--calibration", "none", "--quantize", "measured:4"], ["--calibration none", "measures on a text"]),
        (["--calibration", "text.txt"], ["--calibration", "leave it out"]),
        (["--quantize", "4", "--calibration", "nowhere.txt"], ["nowhere.txt", "No such file"]),
        (["--check", "nowhere.txt"], ["nowhere.txt", "No such file"]),
        (["--adapter", "nowhere"], ["nowhere", "adapter_config.json"]),
        (["--adapter-loss", "keep"], ["--adapter-loss keep", "no --adapter"]),
        (["--adapter-loss", "weep"], ["--adapter-loss", "'weep'"]),
    ],
)
def test_options_that_make_no_sense(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Convert, options: list, words: list
) -> None:
    monkeypatch.chdir(tmp_path)
    line = mistake(tiny_model, "out", *options)
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be(tiny_model: Path, tmp_path: Path, mistake: Convert) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "in")
    assert "in exists already" in mistake(folder, folder)
    assert "lies inside" in mistake(folder, folder / "out")
    (tmp_path / "file").write_text("mine")
    assert "file exists already" in mistake(folder, tmp_path / "file")
    for place in (tmp_path / "file" / "out", tmp_path / "file" / "below" / "out"):
        assert f"out cannot be written: {tmp_path / 'file'} is not a folder" in mistake(folder, place)
    assert (tmp_path / "file").read_text() == "mine"
    assert "nowhere" in mistake(tmp_path / "nowhere", tmp_path / "out")


def test_options_are_judged_before_the_source_is_looked_for(tmp_path: Path, mistake: Convert) -> None:
    assert "--quantize 'x'" in mistake("hf:nobody/nothing", tmp_path / "out", "--quantize", "x")
    (tmp_path / "file").touch()
    assert "is not a folder" in mistake("hf:nobody/nothing", tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backend", "abacus"], "unknown --backend 'abacus'"),
        (["--device", "abacus"], "no device 'abacus'"),
        (["--threads", "0"], "--threads must be >= 1"),
    ],
)
def test_a_backend_that_does_not_exist_is_refused_where_none_is_needed(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert run(["convert", str(tiny_model), str(tmp_path / "out"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_budget_that_is_too_small(tiny_model: Path, tmp_path: Path, text: Path, mistake: Convert) -> None:
    line = mistake(tiny_model, tmp_path / "out", "--quantize", "measured:2", "--calibration", text)
    assert "this model needs 2.64 bits a weight at least: allow more" in line


@pytest.mark.parametrize("options", [["4"], ["4", "--calibration", "none"], ["measured:5", "--calibration"]])
def test_weights_that_are_not_finite_are_named(
    tiny_model: Path, tmp_path: Path, text: Path, mistake: Convert, options: list[str]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "in")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    save_file(weights, folder / "model.safetensors")
    more = [*options, text] if options[-1] == "--calibration" else options
    line = mistake(folder, tmp_path / "out", "--quantize", *more)
    assert "model.layers.1.mlp.up_proj.weight holds NaN or infinity" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "text.txt"]


def test_a_text_that_is_too_short(tiny_model: Path, tmp_path: Path, mistake: Convert) -> None:
    (empty := tmp_path / "empty.txt").write_text("")
    assert "the calibration text is empty" in mistake(
        tiny_model, tmp_path / "a", "--quantize", "4", "--calibration", empty
    )
    assert not (tmp_path / "a").exists()
    assert "too short" in mistake(tiny_model, tmp_path / "b", "--check", empty)
    assert not (tmp_path / "b").exists()


def test_a_check_that_cannot_be_made_is_refused_before_anything_is_written(
    tiny_model: Path, tmp_path: Path, text: Path, mistake: Convert
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "in")
    assert "no device 'abacus'" in mistake(folder, tmp_path / "a", "--check", text, "--device", "abacus")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in mistake(folder, tmp_path / "a", "--check", text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "text.txt"]


# --- adapters


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A PEFT folder that changes the queries of both layers."""
    rng = np.random.default_rng(5)
    size = load_file(tiny_model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].shape
    tensors = {}
    for i in range(2):
        module = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        tensors[f"{module}.lora_A.weight"] = rng.standard_normal((2, size[1]), np.float32) * 0.1
        tensors[f"{module}.lora_B.weight"] = rng.standard_normal((size[0], 2), np.float32) * 0.1
    (folder := tmp_path / "adapter").mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return folder


def test_a_fused_adapter(tiny_model: Path, tmp_path: Path, adapter: Path, text: Path, convert: Convert) -> None:
    out = convert(tiny_model, tmp_path / "out", "--adapter", adapter, "--quantize", "6", "--check", text)
    assert "of the adapter's change in every weight" in out
    document = json.loads(convert(tiny_model, tmp_path / "again", "--adapter", adapter, "--quantize", "6", "--json"))
    rows = [row for row in document["tensors"] if "retained" in row]
    assert [row["name"] for row in rows] == [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
    assert document["retained"] == min(row["retained"] for row in rows) > 0.9


def test_more_bits_for_an_adapter_are_explained_by_options(
    tiny_model: Path, tmp_path: Path, adapter: Path, convert: Convert
) -> None:
    out = " ".join(convert(tiny_model, tmp_path / "out", "--adapter", adapter, "--quantize", "2").split())
    assert "2 of 2 weights that the adapter changes have more bits" in out
    assert "to stay small, --adapter-loss keep takes that loss" in out


def test_a_check_of_an_adapter_of_stacked_experts(
    tiny_family: Callable[[str], Path], tmp_path: Path, text: Path, convert: Convert
) -> None:
    """Whose names are those of the folder that is written, and not the source's."""
    module, rng = "model.layers.0.mlp.switch_mlp.gate_proj", np.random.default_rng(5)
    tensors = {
        f"{module}.lora_a": rng.standard_normal((8, 2, 64), np.float32) * 0.1,
        f"{module}.lora_b": rng.standard_normal((8, 32, 2), np.float32) * 0.1,
    }
    (folder := tmp_path / "adapter").mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    arguments = (tiny_family("qwen3_moe"), tmp_path / "out", "--adapter", folder, "--check", text, "--json")
    document = json.loads(convert(*arguments))
    assert document["retained"] == pytest.approx(1, abs=1e-3)
    assert document["check"]["kl"] < 1e-6


def test_an_adapter_in_the_other_layout(tmp_path: Path, adapter: Path, convert: Convert, mistake: Convert) -> None:
    document = json.loads(convert(adapter, tmp_path / "out", "--to", "mlx", "--json", backend=False))
    assert {"bytes", "bits_per_weight", "tensors"} <= set(document)
    assert [row["error"] for row in document["tensors"]] == [0, 0]
    assert (tmp_path / "out" / "adapters.safetensors").is_file()
    for options in (["--quantize", "4"], ["--exact"], ["--calibration", "none"]):
        assert "is an adapter, which is copied as it is" in mistake(adapter, tmp_path / "b", *options)
    assert "--to huggingface writes PEFT's layout" in mistake(adapter, tmp_path / "b.gguf")
    assert "lies inside" in mistake(adapter, adapter / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out"]
