"""`partita finetune` as a person uses it: what it leaves in its folder, what it says, and what the result does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from .. import bounds
from .finetuning import QUICK, column, partita, rows, train, write_chats


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl")


@pytest.fixture(scope="module")
def run(tiny_model: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run of adapters: its folder and its document."""
    out = tmp_path_factory.mktemp("run") / "out"
    found = train(tiny_model, chats, "--out", out, "--steps", 16, "--sample", "the fox", "--sample-tokens", 8, *QUICK)
    return out, found


def test_the_document(run: tuple[Path, dict]) -> None:
    out, found = run
    assert found["steps"] == 16
    assert [step for step, _ in found["train_loss"]] == list(range(1, 17))
    steps = [step for step, _ in found["valid_loss"]]
    assert (steps[0], steps[-1]) == (0, 16)
    assert found["valid_loss"][-1][1] < 0.5 * found["valid_loss"][0][1]
    assert found["tokens_per_second"] > 0
    assert found["peak_bytes"] > found["weights_bytes"] > 0
    assert found["adapter"] == str(out)
    assert found["model"] is None
    assert found["test_loss"] is None
    assert 0 < found["trained_parameters"] < found["parameters"]


def test_the_folder(run: tuple[Path, dict], tiny_model: Path) -> None:
    out, found = run
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("adapter_config.json", "adapter_model.safetensors", "checkpoints", "loss.png", "metrics.jsonl"),
        *("report.md", "run.json"),
    }
    assert column(rows(out), "train_loss") == found["train_loss"]
    assert column(rows(out), "valid_loss") == found["valid_loss"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    report = (out / "report.md").read_text()
    for words in (
        "![Loss by step](loss.png)",
        "the fox",
        "*before*",
        "*after*",
        "--adapter",
        "held out",
        str(tiny_model),
    ):
        assert words in report
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert checkpoint.name == "step-00000016"
    assert (out / "adapter_model.safetensors").stat().st_mode & 0o044


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # between peft and transformers
def test_peft_loads_the_adapter_and_finds_the_same_loss(run: tuple[Path, dict], tiny_model: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from partita.language_model import load

    out, _ = run
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(out))
    ours = load(tiny_model, backend="numpy", adapter=out)
    ids = ours.encode("the fox number 3")
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0, -1].numpy()
    session = ours.session(kv="32", prefixes=None)
    logits = ours.decoder(ours.ops, ours.ops.array(np.asarray([ids], np.int32)), session.cache)
    bounds.assert_near(ours.ops.to_numpy(logits)[0], expected, bounds.logits(tiny_model))


def test_a_folder_that_holds_a_run_is_left_alone(run: tuple[Path, dict], tiny_model: Path, chats: Path) -> None:
    out, _ = run
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = partita("finetune", tiny_model, chats, "--out", out, *QUICK, status=2)
    assert "holds a run already: add --resume" in done.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_finished_run_can_be_resumed_and_says_the_same(run: tuple[Path, dict]) -> None:
    """Nothing is left to train; what was lost of the results comes again."""
    out, found = run
    adapter = (out / "adapter_model.safetensors").read_bytes()
    (out / "adapter_model.safetensors").unlink()
    again = train("--resume", "--out", out)
    assert again["train_loss"] == found["train_loss"]
    assert again["valid_loss"] == found["valid_loss"]
    assert (out / "adapter_model.safetensors").read_bytes() == adapter
    report = (out / "report.md").read_text()
    assert report.count("*before*") == report.count("*after*") == 1


def test_replies_stand_under_their_own_prompts(run: tuple[Path, dict], tmp_path: Path) -> None:
    """Another prompt, when the untrained model cannot be asked any more; what would act on a terminal is shown."""
    out = shutil.copytree(run[0], tmp_path / "out")
    train("--resume", "--out", out, "--sample", "the dog\x1b]0;title\x07 \u202e")
    report = (out / "report.md").read_text()
    assert r"the dog\x1b]0;title\x07 \u202e" in report
    assert "*before*" not in report
    settings = (out / "run.json").read_text()
    assert json.loads(settings)["settings"]["sample"] == ["the dog\x1b]0;title\x07 \u202e"]
    for text in (report, settings):
        assert text.replace("\n", "").isprintable()


def test_settings_from_a_file_and_flags_that_win(tiny_model: Path, chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "run.yaml").write_text(
        f"model: {tiny_model}\ndata: {chats}\nout: {out}\nmethod: dora\nrank: 2\nsteps: 3\nlearning-rate: 1e-3\n"
        "targets: [q_proj, v_proj]\nlayers: 1\npacking: false\nvalid_fraction: 0\nsample_tokens: 0\nbackend: torch\n"
        "schedule: constant\n"
    )
    found = train("--config", tmp_path / "run.yaml", "--rank", 3)
    assert found["steps"] == 3
    assert found["valid_loss"] == []
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 3
    assert config["lora_alpha"] == 6
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["layers_to_transform"] == [1]
    assert config["use_dora"]
    assert column(rows(out), "learning_rate")[0] == [1, 1e-3]


def test_a_model_from_nothing_learns_a_text_and_recites_it(tiny_model: Path, tmp_path: Path) -> None:
    text = "The fog comes on small feet, looks over the harbour and moves on. A lamp is lit in the mill."
    (tmp_path / "poem.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(4)))
    shape = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (tmp_path / "shape.json").write_text(json.dumps(shape))
    settings = ("--method", "full", "--from-scratch", tmp_path / "shape.json", "--learning-rate", "5e-3")
    more = ("--steps", 120, "--valid-fraction", 0, "--no-packing", "--backend", "torch", "--out", tmp_path / "out")
    found = train(tiny_model, tmp_path / "poem.jsonl", *settings, *more)
    assert found["adapter"] is None
    assert found["trained_parameters"] == found["parameters"]
    assert abs(found["train_loss"][0][1] - math.log(300)) < 0.5
    assert found["train_loss"][-1][1] < 0.1
    said = partita("chat", found["model"], "--raw", "-p", "The fog", "-n", 90, "--backend", "numpy").stdout
    assert f"The fog{said}".startswith(text)


@pytest.fixture(scope="module")
def impatient(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run with patience that is trained on one text and held against another: at first both become more likely, and
    once the first is known, the second less so. Its folder and its document."""
    data = tmp_path_factory.mktemp("apart")
    write_chats(data / "train.jsonl")
    for name in ("valid", "test"):
        write_chats(data / f"{name}.jsonl", 5, "0123456789 ABCDEFGHIJ ")
    often = ("--steps", 50, "--eval-every", 1, "--patience", 2, "--warmup", 0, "--schedule", "constant")
    return data / "out", train(tiny_model, data, "--out", data / "out", *often, "--sample-tokens", 0, *QUICK)


def test_patience_ends_a_run_and_keeps_the_best(impatient: tuple[Path, dict]) -> None:
    _, found = impatient
    assert found["ended"] == "patience"
    losses = [loss for _, loss in found["valid_loss"]]
    best = losses.index(min(losses))
    assert found["steps"] == best + 2 < 50
    assert found["best_step"] == best


def test_without_matplotlib_there_is_a_line(tiny_model: Path, chats: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'matplotlib' else find(name, *more)\n"
        "from partita_apps.cli import main; main(sys.argv[1:])"
    )
    arguments = ("finetune", tiny_model, chats, "--out", tmp_path / "out", "--steps", 2, "--sample-tokens", 0, *QUICK)
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'partita[plot]'" in done.stderr
    assert not (tmp_path / "out" / "loss.png").exists()
    assert "loss.png" not in (tmp_path / "out" / "report.md").read_text()
    assert "validation loss" in done.stdout
    assert f"--adapter {tmp_path / 'out'}" in done.stdout


def test_on_a_cpu_the_base_is_not_rounded(
    run: tuple[Path, dict], tiny_model: Path, chats: Path, tmp_path: Path
) -> None:
    out, found = run
    assert found["dtype"] == json.loads((out / "run.json").read_text())["settings"]["dtype"] == "float32"
    assert "torch on cpu, float32" in (out / "report.md").read_text()
    few = (tiny_model, chats, "--steps", 1, "--sample-tokens", 0, *QUICK)
    for name, same in (("auto", True), ("float32", True), ("bfloat16", False)):
        loss = train(*few, "--out", tmp_path / name, "--dtype", name)["valid_loss"][0][1]
        assert (loss == found["valid_loss"][0][1]) is same, name


def test_a_test_set_is_measured_once_with_the_result(impatient: tuple[Path, dict]) -> None:
    """The same records as for validation: the loss of the values that are kept, which are not the last ones."""
    out, found = impatient
    losses = [loss for _, loss in found["valid_loss"]]
    assert found["test_loss"] == min(losses) < losses[-1]
    assert f"measured once with the result: {found['test_loss']:.4f}." in (out / "report.md").read_text()
