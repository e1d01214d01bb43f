"""The process and its terminal: streams that are closed, no escape sequences, a terminal that is gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from partita_apps.conversation import session_file

# Newer Pythons warn of fork in a process that has threads; the child here does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

PARTITA = str(Path(sys.executable).with_name("partita"))
Start = Callable[..., pexpect.spawn]


def closed(*arguments: object, without: tuple[int, ...], cwd: Path) -> subprocess.CompletedProcess[str]:
    """The finished command, begun without these of the descriptors 0 to 2; those that are there are captured."""
    keep = {"stdin": 0, "stdout": 1, "stderr": 2}
    pipes = {name: None if number in without else subprocess.PIPE for name, number in keep.items() if number}
    return subprocess.run(
        [PARTITA, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        text=True,
        timeout=60,
        preexec_fn=lambda: [os.close(number) for number in without],
        **pipes,
    )


@pytest.mark.parametrize("without", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_a_reply_with_streams_that_are_closed(tiny_model: Path, tmp_path: Path, without: tuple[int, ...]) -> None:
    ask = ("chat", tiny_model, "--backend", "numpy", "-n", 3)
    done = closed(*ask, "-p", "the fox", without=without, cwd=tmp_path)
    assert done.returncode == 0
    assert not done.stderr
    assert 1 in without or done.stdout
    done = closed(*ask, without=without, cwd=tmp_path)
    assert done.returncode == 2
    assert 2 in without or re.fullmatch(r"partita: there is no prompt.*\n", done.stderr)


def test_what_was_made_is_made_whoever_listens(tiny_model: Path, tmp_path: Path) -> None:
    done = closed("convert", tiny_model, "out", "--calibration", "none", without=(0, 1), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 10_000


def test_streams_that_take_nothing(tmp_path: Path) -> None:
    for place, words in (("/dev/full", "No space left"), ("/dev/null", "not open for writing")):
        with open(place, "r" if place == "/dev/null" else "w") as out:
            done = subprocess.run([PARTITA, "models", "path", "--help"], stdout=out, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2
        assert re.fullmatch(rf"partita: cannot write .*{words}.*\n", done.stderr)
    with open("/dev/full", "w") as full:
        assert subprocess.run([PARTITA, "sing"], stderr=full, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGTERM, signal.SIGHUP]])
def test_a_signal_ends_work_that_is_half_done_and_cleans_up(tmp_path: Path, numbers: list[signal.Signals]) -> None:
    program = (
        "import time\n"
        "from pathlib import Path\n"
        "from partita_apps.terminal import end_on_signals\n"
        "from partita.files.atomic import whole_folder\n"
        "end_on_signals()\n"
        "with whole_folder(Path('out'), replace=False) as folder:\n"
        "    (folder / 'half').touch()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for number in numbers:
            child.send_signal(number)
        assert child.wait(timeout=30) in [128 + number for number in numbers]
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_so() -> None:
    program = (
        "import os, signal\n"
        "from partita_apps.terminal import end_on_signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "end_on_signals()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "print('alive')\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"alive\n"


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """start(*arguments, **variables): the command in a terminal of its own."""

    def spawn(*arguments: object, timeout: int = 60, **variables: str) -> pexpect.spawn:
        own = {"XDG_STATE_HOME": str(tmp_path / "state"), "PROMPT_TOOLKIT_NO_CPR": "1", "PARTITA_CACHE": str(tmp_path)}
        kept_out = ("NO_COLOR", "COLUMNS", "LINES")
        environment = {name: value for name, value in os.environ.items() if name not in kept_out} | own | variables
        line = list(map(str, arguments))
        return pexpect.spawn(
            PARTITA, line, env=environment, encoding="utf-8", timeout=timeout, dimensions=(24, 80), cwd=tmp_path
        )

    return spawn


def all_of(child: pexpect.spawn) -> str:
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.before
    assert isinstance(child.before, str)
    return child.before


@pytest.mark.parametrize("plain", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_no_escape_sequences_where_none_are_wanted(start: Start, tiny_model: Path, plain: dict[str, str]) -> None:
    ask = ("chat", tiny_model, "--backend", "numpy", "-n", 3, "-p", "the fox")
    (colour, white), (help_, plain_help) = (
        [all_of(start(*arguments, **each)) for each in ({"TERM": "xterm"}, plain)]
        for arguments in ((*ask, "--trace"), ("models", "list", "--help"))
    )
    assert "\x1b[" in colour
    assert "\x1b" not in white
    assert re.sub(r"\x1b\[[\d;]*m", "", colour)[:80] == white[:80]
    assert help_ == plain_help


def test_the_first_reply_on_a_machine_says_what_it_waits_for(start: Start, tiny_model: Path) -> None:
    ask = ("chat", tiny_model, "--backend", "torch", "--device", "cpu", "-n", 3, "-p", "the fox")
    line = "compiling kernels for this CPU, once"
    assert line in all_of(start(*ask, timeout=120))
    assert line not in all_of(start(*ask))


def test_a_conversation_on_a_terminal_that_knows_no_escape_sequences(start: Start, tiny_model: Path) -> None:
    child = start("chat", tiny_model, "--backend", "numpy", "-n", 3, TERM="dumb")
    said = ""
    for line in ("one \\", "two", "/show", "/clear"):
        child.expect("(\r\n|^)(> |  $)")
        said += child.before
        child.send(line + "\r")
    child.expect("A new conversation")
    said += child.before
    child.expect("> ")
    child.send("\x03")
    child.expect("Ctrl-C again leaves")
    child.send("\x03")
    said += all_of(child)
    assert "\x1b" not in said
    assert "tokens · " in said
    assert "messages            2" in said


@pytest.mark.parametrize("during", ["a reply", "the prompt"])
def test_a_terminal_that_is_gone_leaves_the_conversation(
    start: Start, tiny_model: Path, tmp_path: Path, during: str
) -> None:
    child = start("chat", tiny_model, "--backend", "numpy", "-n", 1_000_000, "--session", "talk.st", TERM="xterm")
    child.expect("/help")
    child.send("the fox\r")
    child.expect("(?s)\r\n.{400}")  # the line is written again, and the reply has begun
    if during == "the prompt":
        child.send("\x03")
        child.expect("stopped")
        child.expect("> ")
    os.close(child.child_fd)  # as when a window is closed
    _, status = os.waitpid(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 128 + signal.SIGHUP, 128 + signal.SIGPIPE)
    found = session_file.find(tmp_path / "talk.st")
    assert found is not None
    assert found.messages[0]["content"] == "the fox"
    assert len(found.messages[1]["content"]) > 20
    assert not (tmp_path / ".talk.st.lock").exists()
