"""metrics.jsonl: a line for every step and evaluation, written as they happen and true to the run after a resume.

Knows nothing of what the numbers mean. Invariants: a line is whole or, after a crash, the last one and left out; a run
that goes on from step k first drops what an earlier process wrote beyond it, so that no step is there twice.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError
from ..files.atomic import whole_file
from ..files.bounded import is_table

NAME = "metrics.jsonl"
Row = dict[str, Any]


class Metrics:
    """The rows so far, and the file. Raises DataError where it cannot be read or written."""

    def __init__(self, path: Path, step: int):
        """step: rows beyond it are dropped; 0: all of them."""
        self.path = path
        self.rows = [row for row in _read(path) if 0 <= row["step"] <= step] if step else []
        with whole_file(path) as partial:
            partial.write_text("".join(map(_line, self.rows)), encoding="utf-8")
        try:
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._fault(error) from error

    def add(self, row: Row) -> None:
        self.rows.append(row)
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise self._fault(error) from error

    def keep(self) -> None:
        """What was written is on the disk when this returns: before a checkpoint counts on it."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._fault(error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:  # what could not be written has been reported
            return

    def _fault(self, error: OSError) -> DataError:
        return DataError(f"{self.path} cannot be written: {error.strerror or error}: free some space, then `resume`")


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _read(path: Path) -> list[Row]:
    """Rows of a file in their order, one for each step and kind; what is no row is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    found: dict[tuple[int, bool], Row] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if is_table(row) and type(row.get("step")) is int:
            found[row["step"], "valid_loss" in row] = row
    return list(found.values())
