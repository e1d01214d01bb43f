"""A program: a PDF on standard input, its text on standard output. Run as `python -I pdf_child.py CHARACTERS PAGES`.

A PDF is a stranger's program for a large parser, so it is read in this process alone: limits on memory, processor
time and files, and an audit hook that ends the process at the first attempt to write a file, start a program or open
a connection.
Prints one JSON document: {"text", "pages", "of"} (whole pages, as many as both arguments allow), or {"error": line}.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

MEMORY, SECONDS = 1 << 30, 30
EXIT_BLOCKED = 86
_BLOCKED = (
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "pty.",
    "ctypes.",
    "urllib.",
    "ftplib.",
    "smtplib.",
    "webbrowser.",
)
_HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "ctypes.dlopen", "ctypes.dlsym", "socket.gethostname")


class Refused(Exception):
    """The message is one line for a person, what comes behind the file's name."""


def limit() -> None:
    """Bounds, where the system has them."""
    try:
        import resource
    except ImportError:
        return
    bounds = {resource.RLIMIT_CPU: SECONDS, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if sys.platform == "linux":  # macOS refuses to bound addresses
        bounds[resource.RLIMIT_AS] = MEMORY
    for what, bound in bounds.items():
        _, hard = resource.getrlimit(what)
        own = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(what, (own, own))


def guard() -> None:
    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            writes = writes or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if not writes:
                return
        elif not event.startswith(_BLOCKED) or event in _HARMLESS:
            return
        os.write(1, json.dumps({"error": f"tried to do more than hold text ({event})"}).encode())
        os._exit(EXIT_BLOCKED)

    sys.addaudithook(see)


def read(data: bytes, characters: int, most_pages: int) -> dict[str, Any]:
    import io
    import logging

    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.disable(logging.CRITICAL)
    guard()
    try:
        reader = PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not _opens(reader):
            raise Refused("is encrypted: save it without its password")
        total = len(reader.pages)
        texts, size = [], 0
        for page in reader.pages[:most_pages]:
            text = _surrogates(page.extract_text() or "").strip()
            size += len(text) + 2
            if size > characters and texts:
                break
            texts.append(text[:characters])
    except Refused:
        raise
    except (PyPdfError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refused(f"is not a readable PDF ({reason}): open it and save it again") from None
    except (RecursionError, MemoryError):
        raise Refused("needs more memory than a PDF's text should: save its text as a file") from None
    if not any(texts):
        raise Refused("has no text, as scanned pages have none: recognise its text first (OCR), or paste it")
    return {"text": "\n\n".join(texts), "pages": len(texts), "of": total}


def _opens(reader: Any) -> bool:
    """With the empty password, as files do that only forbid printing."""
    try:
        return bool(reader.decrypt(""))
    except Exception:  # a library for its cipher may be missing
        return False


def _surrogates(text: str) -> str:
    """Halves of characters, which no encoding takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def main() -> None:
    limit()
    try:
        found = read(sys.stdin.buffer.read(), int(sys.argv[1]), int(sys.argv[2]))
    except Refused as refused:
        found = {"error": str(refused)}
    except MemoryError:
        found = {"error": "needs more memory than a PDF's text should: save its text as a file"}
    os.write(1, b"")
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
