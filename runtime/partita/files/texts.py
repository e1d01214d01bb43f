"""A text file that a person names: to be measured on, weighed by or answered."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError


def read_text(path: Path) -> str:
    """All of it. DataError for a file that cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: name a text file that can be read") from None
