"""The Makefile and `.ci/setup`, in a copy whose Python is a stand-in that notes what it is asked to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINUX = sys.platform == "linux"
# make itself drops spaces that lead a value
PROMPTS = ['What\'s "this"?', "costs $5, $(HOME) or `id`?", "a \\ b # c % d", "two\n  lines  ", "-n 3", ""]
STAND_IN = """#!/bin/sh
printf '%s\\0' "$@" >>"$NOTES"
printf '\\n' >>"$NOTES"
case "$*" in
    *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"import partita_apps.cli"*) test -e .venv/works ;;
    *"+cpu"*) if [ -n "$NO_CPU_BUILD" ]; then echo "$NO_CPU_BUILD" >&2; exit 1; fi ;;
    *"pip install"*) if [ -n "$PIP_SAYS" ]; then echo "$PIP_SAYS" >&2; exit 1; fi; touch .venv/works ;;
esac
"""


class Copy:
    """A checkout in a path with spaces, as far as make sees one."""

    def __init__(self, place: Path):
        self.place, self.notes, self.python = place, place.parent / "notes", place.parent / "python 3"
        place.mkdir()
        shutil.copytree(ROOT / ".ci", place / ".ci")
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, place)
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        self.no_gpu, self.gpu = (self._driver(name, status) for name, status in (("no gpu", 9), ("gpu", 0)))

    def _driver(self, name: str, status: int) -> Path:
        """A folder with a stand-in for NVIDIA's tool."""
        folder = self.place.parent / name
        folder.mkdir()
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\nexit {status}\n")
        (folder / "nvidia-smi").chmod(0o755)
        return folder

    def make(self, *arguments: str, status: int = 0, **settings: str) -> str:
        """Standard error, after a run of make."""
        self.notes.write_text("")
        environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
        environment |= {"PYTHON": str(self.python), "NOTES": str(self.notes), "PIP_SAYS": ""}
        environment |= {"NO_CPU_BUILD": "", "PATH": f"{self.no_gpu}{os.pathsep}{environment['PATH']}"}
        done = subprocess.run(
            ["make", *arguments], cwd=self.place, env=environment | settings, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        return done.stderr

    def calls(self, words: str) -> list[list[str]]:
        """Arguments of the stand-in's calls that contain these words."""
        found = [line.split("\0") for line in self.notes.read_text().split("\0\n")]
        return [arguments for arguments in found if words in " ".join(arguments)]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "a b")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_arrives_as_it_was_typed(copy: Copy, prompt: str) -> None:
    copy.make("chat", f"PROMPT={prompt}", "MODEL=./my $model's folder")
    (call,) = copy.calls("cli chat")
    assert call == ["-m", "partita_apps.cli", "chat", "./my $model's folder", f"--prompt={prompt}"]


def test_without_a_prompt_there_is_a_conversation(copy: Copy) -> None:
    copy.make("chat", PROMPT="%n@%m %# ", MODEL="a shell's own")  # merely exported
    assert copy.calls("cli chat") == [["-m", "partita_apps.cli", "chat"]]


def test_a_second_run_installs_nothing(copy: Copy) -> None:
    copy.make("setup")
    assert len(copy.calls("-m venv")) == len(copy.calls("--editable")) == 1
    copy.make("setup")
    assert copy.calls("-m") == []


def test_new_requirements_are_installed_into_what_is_there(copy: Copy) -> None:
    copy.make("setup")
    (copy.place / "constraints.txt").write_text("numpy==2.0\n")
    copy.make("setup")
    assert (len(copy.calls("-m venv")), len(copy.calls("--editable"))) == (0, 1)


def test_a_broken_or_moved_environment_is_made_again(copy: Copy) -> None:
    copy.make("setup")
    (copy.place / ".venv/bin/python").unlink()
    copy.make("setup")
    assert len(copy.calls("-m venv")) == 1
    copy.place = copy.place.rename(copy.place.with_name("c d"))
    copy.make("setup")
    assert len(copy.calls("-m venv")) == 1


def test_an_interrupted_installation_goes_on(copy: Copy) -> None:
    copy.make("setup")
    (copy.place / ".venv/.installed").unlink()
    copy.make("setup")
    assert (len(copy.calls("-m venv")), len(copy.calls("--editable"))) == (0, 1)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("WARNING: x\nERROR: No matching distribution found for y", "No matching distribution found for y"),
        ("WARNING: Retrying (Retry(total=0))\nERROR: No matching distribution", "the package index cannot be reached"),
        ("Killed", "Killed"),
    ],
)
def test_what_pip_says_is_one_line(copy: Copy, said: str, words: str) -> None:
    lines = copy.make("setup", status=2, PIP_SAYS=said).splitlines()
    ours = [line for line in lines if line.startswith("partita: ") and "installing" not in line]
    assert len(ours) == 1
    assert words in ours[0]
    assert ".venv/pip.log" in ours[0]
    assert [line for line in lines if not line.startswith(("partita: ", "make: "))] == []


def test_no_python(copy: Copy) -> None:
    error = copy.make("setup", status=2, PYTHON="/bin/false")
    assert "partita: PYTHON=/bin/false is not Python 3.11 or newer" in error


def test_a_newer_python_is_found_beside_an_old_one(copy: Copy) -> None:
    folder = copy.place.parent / "bin"
    folder.mkdir()
    for name in ("python3", "python3.13"):
        (folder / name).write_text("#!/bin/sh\nexit 1\n")
    (folder / "python3.12").write_text(STAND_IN)
    for path in folder.iterdir():
        path.chmod(0o755)
    copy.make("setup", PYTHON="", PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert len(copy.calls("-m venv")) == len(copy.calls("--editable")) == 1


def test_without_a_gpu_the_cpu_build_of_torch_is_taken_where_pip_finds_it(copy: Copy) -> None:
    said = copy.make("setup")
    asked = [call[-1] for call in copy.calls("+cpu")]
    version = re.search(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert version is not None
    assert asked == ([f"torch=={version[1]}+cpu"] if LINUX else [])  # elsewhere no build brings CUDA
    assert len(copy.calls("--editable")) == 1
    assert said.count("installing with the CPU build of torch") == LINUX
    assert "CUDA" not in said


@pytest.mark.parametrize("words", ["No matching distribution found for torch", "ResolutionImpossible: for help"])
def test_without_a_cpu_build_one_line_says_what_is_taken(copy: Copy, words: str) -> None:
    said = copy.make("setup", NO_CPU_BUILD=f"ERROR: {words}")  # without a constraint, and with one
    assert len(copy.calls("--editable")) == 1
    assert said.count("pip finds no CPU build of torch") == LINUX


def test_without_a_network_nothing_is_said_of_builds(copy: Copy) -> None:
    said = "WARNING: Retrying (Retry(total=0))\nERROR: No matching distribution"
    lines = copy.make("setup", status=2, NO_CPU_BUILD=said, PIP_SAYS=said)
    assert "CPU build" not in lines
    assert lines.count("the package index cannot be reached") == 1


def test_with_a_gpu_torch_is_taken_as_it_comes(copy: Copy) -> None:
    copy.make("setup", PATH=f"{copy.gpu}{os.pathsep}{os.environ['PATH']}")
    assert copy.calls("+cpu") == []
    assert len(copy.calls("--editable")) == 1


def test_the_workflow_keeps_models_by_files_that_exist() -> None:
    (names,) = re.findall(r"hashFiles\((.*?)\)", (ROOT / ".github/workflows/ci.yml").read_text())
    assert [name for name in re.findall(r"'(.*?)'", names) if not (ROOT / name).is_file()] == []
