"""Two processes that train together on one machine, as torchrun and mlx.launch start them, over the loopback."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .. import bounds
from .finetuning import MARK, column, environment, partita, rows, write_chats

LIMIT = 100  # seconds
BACKENDS = ("mlx", "torch")
FLAGS = ("--max-length", "96", "--rank", "4", "--learning-rate", "5e-3", "--schedule", "constant", "--dtype", "float32")
FEW = (*FLAGS, "--sample-tokens", "0", "--valid-fraction", "0.2", "--steps", "5", "--eval-every", "5")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 documents of three lengths, some held out: shares are unequal, and the last batch of an epoch is not full."""
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl", 25)


def free_ports(count: int) -> list[int]:
    """Ports that follow each other, free a moment ago; at random, as other workers of these tests look for some too."""
    for start in random.SystemRandom().sample(range(21_000, 32_000), 100):
        with ExitStack() as bound:
            try:
                for port in range(start, start + count):
                    bound.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return list(range(start, start + count))
    raise AssertionError("no free ports")


def launched(backend: str, *arguments: object) -> list[str]:
    """The command line of two processes."""
    port, python = free_ports(2)[0], [sys.executable, "-m"]
    finetune = [MARK, "finetune", *map(str, arguments), "--backend", backend]
    if backend == "torch":
        place = ("--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "-m")
        return [*python, "torch.distributed.run", *place, *finetune]
    launcher = str(Path(sys.executable).with_name("mlx.launch"))
    return [launcher, "--backend", "ring", "-n", "2", "-p", str(port), "--", *python, *finetune]


def members(backend: str, folder: Path) -> list[dict[str, str]]:
    """The environments of two processes without a launcher, as on two hosts."""
    ports, hosts = free_ports(2), folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    if backend == "mlx":
        return [{"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in (0, 1)]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0]), "WORLD_SIZE": "2"}
    return [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]


@contextmanager
def running(command: list[str], **added: str) -> Iterator[subprocess.Popen[str]]:
    """A process with those it starts, which all end with this context. Nobody types: at the end of its input mlx.launch
    would turn without a pause, and Ctrl-C would find it with a lock that it never gives back."""
    silent, typed = os.pipe()
    process = subprocess.Popen(
        command,
        env={**environment(), "PYTHONWARNINGS": "default", **added},
        stdin=silent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for end in (silent, typed):
            os.close(end)


def said(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=LIMIT)[0]


def run(command: list[str], status: int = 0) -> str:
    with running(command) as process:
        text = said(process)
    assert process.returncode == status, text
    return text


def run_both(backend: str, folder: Path, *arguments: object) -> str:
    """Two processes without a launcher, to their end: what the first says."""
    command = [sys.executable, "-m", MARK, "finetune", *map(str, arguments), "--backend", backend]
    first, second = members(backend, folder)
    with running(command, **first) as one, running(command, **second) as other:
        texts = [said(process) for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], texts
    return texts[0]


def reached(out: Path, step: int) -> Callable[[], bool]:
    def look() -> bool:
        return (out / "metrics.jsonl").is_file() and max([0, *(row["step"] for row in rows(out))]) >= step

    return look


def wait(until: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LIMIT
    while not until():
        assert process.poll() is None, said(process)
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_equal_one_with_twice_the_batch(
    tiny_model: Path, data: Path, tmp_path: Path, backend: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    text = run(launched(backend, tiny_model, data, "--out", two, "--batch-size", 2, *FEW))
    assert text.count("validation loss") == text.count("adapter:") + 2 == 3  # one of them speaks
    partita("finetune", tiny_model, data, "--out", one, "--batch-size", 4, *FEW, "--backend", backend)
    errors = dict.fromkeys(("train_loss", "valid_loss"), bounds.loss(tiny_model, trained=100))
    for name, error in {**errors, "grad_norm": bounds.gradients(tiny_model)}.items():
        assert column(rows(two), name) == [[step, pytest.approx(x, rel=error)] for step, x in column(rows(one), name)]
    for name in ("tokens", "trained_tokens"):
        assert column(rows(two), name) == column(rows(one), name)
    assert (two / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("backend", [pytest.param("mlx", marks=pytest.mark.slow), "torch"])
def test_ctrl_c_stops_both_and_both_go_on(tiny_model: Path, data: Path, tmp_path: Path, backend: str) -> None:
    """As a terminal sends it: to the launcher and both processes at once, at whatever steps they are."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = (tiny_model, data, "--batch-size", 2, *FLAGS, "--sample-tokens", 0, "--valid-fraction", 0.2)
    settings = (*settings, "--eval-every", 100_000, "--save-every", 100_000, "--dropout", 0.1, "--warmup", 0)
    with running(launched(backend, *settings, "--out", cut, "--steps", 100_000)) as process:
        wait(reached(cut, 3), process)
        os.killpg(process.pid, signal.SIGINT)
        text = said(process)
    stopped = max(row["step"] for row in rows(cut))
    if backend == "torch":  # mlx.launch passes nothing on any more
        assert f"stopped after step {stopped} of 100000" in text
    assert [path.name for path in (cut / "checkpoints").iterdir()] == [f"step-{stopped:08d}"]
    text = run_both(backend, tmp_path, "--resume", "--out", cut, "--steps", stopped + 3)
    assert f"going on after step {stopped} of {stopped + 3}" in text
    run_both(backend, tmp_path, *settings, "--out", whole, "--steps", stopped + 3)
    assert column(rows(cut), "train_loss") == column(rows(whole), "train_loss")


@pytest.mark.slow
def test_a_host_without_the_folder_and_another_number_of_processes_go_on(
    tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    """The first process sends its checkpoint; two rows in each of two processes are four in one."""
    whole, cut, nowhere = tmp_path / "whole", tmp_path / "cut", tmp_path / "nowhere"
    settings = (tiny_model, data, "--batch-size", 2, *FLAGS, "--sample-tokens", 0, "--valid-fraction", 0.2)
    settings = (*settings, "--eval-every", 100, "--warmup", 0)
    run_both("torch", tmp_path, *settings, "--out", cut, "--steps", 2)
    command = [sys.executable, "-m", MARK, "finetune", "--resume", "--steps", "4"]
    first, second = members("torch", tmp_path)
    with (
        running([*command, "--out", str(cut)], **first) as one,
        running([*command, *map(str, settings), "--backend", "torch", "--out", str(nowhere)], **second) as other,
    ):
        texts = [said(process) for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], texts
    assert not nowhere.exists()
    partita("finetune", "--resume", "--steps", 6, "--out", cut, "--batch-size", 4)
    run_both("torch", tmp_path, *settings, "--out", whole, "--steps", 6)
    expected = column(rows(whole), "train_loss")
    assert column(rows(cut), "train_loss")[:4] == expected[:4]
    error = bounds.loss(tiny_model, trained=100)
    assert column(rows(cut), "train_loss") == [[step, pytest.approx(x, rel=error)] for step, x in expected]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_that_is_gone_ends_the_other(tiny_model: Path, data: Path, tmp_path: Path, backend: str) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", MARK, "finetune", str(tiny_model), str(data), "--out", str(out), *FEW]
    command += ["--steps", "100000", "--eval-every", "100000"]
    first, second = members(backend, tmp_path)
    with running(command, **first) as one, running(command, **second) as other:
        wait(reached(out, 2), one)
        other.kill()
        text = said(one)
    assert one.returncode == 2, text
    assert "another process of this run has ended or cannot be reached" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("backend", BACKENDS)
def test_processes_with_different_settings_do_not_begin(
    tiny_model: Path, data: Path, tmp_path: Path, backend: str
) -> None:
    command = [sys.executable, "-m", MARK, "finetune", str(tiny_model), str(data), "--out", str(tmp_path / "out"), *FEW]
    first, second = members(backend, tmp_path)
    with running(command, **first) as one, running([*command, "--seed", "1"], **second) as other:
        texts = [said(process) for process in (one, other)]
    assert [one.returncode, other.returncode] == [2, 2], texts
    for text in texts:
        assert "process 1 of 2 was given other data or settings than the first" in text
        assert "Traceback" not in text


def test_a_backend_that_the_launcher_is_not_for_is_refused(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", MARK, "finetune", str(tiny_model), str(data), "--out", str(tmp_path / "out")]
    with running([*command, "--backend", "torch"], **members("mlx", tmp_path)[0]) as process:
        text = said(process)
    assert process.returncode == 2
    assert "were started together for backend mlx" in text
