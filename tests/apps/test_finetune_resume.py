"""Runs that are stopped, killed or run out of disk, and what becomes of them. Everything in processes of their own."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pexpect
import pytest

from .. import bounds
from .finetuning import QUICK, column, command, environment, partita, rows, train, write_chats

# Newer Pythons warn of fork in a process that has threads; the child here does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

STEPS = 60
DROPOUT = ("--dropout", 0.1, "--steps", STEPS, "--save-every", 5, "--eval-every", 8, "--sample-tokens", 0)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chats(tmp_path_factory.mktemp("data") / "chats.jsonl")


@pytest.fixture(scope="module")
def whole(tiny_model: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The run as it is when nothing happens to it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, train(tiny_model, chats, "--out", out, *DROPOUT, *QUICK)


def lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(out: Path, count: int, *arguments: object) -> int:
    """Start a run, kill it when metrics.jsonl has so many lines; the number of lines it then had."""
    child = subprocess.Popen(
        command("finetune", *arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while lines(out) < count and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    child.kill()
    assert child.wait() == -signal.SIGKILL, "it ended before it could be killed"
    return lines(out)


def check_equal(out: Path, found: dict, whole: tuple[Path, dict]) -> None:
    """Losses bit for bit, no step reported twice, and the same adapter."""
    assert found["train_loss"] == whole[1]["train_loss"]
    assert found["valid_loss"] == whole[1]["valid_loss"]
    assert column(rows(out), "train_loss") == whole[1]["train_loss"]
    assert column(rows(out), "valid_loss") == whole[1]["valid_loss"]
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.mark.parametrize(
    "moment", ["start", "random", *(pytest.param(f"random-{i}", marks=pytest.mark.slow) for i in range(10))]
)
def test_killed_and_resumed_is_uninterrupted(
    tiny_model: Path, chats: Path, tmp_path: Path, whole: tuple[Path, dict], moment: str
) -> None:
    out = tmp_path / "out"
    count = 1 if moment == "start" else int(np.random.default_rng().integers(1, STEPS))
    print(f"killed after {count} lines")  # another moment in every run: shown if this fails
    reported = kill_at(out, count, tiny_model, chats, "--out", out, *DROPOUT, *QUICK)
    assert reported < STEPS + STEPS // 8 + 2
    found = train("--resume", "--out", out)
    check_equal(out, found, whole)


def test_killed_twice_and_half_a_line_left(
    tiny_model: Path, chats: Path, tmp_path: Path, whole: tuple[Path, dict]
) -> None:
    out = tmp_path / "out"
    kill_at(out, 14, tiny_model, chats, "--out", out, *DROPOUT, *QUICK)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "train_lo')
    kill_at(out, 30, "--resume", "--out", out)
    check_equal(out, train("--resume", "--out", out), whole)


def test_ctrl_c_saves_and_says_how_to_go_on(
    tiny_model: Path, chats: Path, tmp_path: Path, whole: tuple[Path, dict]
) -> None:
    out = tmp_path / "a run"
    program, *arguments = command("finetune", tiny_model, chats, "--out", out, *DROPOUT, *QUICK)
    child = pexpect.spawn(
        program, arguments, env={**environment(), "TERM": "xterm"}, encoding="utf-8", timeout=60, dimensions=(24, 160)
    )
    child.expect(r"step 8: validation loss \d")
    child.sendintr()
    child.expect("finishing this step and saving")
    child.expect(r"stopped after step (\d+) of 60; to go on: partita ([^\r\n]*)")
    step, again = int(child.match[1]), child.match[2]
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert 8 <= step < STEPS
    assert (out / "checkpoints" / f"step-{step:08d}").is_dir()
    report = (out / "report.md").read_text()
    assert f"Stopped by hand after {step} of 60 steps" in report
    assert f"partita {again}" in report
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "adapter_config.json").exists()
    found = json.loads(partita(*shlex.split(again), "--json").stdout)
    assert "Trained for 60 steps" in (out / "report.md").read_text()
    check_equal(out, found, whole)


def test_a_long_step_shows_how_far_it_is_on_a_terminal(tiny_model: Path, chats: Path, tmp_path: Path) -> None:
    program, *arguments = command("finetune", tiny_model, chats, "--out", tmp_path / "out", *QUICK, "--steps", 9)
    arguments += ["--accumulate", "3000", "--valid-fraction", "0", "--sample-tokens", "0"]
    child = pexpect.spawn(
        program, arguments, env={**environment(), "TERM": "xterm"}, encoding="utf-8", timeout=60, dimensions=(24, 160)
    )
    child.expect(r"0/9\x1b.* batch (\d+)/3000, \d+ s")
    first = int(child.match[1])
    child.expect(r" batch (\d+)/3000, \d+ s")
    assert int(child.match[1]) >= first > 1
    child.sendintr()
    child.expect("finishing this step and saving")
    child.sendintr()  # this step would take minutes
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_are_the_same(tiny_model: Path, chats: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    endless = ("--steps", 1_000_000, "--sample-tokens", 0, "--eval-every", 1_000_000)
    started = command("finetune", tiny_model, chats, "--out", out, *endless, *QUICK)
    child = subprocess.Popen(started, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while lines(out) < 3 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(number)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert stdout == ""
    step = int(re.search(r"stopped after step (\d+) of 1000000", stderr)[1])  # pyright: ignore[reportOptionalSubscript]
    assert step == column(rows(out), "train_loss")[-1][0]
    assert (out / "adapter_config.json").exists()


def test_a_terminal_that_is_gone_is_no_reason_to_lose_steps(tiny_model: Path, chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    endless = ("--steps", 1_000_000, "--sample-tokens", 0, "--eval-every", 1_000_000)
    program, *arguments = command("finetune", tiny_model, chats, "--out", out, *endless, *QUICK)
    child = pexpect.spawn(program, arguments, env={**environment(), "TERM": "xterm"}, dimensions=(24, 160), timeout=60)
    child.expect("tokens/s")
    os.close(child.child_fd)  # as when a window is closed
    _, status = os.waitpid(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    step = column(rows(out), "train_loss")[-1][0]
    assert (out / "checkpoints" / f"step-{step:08d}").is_dir()
    assert f"Stopped by hand after {step:,} of" in (out / "report.md").read_text()


def test_a_run_that_is_deaf_to_hangups_stays_so() -> None:
    program = (
        "import signal, os\n"
        "from partita_apps.finetune.interrupts import stopping\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with stopping(lambda: print('first', flush=True), lambda: None):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "print('done')\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"done\n"


@pytest.mark.parametrize("numbers", ["TERM HUP", "HUP TERM", "HUP HUP"])
def test_a_hangup_and_what_comes_with_it_are_one_signal(numbers: str) -> None:
    program = (
        "import signal, sys, time\n"
        "from partita_apps.finetune.interrupts import stopping\n"
        "def say(text): print(text, flush=True)\n"
        "with stopping(lambda: say('first'), lambda: say('second')):\n"
        "    for name in sys.argv[1:]:\n"
        "        signal.raise_signal(signal.Signals['SIG' + name])\n"
        "    time.sleep(0.3)\n"
        "print('done')\n"
    )
    line = [sys.executable, "-c", program, *numbers.split()]
    assert subprocess.run(line, capture_output=True, check=True, text=True).stdout == "first\ndone\n"


def test_one_run_at_a_time_in_a_folder(tiny_model: Path, chats: Path, tmp_path: Path) -> None:
    out, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(out)
    endless = ("--steps", 1_000_000, "--sample-tokens", 0, "--eval-every", 1_000_000)
    started = command("finetune", tiny_model, chats, "--out", out, *endless, *QUICK)
    child = subprocess.Popen(started, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while lines(out) < 2 and child.poll() is None:
        time.sleep(0.01)
    second = partita("finetune", "--resume", "--out", link, status=2)
    assert second.stderr.startswith(f"partita: a run is going on in {link}: wait for its end, stop it, or")
    assert second.stderr.count("\n") == 1
    child.kill()
    child.communicate()
    assert (out / ".lock").exists()
    done = partita("finetune", "--resume", "--out", out, "--rank", 10**9, status=2)
    assert "training needs" in done.stderr  # it was let in
    assert not (out / ".lock").exists()


def test_a_second_signal_does_not_wait() -> None:
    """Not even for a library that computes for a minute without giving Python a turn."""
    program = (
        "import hashlib, sys\n"
        "from partita_apps.finetune.interrupts import stopping\n"
        "def say(text): print(text, flush=True)\n"
        "with stopping(lambda: say('first'), lambda: say('second')):\n"
        "    say('ready')\n"
        "    hashlib.pbkdf2_hmac('sha256', b'x', b'y', 200_000_000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "first\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == "second\n"
        assert child.wait(timeout=10) == 130


def test_a_full_disk_leaves_the_last_checkpoint(tiny_model: Path, chats: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for it, set between two checkpoints: the second run's are larger."""
    out = tmp_path / "out"
    train(tiny_model, chats, "--out", out, "--steps", 4, "--schedule", "constant", "--sample-tokens", 0, *QUICK)
    (kept,) = (out / "checkpoints").iterdir()
    files = {path.name: path.read_bytes() for path in kept.iterdir()}
    limit = len(files["trainables.safetensors"]) // 2
    done = subprocess.run(
        command("finetune", "--resume", "--out", out, "--steps", 8),
        env=environment() | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert re.search(r"^partita: .*checkpoints.* cannot be written", done.stderr, re.MULTILINE)
    assert [path.name for path in (out / "checkpoints").iterdir()] == [kept.name]
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == files
    assert train("--resume", "--out", out)["steps"] == 8


def test_a_run_goes_on_on_another_backend(tiny_model: Path, chats: Path, tmp_path: Path) -> None:
    settings = ("--schedule", "constant", "--sample-tokens", 0, "--dropout", 0.1, "--valid-fraction", 0)
    mild = ("--learning-rate", "2e-4")
    start = (tiny_model, chats, *QUICK, *settings, *mild)
    expected = train(*start, "--out", tmp_path / "torch", "--steps", 8)
    train(*start, "--out", tmp_path / "both", "--steps", 4)
    found = train("--resume", "--out", tmp_path / "both", "--steps", 8, "--backend", "mlx")
    assert found["backend"] == "mlx"
    assert found["train_loss"][:4] == expected["train_loss"][:4]
    for (step, ours), (same, theirs) in zip(found["train_loss"], expected["train_loss"], strict=True):
        assert step == same
        assert ours == pytest.approx(theirs, rel=bounds.loss(tiny_model, trained=100))
