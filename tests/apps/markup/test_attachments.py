"""Files as text: what is read as it is, PDFs in a process of their own, and files that attack who reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from partita.errors import DataError
from partita_apps.markup import attachments, pdf_child
from partita_apps.markup.attachments import read

from .pdfs import deflated, pages, pdf, stream, words


@pytest.mark.parametrize(
    ("name", "data", "text", "kind"),
    [
        ("a.txt", "naïve\r\nlines\n".encode(), "naïve\nlines\n", "text/plain"),
        ("a.md", "\ufeff# head".encode(), "# head", "text/markdown"),
        ("a.txt", "naïve".encode("utf-16"), "naïve", "text/plain"),
        ("a.txt", b"\xfe\xff" + "naïve".encode("utf-16-be"), "naïve", "text/plain"),
        ("run.py", b"print(1)\n", "print(1)\n", "text/x-python"),
        ("Makefile", b"a:\n\tb\n", "a:\n\tb\n", "text/plain"),
        ("a.json", b"{}", "{}", "text/plain"),
        ("picture.png", b"text after all", "text after all", "text/plain"),
        ("log.txt", b"\x1b[31mred\x1b[0m and more", "\x1b[31mred\x1b[0m and more", "text/plain"),
    ],
)
def test_text_is_read_as_it_is(name: str, data: bytes, text: str, kind: str) -> None:
    found = read(name, data)
    assert (found.name, found.text, found.note) == (name, text, "")
    assert found.type == kind


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"PK\x03\x04 word/document.xml", "is an archive or an office document: what can be attached is text and code"),
        (b"\x89PNG\r\n\x1a\n", "is a picture: what can be attached is"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "is an office document of an old kind: what"),
        (b"\xff\xfe\x00\xd8", "is no text: what can be attached is text and code in UTF-8 or UTF-16, and PDFs"),
        ("naïve".encode("latin-1"), "is no text"),
        (b"a\0b", "is no text"),
        (bytes(range(1, 32)) * 3, "is no text"),
        (b"x" * (attachments.CHARACTERS + 1), "has 400,001 characters, and at most 400,000 are read"),
        (b"x" * (attachments.LARGEST + 1), "has 20 MiB, and at most 20 are read"),
    ],
)
def test_what_is_not_read_is_refused_in_a_line(data: bytes, words: str) -> None:
    with pytest.raises(DataError) as refused:
        read("my\nfile", data)
    assert str(refused.value).startswith("my\\nfile ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_text_of_a_pdf() -> None:
    found = read("a.pdf", pdf(pages(words("Hello fugue"), words("and a coda"))))
    assert (found.type, found.text, found.note) == ("application/pdf", "Hello fugue\n\nand a coda", "")


def test_as_many_pages_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    document = pdf(pages(*(words(f"page {i} " + "x" * 80) for i in range(9))))
    monkeypatch.setattr(attachments, "PAGES", 3)
    assert read("a.pdf", document).note == "the first 3 of 9 pages"
    monkeypatch.setattr(attachments, "CHARACTERS", 200)
    found = read("a.pdf", document)
    assert found.note == "the first 2 of 9 pages"
    assert len(found.text) <= 200


def cyclic() -> bytes:
    objects = pages(words("x"))
    objects[2] = b"<< /Type /Pages /Kids [2 0 R] /Count 1 /Parent 2 0 R >>"
    return pdf(objects)


def encrypted() -> bytes:
    from io import BytesIO

    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=BytesIO(pdf(pages(words("secret")))))
    writer.encrypt("password", algorithm="RC4-128")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


ATTACKS = {
    "empty": (lambda: pdf(pages(stream(b""))), "has no text, as scanned pages have none"),
    "no pages": (lambda: pdf(pages()), "has no text"),
    "encrypted": (encrypted, "is encrypted: save it without its password"),
    "cut": (lambda: pdf(pages(words("x")))[:60], "is not a readable PDF"),
    "header alone": (lambda: b"%PDF-1.7\n", "is not a readable PDF"),
    "noise": (lambda: b"%PDF-1.7\n" + bytes(range(256)) * 40, "is not a readable PDF"),
    "cyclic pages": (cyclic, "attack.pdf "),
    "stream of zeros": (lambda: pdf(pages(deflated(b"\0" * (200 << 20)))), "attack.pdf "),
    "operators": (lambda: pdf(pages(deflated(b"q " * (30 << 20)))), "attack.pdf "),
    "nested arrays": (lambda: pdf(pages(stream(b"BT " + b"[" * 200_000 + b" TJ ET"))), "attack.pdf "),
    "object that is itself": (lambda: pdf({**pages(words("x")), 11: b"11 0 R"}), "attack.pdf "),
    "huge count": (
        lambda: pdf({**pages(words("x")), 2: b"<< /Type /Pages /Kids [] /Count 99999999999 >>"}),
        "attack.pdf ",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_attacks_is_refused_in_a_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "_SECONDS", 8)
    make, words = ATTACKS[name]
    with pytest.raises(DataError) as refused:
        read("attack.pdf", make())
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize(
    "code",
    [
        "open('/dev/null', 'w')",
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import os; os.remove('nothing')",
    ],
)
def test_a_reader_that_was_taken_over_can_do_nothing(code: str, tmp_path: Path) -> None:
    folder = str(Path(pdf_child.__file__).parent)
    program = (
        f"import sys; sys.path.insert(0, {folder!r})\nimport pdf_child\npdf_child.guard()\n{code}\nprint('did it')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == pdf_child.EXIT_BLOCKED, done.stderr
    assert "tried to do more than hold text" in done.stdout
    assert "did it" not in done.stdout
