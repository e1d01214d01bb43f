"""Every mistake with `partita finetune`, and with adapters, ends in one line that says what, where and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from partita_apps import cli

from .finetuning import write_chats

Mistake = Callable[..., str]


@pytest.fixture
def mistake(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Mistake:
    """mistake(*options) trains the tiny model on data.jsonl, insists on how it ends, and returns its line.

    In this process, so that libraries are loaded once; `test_bad_input.py` starts the command itself.
    """
    write_chats(tmp_path / "data.jsonl", 6)
    monkeypatch.chdir(tmp_path)

    def run(*options: object, words: Sequence[str] = (), arguments: Sequence[object] | None = None) -> str:
        given = ("finetune", tiny_model, "data.jsonl", "--out", "out") if arguments is None else arguments
        capsys.readouterr()
        status = cli.run([str(argument) for argument in (*given, *options)])
        said = capsys.readouterr()
        assert status == 2, said.err
        assert said.out == ""
        lines = said.err.splitlines()
        assert len(lines) == 1, said.err
        assert lines[0].startswith("partita: ")
        for word in words:
            assert word in lines[0], lines[0]
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "magic"], ["--method 'magic'", "lora, dora, full"]),
        (["--schedule", "zigzag"], ["--schedule 'zigzag'", "cosine, linear, constant"]),
        (["--steps", "0"], ["--steps must be >= 1"]),
        (["--steps", "many"], ["'many'", "partita finetune --help"]),
        (["--steps", "5", "--epochs", "1"], ["--steps and --epochs exclude each other"]),
        (["--epochs", "-1"], ["--epochs must be > 0"]),
        (["--batch-size", "0"], ["--batch-size must be >= 1"]),
        (["--accumulate", "0"], ["--accumulate must be >= 1"]),
        (["--eval-every", "0"], ["--eval-every must be >= 1"]),
        (["--save-every", "0"], ["--save-every must be >= 1"]),
        (["--patience", "0"], ["--patience must be >= 1"]),
        (["--clip", "-1"], ["--clip must be >= 0"]),
        (["--seed", "-1"], ["--seed must be >= 0"]),
        (["--warmup", "-1"], ["--warmup must be >= 0"]),
        (["--max-length", "1"], ["--max-length must be >= 2"]),
        (["--accumulate", 10**10], ["--accumulate must be <= 1000000000"]),
        (["--eval-batches", 10**30], ["--eval-batches must be <= 1000000000"]),
        (["--rank", "9" * 4000], ["--rank must be <= 1000000000"]),
        (["--steps", "9" * 5000], ["--steps", "not a valid integer"]),
        (["--seed", 2**63], ["--seed must be <= 9223372036854775807"]),
        (["--rslora", "--method", "full"], ["--rslora", "leave one of them out"]),
        (["--layers", "8", "--method", "full"], ["--layers is for adapters", "leave one of them out"]),
        (["--alpha", "1", "--method", "full"], ["--alpha is for adapters"]),
        (["--from-scratch", "x.json"], ["--from-scratch", "add --method full"]),
        (["--template-var", "thinking"], ["'thinking' is not NAME=VALUE", "enable_thinking=false"]),
        (["--template-var", "a=1", "--template-var", "a=2"], ["--template-var a given twice"]),
        (["--resume"], ["--resume: out holds no run", "leave --resume out"]),
        (["--config", "none.yaml"], ["none.yaml cannot be read"]),
        (["--gradient-magic"], ["--gradient-magic", "partita finetune --help"]),
    ],
)
def test_settings_are_judged_before_anything_is_loaded(
    mistake: Mistake, tmp_path: Path, options: list[object], words: list[str]
) -> None:
    missing = ("finetune", "no-such-model", "data.jsonl", "--out", "out")  # would be told if it were looked for
    mistake(*options, arguments=missing, words=words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rank", "0"], ["--rank must be >= 1"]),
        (["--rank", 10**9], ["training needs", "gradients and moments", "a lower --rank"]),
        (["--accumulate", 10**9, "--max-length", 64], ["training needs", "batches", "--accumulate"]),
        (["--targets", "x_proj"], ["--targets 'x_proj'", "q_proj"]),
        (["--layers", "9"], ["--layers must be <= 2"]),
        (["--max-length", "9999"], ["--max-length 9999 is beyond the 512 tokens"]),
        (["--valid-fraction", "1"], ["--valid-fraction must be"]),
        (["--learning-rate", "0"], ["--learning-rate must be > 0"]),
        (["--warmup", "9", "--steps", "5"], ["--warmup must be from 0 to the 5 steps"]),
        (["--patience", "2", "--valid-fraction", "0"], ["--patience", "there is none", "leave it out"]),
        (["--backend", "numpy"], ["numpy", "torch or mlx"]),
    ],
)
def test_settings_that_the_model_or_the_data_refuse(mistake: Mistake, options: list[object], words: list[str]) -> None:
    more = [] if "--backend" in options else ["--backend", "torch"]
    mistake(*options, *more, words=words)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_chats(tmp_path / "data.jsonl", 6)
    wild = ("--learning-rate", "1e30", "--clip", 0, "--warmup", 0, "--steps", 5, "--valid-fraction", 0)
    arguments = ("finetune", tiny_model, data, "--out", tmp_path / "out", *wild, "--backend", "torch", "--json")
    assert cli.run([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    last = said.err.splitlines()[-1]
    assert re.match(
        r"partita: step 2.*(loss|norm).* (nan|inf) .*nothing was updated; try a lower --learning-rate", last
    )
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_what_data_hold_that_is_not_read_is_reported_and_does_not_stop_a_run(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "<|im_start|>user\nthe fox<|im_end|>\n", "source": "a book"}) + "\n")
    short = ("--steps", 1, "--valid-fraction", 0, "--sample", "<|im_end|>", "--sample-tokens", 1, "--backend", "torch")

    def run(out: str, *more: str) -> tuple[list[str], str]:
        arguments = ("finetune", tiny_model, data, "--out", tmp_path / out, *short, "--json", *more)
        assert cli.run([str(argument) for argument in arguments]) == 0
        said = capsys.readouterr()
        notes = json.loads(said.out)["data_notes"]
        assert all(f"  {note}\n" in said.err for note in notes)
        return notes, (tmp_path / out / "report.md").read_text()

    notes, report = run("letters")
    assert notes[0] == 'nothing reads "source" (data.jsonl line 1)'
    assert "<|im_start|> in data.jsonl line 1: --control-tokens reads them as tokens" in notes[1]
    assert "\n".join(notes) in report
    assert run("tokens", "--control-tokens")[0] == notes[:1]


def test_a_run_that_meets_no_number_leaves_the_adapter_of_an_earlier_step(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from partita.training.optim import update

    def spoilt(*arguments: Any) -> None:
        update(*arguments)
        if arguments[3].updates == 4:
            arguments[1].update({name: x * float("inf") for name, x in arguments[1].items()})

    monkeypatch.setattr("partita.training.trainer.update", spoilt)
    data, out = write_chats(tmp_path / "data.jsonl", 6), tmp_path / "out"
    short = ("--steps", 9, "--save-every", 2, "--eval-every", 9, "--sample-tokens", 0, "--backend", "torch")
    assert cli.run([str(argument) for argument in ("finetune", tiny_model, data, "--out", out, *short)]) == 2
    assert capsys.readouterr().err.endswith(f"; the adapter of step 2 is in {out}\n")
    assert all(np.isfinite(x).all() for x in load_file(out / "adapter_model.safetensors").values())


def test_arguments_that_are_missing(mistake: Mistake, tiny_model: Path) -> None:
    mistake(arguments=("finetune",), words=("--out DIR is missing",))
    mistake(arguments=("finetune", "--out", "x"), words=("there is no MODEL", "partita finetune MODEL DATA --out DIR"))
    mistake(arguments=("finetune", tiny_model, "--out", "x"), words=("there is no DATA",))
    mistake(arguments=("finetune", tiny_model, "nothing.jsonl", "--out", "x"), words=("nothing.jsonl does not exist",))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ["data.jsonl line 3", "not JSON", "at character 2"]),
        ("[]", ["data.jsonl line 3", "a list where an object should be"]),
        ('{"txet": "a"}', ["data.jsonl line 3", "none of the known forms", "txet"]),
        ('{"messages": [{"role": "user", "content": "a"}]}', ["data.jsonl line 3", "nothing to train on"]),
    ],
)
def test_a_bad_line(mistake: Mistake, tmp_path: Path, line: str, words: list[str]) -> None:
    lines = (tmp_path / "data.jsonl").read_text().splitlines()
    (tmp_path / "data.jsonl").write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    mistake("--backend", "torch", words=words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: many", ["run.yaml", "steps: expected an integer, got 'many'"]),
        ("stops: 4", ["run.yaml", "unknown setting 'stops'; expected one of", "steps"]),
        ("packing: 3", ["run.yaml", "packing: expected true or false, got 3"]),
        ("steps: 2.5", ["run.yaml", "steps: expected an integer, got 2.5"]),
        ("steps: [1", ["run.yaml: cannot read YAML"]),
        ("just words", ["run.yaml must hold lines of `name: value`"]),
        ("max-length: 4\nmax_length: 5", ["run.yaml", "max_length given twice"]),
        ("rank: 1\nsteps: 4\nrank: 2", ["run.yaml line 3: rank given twice"]),
        ("rank: .inf", ["run.yaml", "rank: expected an integer, got inf"]),
        ("rank: .nan", ["run.yaml", "rank: expected an integer, got nan"]),
        ("rank: 2001-99-99", ["run.yaml", "rank: expected an integer, got '2001-99-99'"]),
        ("alpha: 2001-09-09", ["run.yaml", "alpha: expected a number, got '2001-09-09'"]),
        ("rank: " + "9" * 5000, ["run.yaml line 1: a number that cannot be read"]),
        ("alpha: " + "9" * 4000, ["run.yaml", "alpha: expected a number"]),
        ("rank: 0x_", ["run.yaml", "a number that cannot be read"]),
        ('rank: !!int "_"', ["run.yaml line 1: a tag (!)"]),
        ("out: !!python/object/apply:os.system [id]", ["run.yaml", "a tag (!)"]),
        ("sample: !!set {a, b}", ["run.yaml", "a tag (!)"]),
        ("a: &a [x, x]\nsample: [*a, *a]", ["run.yaml line 2: a reference (*)"]),
        ("x: &x {rank: 2}\n<<: *x", ["run.yaml", "a reference (*)"]),
        ("<<: {rank: 2}", ["run.yaml", "unknown setting '<<'"]),
        ("? [a]\n: 1", ["run.yaml", "a key that is not a name"]),
        ("sample: " + "[" * 30_000, ["run.yaml", "nested too deeply"]),
        ("# " + "x" * 70_000, ["run.yaml is too long"]),
        ("out: \x1b[31m", ["run.yaml: cannot read YAML", "#x001b"]),
        ("steps: 1\n---\nsteps: 2", ["run.yaml: cannot read YAML"]),
        ("sample: 7", ["run.yaml", "sample: expected text or a list"]),
    ],
)
def test_a_bad_file_of_settings(tmp_path: Path, text: str, words: list[str]) -> None:
    from partita.errors import DataError
    from partita_apps.finetune.settings import read_config

    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(DataError) as caught:
        read_config(tmp_path / "run.yaml")
    for word in words:
        assert word in str(caught.value)


def test_a_setting_of_a_file_is_named_by_its_key(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("batch-size: 0\nrank: 2\nmethod: full")
    mistake(
        "--config", "run.yaml", "--batch-size", 1, words=["run.yaml: rank is for adapters, and method full has none"]
    )
    (tmp_path / "run.yaml").write_text("batch_size: 0")
    mistake("--config", "run.yaml", words=["run.yaml: batch-size must be >= 1, got 0"])
    mistake("--config", "run.yaml", "--batch-size", -1, words=["partita: --batch-size must be >= 1, got -1"])


def test_a_shape_that_cannot_be(mistake: Mistake, tmp_path: Path) -> None:
    scratch = ("--method", "full", "--from-scratch", "shape.json", "--backend", "torch")
    mistake(*scratch, words=("shape.json: cannot be read",))
    (tmp_path / "shape.json").write_text("[1]")
    mistake(*scratch, words=("shape.json: not a JSON object", "config.json"))
    (tmp_path / "shape.json").write_text('{"model_type": "llama", "vocab_size": 5}')
    mistake(*scratch, words=("vocab_size 5 is less than the",))


def test_a_folder_that_cannot_be_made_is_refused_first(
    mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    ask = ("finetune", "no-such-model", "data.jsonl", "--out")  # would be told if it were looked for
    mistake(arguments=(*ask, "file/a/b"), words=("file/a/b cannot be made", "file is a file", "another --out"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    words = ("a/b cannot be made", f"nothing may be written to {tmp_path}:", "another --out")
    mistake(arguments=(*ask, "a/b"), words=words)


def test_resuming_with_other_settings_or_data(tiny_model: Path, tmp_path: Path, mistake: Mistake) -> None:
    short = ("--steps", 2, "--backend", "torch", "--sample-tokens", 0)
    arguments = ("finetune", tiny_model, "data.jsonl", "--out", "out", *short)
    assert cli.run([str(argument) for argument in arguments]) == 0
    again = ("finetune", "--resume", "--out", "out")
    mistake("--learning-rate", "1", arguments=again, words=("cannot be resumed", "learning rate", "another --out"))
    mistake("--rank", "3", arguments=again, words=("cannot be resumed", "rank was 16"))
    mistake("--steps", "3", arguments=again, words=("cannot be resumed", "steps was 2 when it began and is 3 now"))
    mistake("--dtype", "bfloat16", arguments=again, words=("--dtype was float32 when it began and is bfloat16 now",))
    mistake("--seed", "1", arguments=again, words=("--seed was 0 when it began and is 1 now",))
    write_chats(tmp_path / "data.jsonl", 7)
    mistake(arguments=again, words=("the data's fingerprint was", "resume with the same data"))
    (tmp_path / "out" / "run.json").write_text("{")
    mistake(arguments=again, words=("run.json is damaged",))


def test_adapters_that_do_not_fit(tiny_model: Path, tmp_path: Path, mistake: Mistake) -> None:
    from safetensors.numpy import save_file

    ask = ("chat", tiny_model, "-p", "hi", "--backend", "numpy", "-n", 2, "--adapter")
    mistake(arguments=(*ask, "nowhere"), words=("nowhere: there is no adapter_config.json",))
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    mistake(arguments=(*ask, folder), words=("there is no adapter_model.safetensors",))

    def write(module: str, out: int, size: int, fill: float = 0.1) -> None:
        name = f"base_model.model.{module}"
        a, b = np.full((2, size), fill, np.float32), np.full((out, 2), fill, np.float32)
        save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, folder / "adapter_model.safetensors")

    write("model.layers.9.self_attn.q_proj", 128, 64)
    mistake(arguments=(*ask, folder), words=("layers.9", "does not have", "made for another model"))
    write("model.layers.0.self_attn.q_proj", 128, 32)
    mistake(arguments=(*ask, folder), words=("q_proj is (128, 64) in this model and (128, 32) in the adapter",))
    write("model.layers.0.self_attn.q_proj", 128, 64, float("nan"))
    mistake(arguments=(*ask, folder), words=("not finite",))
    (tmp_path / "text.txt").write_text("the fox")
    evaluate = ("eval", tiny_model, "text.txt", "--backend", "numpy", "--adapter", "nowhere")
    mistake(arguments=evaluate, words=("nowhere: there is no adapter_config.json",))
