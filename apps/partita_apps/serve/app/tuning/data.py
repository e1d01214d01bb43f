"""A file of training data as a person is shown it: what is in it, how much, and the first records. Tokens come later,
with a model.

It is read by the readers of a run, so what is accepted here is accepted there.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from partita.data import files
from partita.data.records import Chat, Completion, Record
from partita.errors import DataError
from partita.printable import visible

from .frames import Checked, Example

EXAMPLES = 3
CHARACTERS = 600
"""Of a turn that is shown."""


def checked(path: Path) -> Checked:
    """What a file holds. Raises DataError, which names the line."""
    if path.suffix == ".txt":
        return _text(path)
    kind, rows, examples = "", 0, list[Example]()
    for found in files.records(path):
        rows += 1
        kind = kind or _kind(found.record)
        if len(examples) < EXAMPLES:
            examples.append(Example([(role, _cut(text)) for role, text in turns(found.record)]))
    if not rows:
        raise DataError(f"{path} holds no records to train on")
    return Checked(kind, rows, len(path.read_text(encoding="utf-8-sig")), examples)


def _text(path: Path) -> Checked:
    text = "".join(files.blocks(path))
    lines = text.splitlines()
    shown = [Example([("text", _cut(text))])]
    return Checked("text", len(lines), len(text), shown)


def _kind(record: Record) -> str:
    if isinstance(record, Chat):
        return "chat"
    return "completion" if isinstance(record, Completion) else "text"


def turns(record: Record) -> list[tuple[str, str]]:
    if isinstance(record, Chat):
        return [(str(message["role"]), _content(message)) for message in islice(record.messages, 8)]
    if isinstance(record, Completion):
        return [("prompt", record.prompt), ("completion", record.completion)]
    return [("text", record.text)]


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def _cut(text: str) -> str:
    shown = text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"
    return visible(shown)
