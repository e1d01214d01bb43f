"""Files that go with a message, as text: text and code as they are, PDFs read in a process of their own.

Nothing else is read, and nothing is guessed: a file is text by its bytes (UTF-8, or UTF-16 that says so), whatever
its name. Invariants: what comes out is bounded in characters; no parser of a stranger's format runs in this process;
a refusal is one line that names the file and says what can be attached.
"""

from __future__ import annotations

import codecs
import json
import mimetypes
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from partita.errors import DataError
from partita.printable import printable

LARGEST = 20 << 20  # bytes of a file
CHARACTERS = 400_000  # of a text: a hundred thousand tokens
PAGES = 500
SUPPORTED = "text and code in UTF-8 or UTF-16, and PDFs that hold text"
_CHILD = Path(__file__).with_name("pdf_child.py")
_SECONDS = 60
_KINDS = {  # how a file begins that people try to attach -> what it is
    b"PK\x03\x04": "an archive or an office document",
    b"\xd0\xcf\x11\xe0": "an office document of an old kind",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"RIFF": "a picture or a sound",
    b"\x1f\x8b": "a compressed file",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"ID3": "a sound",
    b"OggS": "a sound",
    b"{\\rtf": "an RTF document",
}


@dataclass(frozen=True)
class Attachment:
    """type: of the media, `application/pdf` or one of text. note: what was left out, nothing where it is whole."""

    name: str
    type: str
    text: str
    note: str = ""


def read(name: str, data: bytes) -> Attachment:
    """Raises DataError. Takes as long as a PDF takes: not for an event loop."""
    shown = printable(name)[:200] or "the file"
    if len(data) > LARGEST:
        raise DataError(f"{shown} has {len(data) >> 20} MiB, and at most {LARGEST >> 20} are read: attach a part of it")
    if not data.strip():
        raise DataError(f"{shown} is empty")
    if b"%PDF-" in data[:1024]:
        return _pdf(shown, data)
    kind = next((kind for front, kind in _KINDS.items() if data.startswith(front)), None)
    text = None if kind else _text(data)
    if text is None:
        raise DataError(f"{shown} is {kind or 'no text'}: what can be attached is {SUPPORTED}")
    if len(text) > CHARACTERS:
        raise DataError(
            f"{shown} has {len(text):,} characters, and at most {CHARACTERS:,} are read: attach a part of it"
        )
    guessed = mimetypes.guess_type(shown)[0] or ""
    return Attachment(shown, guessed if guessed.startswith("text/") else "text/plain", text)


def _text(data: bytes) -> str | None:
    """None for what is none."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        return None
    text = text.replace("\r\n", "\n")
    control = sum(character < " " and character not in "\t\n\r\f\x1b" for character in text)
    return None if "\0" in text or control * 100 > len(text) else text


def _pdf(name: str, data: bytes) -> Attachment:
    command = [sys.executable, "-I", str(_CHILD), str(CHARACTERS), str(PAGES)]
    too_much = f"{name} takes too long or too much memory to be read: save its text as a file"
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=_SECONDS, env={"LC_ALL": "C.UTF-8"})
    except subprocess.TimeoutExpired:
        raise DataError(too_much) from None
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise DataError(too_much) from None
    if "error" in found:
        raise DataError(f"{name} {found['error']}")
    pages, total = found["pages"], found["of"]
    note = "" if pages == total else f"the first {pages} of {total} pages"
    return Attachment(name, "application/pdf", found["text"], note)
