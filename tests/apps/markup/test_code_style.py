"""The colours of code: the page's stylesheet is the written one, and every colour can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from pygments.token import STANDARD_TYPES

from partita_apps.markup import code, style

SHEET = Path(__file__).parents[3] / "apps/partita_apps/serve/page/css/code.css"


def test_the_stylesheet_is_what_the_script_writes() -> None:
    assert SHEET.read_text(encoding="utf-8") == style.stylesheet(), "run `python docs/code_css.py`"


@pytest.mark.parametrize("name", style.COLOURS)
def test_colours_can_be_read(name: str) -> None:
    for colour, paper in zip(style.COLOURS[name], style.PAPERS, strict=True):
        assert style.contrast(colour, paper) >= 4.5
    assert style.contrast("#000000", "#ffffff") == pytest.approx(21)


def test_kinds_are_those_of_pygments() -> None:
    assert style.coloured() <= set(STANDARD_TYPES.values())


@pytest.mark.parametrize("name", sorted(set(code.LANGUAGES.values())))
def test_languages_are_known_and_coloured(name: str) -> None:
    first = {"http": "GET / HTTP/1.1\nHost: a\n", "php": "<?php // x\n", "pycon": ">>> 'a'\n"}.get(name, "")
    html = code.figure(f'{first}# "a" 1\n// x\n<b c="d">\n$ ls\n-x\nif (a) {{ return 1; }}\nkey: "v" [s]\n', name)
    assert "<span" in html
