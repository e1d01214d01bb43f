"""A growing text: any portions give the pieces of the whole, and those are what Markdown makes of the text at once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita_apps.markup import Blocks, Change, Renderer
from partita_apps.markup.blocks import LONGEST

RENDERER = Renderer()
LINES = (
    "a word", "more *text* here", "", "", "", "- item", "- [ ] task", "* star", "  nested", "    four", "1. one",
    "2) two", "   cont", "```", "```py", "~~~", "  ```", "   ~~~~", "> quote", "> - a", "> ```", ">", "# head", "---",
    "===", "| a | b |", "|---|---|", "| 1 | 2 |", "$$", "$$ x", "x $$", "\\[", "\\]", "\\[ y \\]", "\\begin{align}",
    "\\end{align}", "[ref]: https://a.example", "[r2]:", "https://b.example", "'title'", "see [ref] and [r2]",
    "[foo][Ref]", "![x](https://e.example/i.png)", "$a$ and $b", "\t tab", "- ", "1.", "<b>x</b>", "***", "`code",
    "`", "- - x", "-   ```", "    ```", "  - deep", " ", "\r",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(LINES), max_size=14).map("\n".join)


def portions(text: str, cuts: Iterable[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


def grown(pieces: Iterable[str]) -> tuple[str, list[Change]]:
    blocks, html, seen = Blocks(RENDERER), "", []
    for piece in pieces:
        seen.append(blocks.push(piece))
        html += seen[-1].html
    last = blocks.finish()
    return (last.html if last.again else html + last.html), [*seen, last]


def at_once(text: str) -> str:
    """By the parser alone, which reads the text twice, so that all links are defined."""
    definitions: dict[str, object] = {}
    RENDERER.piece(text, definitions)
    return RENDERER.piece(text, dict(definitions))


@given(TEXTS, st.lists(st.integers(0, 10_000), max_size=12))
def test_any_portions_give_the_same(text: str, cuts: list[int]) -> None:
    assert grown(portions(text, cuts))[0] == RENDERER.html(text)


@given(TEXTS)
def test_pieces_together_are_the_text_at_once(text: str) -> None:
    assert grown(text)[0] == RENDERER.html(text) == at_once(text)


@given(st.lists(st.sampled_from([*LINES, "word " * 2_000, "x" * 9_000, "1" * LONGEST]), max_size=5).map("\n".join))
@settings(max_examples=25)
def test_long_blocks_are_cut_at_the_same_places(text: str) -> None:
    html, seen = grown(text[i : i + 701] for i in range(0, len(text), 701))
    assert html == RENDERER.html(text)
    assert all(len(change.rest) <= LONGEST for change in seen)


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("one\n\ntwo", 0),  # the second line may become a list's
        ("one\n\ntwo\n", 1),
        ("- a\n\n- b\n\n- c\n", 0),
        ("- a\n\n- b\n\nword\n", 1),
        ("```\na\n\nb\n", 0),
        ("```\na\n\nb\n```\n", 1),
        ("word\n```\na\n\nb\n```\nword\n", 2),
        ("- ```\n  a\n\nword\n", 1),
        (" ```\n\nword\n\nword\n", 0),
        ("> a\n\n> b\n", 1),
        ("$$\na\n\nb\n", 1),
        ("1. a\n\n   b\n\n2. c\n", 0),
    ],
)
def test_a_block_closes_when_nothing_can_change_it(text: str, closed: int) -> None:
    blocks = Blocks(RENDERER)
    html = [html for letter in text if (html := blocks.push(letter).html)]
    assert len(html) == closed


def test_the_open_rest_is_as_it_was_written() -> None:
    change = Blocks(RENDERER).push("one\n\n**two")
    assert change == Change("", "one\n\n**two")
    blocks = Blocks(RENDERER)
    blocks.push("one\n\n")
    assert blocks.push("**two\n") == Change("<p>one</p>\n", "**two\n")
    assert blocks.rest == "**two\n"


def test_a_link_that_is_defined_later_is_one_in_the_end() -> None:
    html, seen = grown(
        ["see [it] and [this][that]\n\n", "word\n\n", "[it]: https://a.example\n\n[that]: https://b.example"]
    )
    assert seen[-1].again
    assert html == at_once("see [it] and [this][that]\n\nword\n\n[it]: https://a.example\n\n[that]: https://b.example")
    assert "https://b.example" in html
    assert not grown(["[it]: https://a.example\n\nsee [it]\n\nmore"])[1][-1].again


def test_each_piece_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    piece = Renderer.piece

    def counted(self: Renderer, text: str, definitions: dict[str, object]) -> str:
        read.append(len(text))
        return piece(self, text, definitions)

    monkeypatch.setattr(Renderer, "piece", counted)
    text = "# A head\n\nSome *words* of text.\n\n- one\n- two\n\n```py\nx = 1\n```\n" * 100
    blocks = Blocks(Renderer())
    for i in range(0, len(text), 7):
        blocks.push(text[i : i + 7])
    blocks.finish()
    assert sum(read) <= len(text)
    assert max(read) < 60


def test_a_long_block_of_code_goes_on_in_a_second_one() -> None:
    code = "".join(f"line {i}\n" for i in range(4_000))
    html = grown(f"```py\n{code}```\nword\n"[i : i + 900] for i in range(0, len(code) + 20, 900))[0]
    assert html.count('<figure class="code" data-language="py">') == len(code) // LONGEST + 1
    assert html.endswith("<p>word</p>\n")


def test_a_long_list_goes_on_before_an_item() -> None:
    html = grown(["".join(f"{i}. item {i}\n\n" for i in range(1, 2_000))])[0]
    assert html.count("<ol") > 1
    assert html.count("<li>") == 1_999
    assert "<p>item 1999</p>" in html
