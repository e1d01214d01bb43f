"""`.ci/browser`: which browser it finds or installs, with stand-ins for every program of the system."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = "#!/bin/sh\nexit 0\n"
STUB = "#!/bin/sh\necho 'install the snap' >&2\nexit 1\n"


class System:
    """A checkout, and a PATH on which nothing is but what a test puts there."""

    def __init__(self, place: Path, user: int):
        self.bin, self.checkout, self.notes = place / "bin", place / "a b", place / "notes"
        self.bin.mkdir()
        (self.checkout / ".ci").mkdir(parents=True)
        shutil.copy(ROOT / ".ci/browser", self.checkout / ".ci")
        for name in ("sh", "dirname", "cp", "chmod", "mkdir"):
            found = shutil.which(name)
            assert found is not None
            (self.bin / name).symlink_to(found)
        self.put("id", f"#!/bin/sh\necho {user}\n")
        self.put("python", "#!/bin/sh\nexit 1\n")

    def put(self, name: str, program: str) -> Path:
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(program)
        path.chmod(0o755)
        return path

    def installs(self, name: str, made: str, says: str = "") -> None:
        """A program that notes how it was called, and makes another one when its arguments have the word install."""
        lines = [f'echo "{name} $*" >>"{self.notes}"', says]
        lines.append(f'case "$*" in *install*) cp "{self.put("kept", RUNS)}" "{self.bin}/{made}";; esac')
        self.put(name, "\n".join(["#!/bin/sh", *lines, ""]))

    def find(self, status: int = 0, **settings: str) -> tuple[str, str]:
        """Standard output and error."""
        environment = {"PATH": str(self.bin), "TMPDIR": str(self.bin), "APPLICATIONS": str(self.bin / "Applications")}
        environment |= {"PYTHON_IN_VENV": str(self.bin / "python"), **settings}
        done = subprocess.run(
            [self.checkout / ".ci/browser"], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == status, done.stderr
        return done.stdout.removesuffix("\n"), done.stderr

    @property
    def called(self) -> str:
        return self.notes.read_text() if self.notes.exists() else ""


@pytest.fixture
def person(tmp_path: Path) -> System:
    return System(tmp_path, 1000)


@pytest.fixture
def root(tmp_path: Path) -> System:
    return System(tmp_path, 0)


@pytest.mark.parametrize(
    "name",
    ["chromium", "chromium-browser", "google-chrome", "Applications/Google Chrome.app/Contents/MacOS/Google Chrome"],
)
def test_that_of_the_system_is_taken(root: System, name: str) -> None:
    root.installs("apt-get", "chromium")
    path = root.put(name, RUNS)
    assert root.find() == (str(path), "")
    assert root.called == ""


def test_one_that_does_not_run_is_passed_over(person: System) -> None:
    person.put("chromium-browser", STUB)
    path = person.put("google-chrome", RUNS)
    assert person.find()[0] == str(path)


def test_a_named_one_is_taken_or_refused(person: System) -> None:
    person.put("chromium", RUNS)
    own = person.put("my browser", RUNS)
    assert person.find(PARTITA_BROWSER=str(own)) == (str(own), "")
    out, error = person.find(2, PARTITA_BROWSER="/nowhere/chrome")
    assert out == ""
    assert error == (
        "partita: PARTITA_BROWSER=/nowhere/chrome does not run: name a Chromium or Chrome, or leave it out\n"
    )


@pytest.mark.parametrize(("manager", "packages"), [("apt-get", "fonts-dejavu-core"), ("dnf", "dejavu-sans-fonts")])
def test_root_gets_it_from_packages(root: System, manager: str, packages: str) -> None:
    root.installs(manager, "chromium", says="echo much; echo more >&2")
    out, error = root.find()
    assert out == str(root.bin / "chromium")
    assert error == f"partita: installing chromium by {manager}, which the page's tests drive\n"
    assert packages in root.called
    assert root.find() == (out, "")
    assert len(root.called.splitlines()) == 1


def test_lists_of_packages_are_fetched_where_they_are_old(root: System) -> None:
    says = f'case "$*" in update) touch=1; : >"{root.bin}/updated";; esac\n[ -e "{root.bin}/updated" ] || exit 100'
    root.installs("apt-get", "chromium", says=says)
    assert root.find()[0] == str(root.bin / "chromium")
    assert [line.split()[1] for line in root.called.splitlines()] == ["install", "update", "install"]


def test_others_get_that_of_playwright(person: System) -> None:
    person.installs("apt-get", "chromium")
    own = person.bin / "playwrights"
    program = f'case "$*" in *"playwright install"*) cp "{person.put("kept", RUNS)}" "{own}";; *) echo "{own}";; esac'
    person.put("python", f"#!/bin/sh\n{program}\n")
    out, error = person.find()
    assert out == str(own)
    assert len(error.splitlines()) == 1
    assert "installing playwright's own Chromium" in error
    assert person.called == ""
    assert person.find() == (out, "")


def test_without_libraries_it_says_which_command_brings_them(person: System) -> None:
    own = person.put("playwrights", STUB)
    person.put("python", f'#!/bin/sh\ncase "$*" in *install*) ;; *) echo "{own}";; esac\n')
    *_, line = person.find(2)[1].splitlines()
    assert line.startswith("partita: playwright's Chromium lacks libraries of the system: as root, ")
    assert "playwright install-deps chromium" in line


def test_where_none_can_be_had_a_line_says_what_is_missing(root: System) -> None:
    out, error = root.find(2)
    assert out == ""
    *_, line = error.splitlines()
    assert line.startswith("partita: the page's tests need a Chromium or Chrome, and none could be installed")
    assert "PARTITA_BROWSER=/path/to/it" in line
