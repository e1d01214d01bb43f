"""What attacks a page comes out as text: by the elements and attributes that are left, in a parser of HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import ClassVar

import pytest

from partita_apps.markup import Blocks, Renderer
from partita_apps.markup.sanitize import HTML, MATH, MATH_ATTRIBUTES, REL, Sanitizer

from .corpus import PROBES

RENDERER = Renderer()
ATTRIBUTES = {"aria-label", "class", "data-language", "href", "rel", "role", "start", "target", "title"}


class Reader(HTMLParser):
    """Insists on every element that it meets."""

    VOID: ClassVar = {"br", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in HTML | MATH
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        assert set(names) <= (MATH_ATTRIBUTES if tag in MATH else ATTRIBUTES)
        if tag == "a" and "href" in names:
            values = dict(attrs)
            assert str(values["href"]).lower().startswith(("http://", "https://", "mailto:"))
            assert (values["rel"], values["target"]) == (REL, "_blank")
            self.links.append(str(values["href"]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.mark.parametrize("probe", PROBES)
def test_nothing_of_it_acts(probe: str) -> None:
    for text in (
        probe,
        f"a {probe} b",
        f"- {probe}\n\n> {probe}",
        f"```\n{probe}\n```",
        f"**{probe}**",
        f"x\n{probe}\n",
    ):
        read(RENDERER.html(text))


@pytest.mark.parametrize("probe", PROBES)
def test_nothing_of_it_acts_in_pieces(probe: str) -> None:
    blocks = Blocks(RENDERER)
    html = "".join(blocks.push(letter).html for letter in f"{probe}\n\n{probe}\n\n")
    last = blocks.finish()
    read(last.html if last.again else html + last.html)
    read(html)


@pytest.mark.parametrize("probe", PROBES)
def test_the_last_gate_holds_alone(probe: str) -> None:
    """HTML that reaches it unescaped, as it would if a step before it failed."""
    reader = Reader()
    reader.feed(Sanitizer().clean(probe))
    reader.close()


def test_raw_html_is_shown() -> None:
    assert read(RENDERER.html("a <script>alert(1)</script> b")).text == "a <script>alert(1)</script> b\n"


def test_links_lead_to_the_web_and_to_mail_alone() -> None:
    text = "[a](https://a.example) <mailto:b@b.example> [c](ftp://c.example) [d](d.html) http://e.example"
    assert read(RENDERER.html(text)).links == ["https://a.example", "mailto:b@b.example", "http://e.example"]


def test_an_image_is_a_link_that_loads_nothing() -> None:
    html = RENDERER.html("![A cat](https://a.example/cat.png)")
    assert "<img" not in html
    assert read(html).links == ["https://a.example/cat.png"]
    assert read(html).text == "A cat\n"
    assert read(RENDERER.html("[![A cat](https://a.example/c.png)](https://b.example)")).links == ["https://b.example"]


def test_characters_that_nobody_sees_are_written_out() -> None:
    html = RENDERER.html("if user != '\u202etnimda\u202c': # \u2066\n\n```py\nx = '\u202e'\n```")
    assert not {"\u202e", "\u202c", "\u2066"} & set(html)
    assert read(html).text.count(r"\u202e") == 2
