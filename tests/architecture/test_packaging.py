"""What people install: built here without a network, put into an environment of its own, run far from the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import partita

ROOT = Path(__file__).parents[2]
SOURCES = {
    "runtime": "partita",
    "backends": "partita_backends",
    "convert": "partita_convert",
    "apps": "partita_apps",
}
PREFIX = f"partita-{partita.__version__}"


def run(*command: str | Path, cwd: Path, **settings: str) -> str:
    """Standard output of a command that must succeed, with nothing of this checkout in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment | settings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", place, cwd=ROOT)
    return place / f"{PREFIX}.tar.gz"


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        checks = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in the first of Python 3.11
        archive.extractall(place, **checks)
    return place / PREFIX


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, which therefore lacks nothing."""
    place = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--wheel-dir", str(place))
    run(sys.executable, "-m", "pip", "wheel", *options, unpacked, cwd=place)
    return place / f"{PREFIX}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment that holds the wheel, and borrows libraries, but not the checkout, from this one.

    A path in a .pth file is searched for packages, while .pth files in it, such as the one that makes this checkout
    importable, are not read.
    """
    place = tmp_path_factory.mktemp("environment") / "with space"
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place.parent)
    python = place / "bin/python"
    options = ("install", "--quiet", "--no-deps", "--no-index", "--no-cache-dir", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, *options, wheel, cwd=place.parent)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    libraries = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (packages / "borrowed.pth").write_text("\n".join(libraries))
    return place


def sources(*folders: str) -> set[str]:
    """Paths of the Python files below these folders of the checkout, those that git would keep."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_source_distribution_holds_what_is_needed_to_go_on(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{PREFIX}/") for name in archive.getnames()}
    single = {
        "pyproject.toml",
        "Makefile",
        "constraints.txt",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
    }
    assert single | {".ci/run", ".ci/setup"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")} <= names
    assert sources(*SOURCES, "tests", "examples") <= names
    roots = {*SOURCES, "tests", "docs", "examples", ".ci"}
    assert {name.split("/")[0] for name in names if "/" in name} == roots
    assert {name for name in names if "/" not in name} <= single | roots | {"PKG-INFO", ".gitignore"}


def test_the_wheel_holds_the_four_packages_and_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"{PREFIX}.dist-info/METADATA").decode()
    files = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    about = {f"{PREFIX}.dist-info/{name}" for name in files}
    assert about <= names
    code = names - about
    assert {name.split("/")[0] for name in code} == set(SOURCES.values())
    assert code >= {path.split("/", 1)[1] for path in sources(*SOURCES)}
    assert code >= {f"{package}/py.typed" for package in SOURCES.values()}  # type checkers read our annotations
    assert not [name for name in code if "__pycache__" in name or "test" in name.split("/")]
    assert f"Version: {partita.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata


def test_pyproject_and_the_package_say_one_version(unpacked: Path) -> None:
    text = (unpacked / "pyproject.toml").read_text(encoding="utf-8")
    stated = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
    assert stated is not None
    assert stated[1] == partita.__version__


@pytest.mark.parametrize(
    ("system", "machine", "libraries", "extras"),
    [
        ("linux", "x86_64", {"torch"}, {"mlx", "torch"}),
        ("linux", "aarch64", {"torch"}, {"mlx", "torch"}),
        ("darwin", "arm64", {"mlx"}, {"mlx", "torch"}),
        ("darwin", "x86_64", set(), set()),
        ("win32", "AMD64", {"torch"}, {"torch"}),
    ],
)
def test_no_platform_is_asked_for_a_library_that_it_cannot_have(
    system: str, machine: str, libraries: set[str], extras: set[str]
) -> None:
    """mlx and torch, as pip brings them without being asked and through the extras, those for development too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]

    def wanted(stated: list[str]) -> set[str]:
        where = {"sys_platform": system, "platform_machine": machine}
        found = [Requirement(each) for each in stated]
        return {each.name for each in found if each.marker is None or each.marker.evaluate(where)}

    heavy = {"mlx", "torch", "mlx-lm", "peft"}
    assert wanted(project["dependencies"]) & heavy == libraries
    assert wanted([*optional["mlx"], *optional["torch"]]) == extras
    assert wanted(optional["dev"]) & heavy == ({"mlx-lm", "peft"} if extras else set())


def test_an_installed_wheel_needs_no_checkout(installed: Path, tmp_path: Path) -> None:
    code = f"import json, sys, {', '.join(SOURCES.values())}; print(json.dumps([partita.__file__, sys.path]))"
    file, path = json.loads(run(installed / "bin/python", "-c", code, cwd=tmp_path))
    assert Path(file).is_relative_to(installed)
    assert not [entry for entry in path if Path(entry) in {ROOT, *(ROOT / root for root in SOURCES)}]
    assert run(installed / "bin/partita", "--version", cwd=tmp_path) == f"partita {partita.__version__}\n"


def test_an_installed_wheel_lists_what_is_here(installed: Path, tmp_path: Path) -> None:
    document = json.loads(run(installed / "bin/partita", "info", "--json", cwd=tmp_path))
    assert {row["name"] for row in document["backends"]} == {"mlx", "torch", "numpy"}
    assert document["auto"]


def test_an_installed_wheel_answers(installed: Path, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ("chat", tiny_model, "-p", "the quick brown fox", "-n", "8", "--json")
    document = json.loads(run(installed / "bin/partita", *arguments, cwd=tmp_path))
    assert len(document["tokens"]) == 8
    assert document["finish_reason"] == "length"
