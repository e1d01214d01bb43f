"""Conversions killed, stopped, or out of disk: nothing half, nothing lost; and the memory that they take."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from partita.checkpoint.open import open_checkpoint
from partita.model.families.parse import parse
from partita.quantization import Packed

from ..conftest import write_tokenizer

PARTITA = Path(sys.executable).with_name("partita")
"""As people start it. `python -m` ends itself by SIGINT, in place of 130, where Ctrl-C met a source text in `exec`."""
COMMANDS = {
    "mlx": ["--to", "mlx", "--quantize", "4", "--calibration", "none"],
    "huggingface": ["--to", "huggingface", "--dtype", "float16"],
    "gguf": ["--to", "gguf", "--quantize", "Q8_0"],
}
FORMS = tuple(COMMANDS)
NAMES = {"mlx": "out", "huggingface": "out", "gguf": "out.gguf"}
WIDTH, INNER, HEADS = 512, 2048, 8
MIB = 1 << 20


def random_model(path: Path, layers: int) -> Path:
    """A Llama of 4 million values a layer, 8 MB, in bfloat16."""
    path.mkdir()
    vocabulary = write_tokenizer(path)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "intermediate_size": INNER,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (path / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    once = rng.standard_normal((INNER, WIDTH)).astype(ml_dtypes.bfloat16)
    tensors = {"model.embed_tokens.weight": once[:vocabulary], "model.norm.weight": np.ones(WIDTH, np.float32)}
    for i in range(layers):
        prefix = f"model.layers.{i}"
        tensors |= {f"{prefix}.{name}.weight": np.ones(WIDTH, np.float32) for name in ("input_layernorm",)}
        tensors |= {f"{prefix}.post_attention_layernorm.weight": np.ones(WIDTH, np.float32)}
        tensors |= {f"{prefix}.self_attn.{name}_proj.weight": once[:WIDTH] for name in "qkvo"}
        tensors |= {f"{prefix}.mlp.{name}_proj.weight": once for name in ("gate", "up")}
        tensors |= {f"{prefix}.mlp.down_proj.weight": once.reshape(WIDTH, INNER)}
    save_file(tensors, path / "model.safetensors")
    return path


def hashes(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def start(source: Path, target: Path, form: str, **options) -> subprocess.Popen[str]:
    command = [str(PARTITA), "convert", str(source), str(target), "--json", *COMMANDS[form]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def begun(process: subprocess.Popen[str], target: Path) -> float:
    """When the first file appeared beside the target's place; at the latest when the process ended."""
    while process.poll() is None and not list(target.parent.glob(f".{target.name}.partial-*")):
        time.sleep(0.001)
    return time.monotonic()


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def whole(path: Path) -> None:
    """The model opens, parses, and every tensor is there and finite."""
    checkpoint = open_checkpoint(path)
    assert parse(checkpoint.config).num_layers >= 1
    for name in checkpoint.names():
        value = checkpoint.read(name)
        part = value.scales if isinstance(value, Packed) else value
        assert np.isfinite(part.astype(np.float32)).all()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("faults") / "source", 3)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, str], float]]:
    """Of each form: the hashes of an undisturbed run's files, and how long its writing took."""
    found = {}
    for form in FORMS:
        target = tmp_path_factory.mktemp("undisturbed") / NAMES[form]
        process = start(source, target, form)
        at = begun(process, target)
        assert finished(process)[0] == 0
        found[form] = hashes(target), time.monotonic() - at
        whole(target)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_second_run_writes_the_same_bytes(source: Path, expected, tmp_path: Path, form: str) -> None:
    process = start(source, tmp_path / NAMES[form], form)
    assert finished(process)[0] == 0
    assert hashes(tmp_path / NAMES[form]) == expected[form][0]


@pytest.mark.parametrize(("form", "moment"), [(form, i) for i in range(4) for form in FORMS])
def test_killed_at_any_moment(source: Path, expected, tmp_path: Path, form: str, moment: int) -> None:
    """Twelve kills, one in each quarter of each form's run: no half model; a later run succeeds and sweeps up."""
    before, target = hashes(source), tmp_path / NAMES[form]
    files, duration = expected[form]
    process = start(source, target, form)
    at = begun(process, target)
    when = duration * (moment + random.Random(f"{form} {moment}").random()) / 4
    time.sleep(max(0.0, at + when - time.monotonic()))
    process.kill()
    code, _ = finished(process)
    assert code in (-signal.SIGKILL, 0)
    assert hashes(source) == before
    if target.exists():
        assert hashes(target) == files
        whole(target)
        return
    assert finished(start(source, target, form))[0] == 0
    assert hashes(target) == files
    assert [entry.name for entry in tmp_path.iterdir()] == [target.name]
    assert hashes(source) == before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0, MIB])
def test_stopped_with_ctrl_c(source: Path, tmp_path: Path, form: str, size: int) -> None:
    """As soon as there is a temporary folder, and with a megabyte in it."""
    process = while_writing(source, tmp_path, form, size)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    code, err = finished(process)
    assert code == 130, err
    assert list(tmp_path.iterdir()) == []


def while_writing(source: Path, folder: Path, form: str, size: int) -> subprocess.Popen[str]:
    """A conversion that is held (SIGSTOP) when it has written so many bytes or more, and before it is whole."""
    target = folder / NAMES[form]
    for _ in range(20):
        process = start(source, target, form)
        begun(process, target)
        while process.poll() is None and written(folder) < size:
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if state is not None and state.si_code == os.CLD_STOPPED and not target.exists():
            return process
        process.send_signal(signal.SIGCONT)  # it was over too soon
        finished(process)
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    raise AssertionError("no conversion was held in time")


def written(folder: Path) -> int:
    """Bytes of everything in a folder whose files may vanish meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.path.getsize(os.path.join(place, name))
    return total


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0001, 0.3, 0.95])
def test_a_disk_that_fills(source: Path, expected, tmp_path: Path, form: str, share: float) -> None:
    """A limit on the size of files ends writes with an error of the system's, as a full disk does."""
    whole_size = {"mlx": 7, "huggingface": 25, "gguf": 13}[form] * MIB
    bound = int(whole_size * share)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bound, bound))

    process = start(source, tmp_path / NAMES[form], form, preexec_fn=limit)
    code, err = finished(process)
    assert code == 2, err
    assert re.search(r"/out(\.gguf)? cannot be written: File too large: free some space, [^\n]*\n$", err), err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_to_one_place(source: Path, expected, tmp_path: Path) -> None:
    """One of them wins; the other is told, and disturbs nothing."""
    both = [start(source, tmp_path / "out", "huggingface") for _ in range(2)]
    ends = sorted(finished(process) for process in both)
    assert [code for code, _ in ends] == [0, 2]
    assert "exists already" in ends[1][1] or "another process" in ends[1][1]
    assert hashes(tmp_path / "out") == expected["huggingface"][0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """sized(layers): a model of 8 MB a layer, made once."""
    root = tmp_path_factory.mktemp("sizes")
    return lambda layers: (
        root / f"{layers}" if (root / f"{layers}").exists() else random_model(root / f"{layers}", layers)
    )


@pytest.mark.parametrize(("form", "layers"), [("mlx", 8), ("huggingface", 40), ("gguf", 40)])
def test_memory_does_not_grow_with_the_model(
    sized: Callable[[int], Path], tmp_path: Path, form: str, layers: int
) -> None:
    """Anonymous memory, which the system cannot take back, stays far below the model's 320 MB (64 where integers are
    searched for, which takes longer): it is some times the largest tensor, 2 MB here and 4 MB as float32, and what the
    compiler of the search takes, 40 MB."""
    small, large = (peak(sized(n), tmp_path / f"{n}-{NAMES[form]}", form) for n in (2, layers))
    assert large < 128 * MIB, f"{large / MIB:.0f} MiB"
    assert large - small < 16 * MIB, f"{small / MIB:.0f} MiB for 16 MB, {large / MIB:.0f} MiB for {8 * layers} MB"


def peak(source: Path, target: Path, form: str) -> int:
    """The most anonymous memory that writing took beyond what the process had when it began, in bytes."""
    process = start(source, target, form)
    begun(process, target)
    status, first, most = Path(f"/proc/{process.pid}/status"), None, 0
    while process.poll() is None:
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                now = int(line.split()[1]) << 10
                first = now if first is None else first
                most = max(most, now - first)
        time.sleep(0.002)
    assert finished(process)[0] == 0
    print(f"{form}: {most / MIB:.1f} MiB of anonymous memory for {source.name} layers")
    return most
