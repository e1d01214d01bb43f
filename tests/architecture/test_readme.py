"""What the documents say of the project is so: the help, the links, the commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from partita_apps.cli import ALIASES, COMMANDS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for name in ("docs", "examples") for path in (ROOT / name).rglob("*.md"))]
)
HELP = re.compile(r"<!-- help(?P<command>[ a-z]*?) *-->\s*```\w*\n(?P<text>.*?)```\s*<!-- /help -->", re.DOTALL)
LINK = re.compile(
    r"!?\[[^\]]*\]\((?P<inline>[^)\s]+)[^)]*\)|<(?:img|a|source)\b[^>]*?(?:src|srcset|href)=\"(?P<tag>[^\"]+)\""
)


def help_blocks() -> list[tuple[list[str], str]]:
    """(subcommand or nothing, text) of every block between help markers, in all documents."""
    found = (match for document in DOCUMENTS for match in HELP.finditer(document.read_text(encoding="utf-8")))
    return [(match["command"].split(), match["text"]) for match in found]


def plain(text: str) -> str:
    """The text without fenced blocks, whose contents are nobody's links."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> Iterator[str]:
    for match in LINK.finditer(plain(text)):
        yield match["inline"] or match["tag"]


def anchors(path: Path) -> set[str]:
    """What headings can be linked by: lower case, spaces as hyphens, other punctuation left out."""
    titles = re.findall(r"^#+ +(.*?) *#*$", plain(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_readme_shows_the_help() -> None:
    assert [] in [command for command, _ in help_blocks()]


@pytest.mark.parametrize(("command", "text"), help_blocks(), ids=lambda value: " ".join(value)[:12] or "partita")
def test_help_is_the_real_one(command: list[str], text: str) -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "partita_apps.cli", *command, "--help"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    shown = "\n".join(line.rstrip() for line in text.strip().splitlines())
    assert shown.removeprefix(f"$ partita {' '.join([*command, '--help'])}\n") == done.stdout.strip()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in links(document.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z+.-]*:", link):
            assert re.match(r"https://[\w.-]+|mailto:", link), f"{document.name}: {link}"
            continue
        name, _, fragment = unquote(link).partition("#")
        target = document if not name else document.parent / name
        assert target.exists(), f"{document.name}: {link} leads nowhere"
        assert target.resolve().is_relative_to(ROOT), f"{document.name}: {link} leads out of the project"
        if fragment and target.suffix == ".md":
            assert fragment in anchors(target), f"{document.name}: {link} names no heading"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_are_named_exist(document: Path) -> None:
    """`make x` and `partita x`, in code; prose that makes something is left alone."""
    text = document.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    for target in re.findall(r"(?:^|[`;&] ?|\$ )make ([a-z][a-z-]*)", code, re.MULTILINE):
        assert target in make_targets(), f"{document.name}: make {target}"
    for command in re.findall(r"(?:^|[`;&|] ?|\$ )partita ([a-z]+)", code, re.MULTILINE):
        assert command in COMMANDS | ALIASES, f"{document.name}: partita {command}"


def test_every_target_says_what_it_does() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    described = {line.split()[1]: line.split(maxsplit=2)[2] for line in done.stdout.splitlines()}
    assert set(described) == make_targets()
    assert all(described.values())
