"""The page's token: what tells the page of this machine's user from every other page and program.

It lies in the data folder, so that a bookmark, a restart and the terminal have the same one. Invariant: nobody but this
user can read it, and it is whole or not there.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from partita.errors import DataError
from partita.files.atomic import whole_file

NAME = "page-token"
_FORM = re.compile(r"[A-Za-z0-9_-]{40,100}")


def new() -> str:
    return secrets.token_urlsafe(32)


def read(folder: Path) -> str | None:
    """The token of a data folder, None where there is none (yet), or something else is in its place.

    Raises DataError where it cannot be read.
    """
    try:
        with (folder / NAME).open("rb") as file:
            found = file.read(200).decode("latin-1").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {folder / NAME}: {error.strerror}") from None
    return found if _FORM.fullmatch(found) else None


def ensure(folder: Path) -> str:
    """The token of a data folder, made where there is none; the folder as well. Raises DataError."""
    found = read(folder)
    if found is not None:
        return found
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_file(folder / NAME, private=True) as partial:
            partial.write_text(f"{new()}\n", encoding="ascii")
    except OSError as error:
        raise DataError(f"cannot write {folder / NAME}: {error.strerror}") from None
    found = read(folder)  # that of another server, if it was quicker
    assert found is not None
    return found


def link(url: str, token: str) -> str:
    """The address that opens the page with its token, which stays in the browser: a fragment is not sent."""
    return f"{url}/#token={token}"
