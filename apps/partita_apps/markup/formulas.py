"""A formula's LaTeX as MathML, or as its source where it cannot be read: no script, no font, no style.

Bounded before anything is read: the length, how deep it nests, and no macros, whose expansion can grow without end. The
library makes a tree; it is written out here, since its own writer undoes the escapes of texts. Invariants: every
text and attribute is escaped; elements and attributes are those of `sanitize`, values such as a formula needs.
"""

from __future__ import annotations

import re
from html import escape, unescape
from typing import TYPE_CHECKING

from .sanitize import MATH, MATH_ATTRIBUTES

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

LONGEST = 4_000  # characters of one formula
DEEPEST = 60  # groups in one another, and commands that take what follows
_MACROS = re.compile(r"\\(?:(?:re|provide)?newcommand|x?def|gdef|edef|let|DeclareMathOperator|(?:re)?newenvironment)")
_OPENS = re.compile(r"[{_^']|\\(?:begin|left|[a-zA-Z]+)|[}]|\\(?:end|right)")
_VALUE = re.compile(r"[a-z-]{1,20}|[+-]?\d{0,2}(?:\.\d{1,4})?(?:em|ex|px|pt|mu|%)?")


def mathml(source: str, *, display: bool) -> str:
    """source: LaTeX without its delimiters."""
    source = source.strip()
    shown = f'<code class="formula">{escape(source)}</code>'
    if len(source) > LONGEST or _depth(source) > DEEPEST or _MACROS.search(source):
        return shown
    from latex2mathml.converter import Converter

    try:
        tree = Converter(display="block" if display else "inline").convert_to_element(source)
        return _written(tree, source)
    except Exception:  # of the library: a dozen kinds, and what a text that nobody expected lets happen in it
        return shown


def _depth(source: str) -> int:
    """A bound of how deep the library's calls will go: groups that are open, and commands in a row."""
    open_, chain, deepest = 0, 0, 0
    end = -1
    for found in _OPENS.finditer(source):
        mark = found[0]
        chain = chain + 1 if source[end : found.start()].isspace() or found.start() == end else 1
        end = found.end()
        if mark in ("}", r"\end", r"\right"):
            open_ = max(open_ - 1, 0)
        elif mark in ("{", r"\begin", r"\left"):
            open_ += 1
        deepest = max(deepest, open_ + chain)
    return deepest


def _written(tree: Element, source: str) -> str:
    pieces: list[str] = []
    _write(tree, pieces)
    opening, body = pieces[0], "".join(pieces[1:])
    return f'{opening[:-1]} alttext="{escape(source)}">{body}'


def _write(element: Element, pieces: list[str]) -> None:
    tag = element.tag if element.tag in MATH else "mrow"
    attributes = "".join(
        f' {name}="{escape(value)}"'
        for name, value in element.attrib.items()
        if name in MATH_ATTRIBUTES and all(_VALUE.fullmatch(each) for each in value.split(" "))
    )
    pieces.append(f"<{tag}{attributes}>")
    if element.text:
        pieces.append(escape(unescape(element.text)))  # the library writes &#x3B1;
    for child in element:
        _write(child, pieces)
    pieces.append(f"</{tag}>")
