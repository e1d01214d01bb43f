"""Markdown within a line: code, strong and emphasised text, links. After https://spec.commonmark.org/0.31.2/#inlines.

Not here: lines and blocks. Narrower than the specification where replies of models need it: `2*3*4`, `__init__`,
`snake_case` and formulas stay as they are, and strong text ends beside letters and Chinese punctuation, too.
"""

from __future__ import annotations

import re

from .layout import Spans

BOLD, DIM, ITALIC, UNDERLINED, STRUCK, CODE = "1", "2", "3", "4", "9", "36"

_BEFORE = r"(?<![^\W\u2e80-\U0003ffff])(?<![\^}$\\)*_~])"  # no letter that has a case, nor what stands in formulas
_AFTER = r"(?![^\W\u2e80-\U0003ffff])(?![\^{$(*_])"
_TICKED = r"`[^`\n]+`"
_INLINE = re.compile(
    r"\\(?P<escape>[*_`~|#<>$])"
    r"|(?P<ticks>(?<!`)`+(?!`))(?P<code>.+?)(?<!`)(?P=ticks)(?!`)"
    rf"|(?<![\d*])\*\*(?!\s)(?P<strong>(?>{_TICKED}|.)+?)(?<!\s)\*\*(?!\*)"
    rf"|{_BEFORE}\*(?![\s*])(?P<em>(?>{_TICKED}|\*\*[^*\n]+\*\*|[^*\n])+)(?<!\s)\*{_AFTER}"
    rf"|{_BEFORE}_(?![\s_])(?P<underscored>(?>{_TICKED}|[^_\n]|(?<=\w)_(?=\w))+)(?<!\s)_{_AFTER}"
    r"|~~(?!\s)(?P<struck>.+?)(?<!\s)~~"
    r"|!?\[(?P<linked>[^\[\]\n]*)\]\((?P<address>[^()\s]+(?:\([^()\s]*\)[^()\s]*)*)\)"
)
_OPENS = re.compile(
    rf"`|(?<![\d*])\*\*(?!\s)|{_BEFORE}\*(?![\s*])|{_BEFORE}_(?![\s_])|~~(?!\s)|\[[^\[\]]*$|\]\([^()\s]*$"
)
_DEEPEST = 4
_MARKS = re.compile(r"[\\`*_~\[]")
_STYLES = {"strong": BOLD, "em": ITALIC, "underscored": ITALIC, "struck": STRUCK}


def inline(text: str, style: str = "", depth: int = 0) -> Spans:
    """The pieces of a line with their styles, markers left out where they come in pairs.

    style: of all of it. depth: how many markers it stands between.
    """
    found: Spans = []
    at = 0
    for match in _INLINE.finditer(text) if _MARKS.search(text) and depth < _DEEPEST else ():
        found += [(text[at : match.start()], style)]
        found += _styled(match, style, depth + 1)
        at = match.end()
    return [(piece, each) for piece, each in [*found, (text[at:], style)] if piece]


def is_open(text: str) -> bool:
    """Whether a marker waits for the one that closes it."""
    if _MARKS.search(text) is None:
        return False
    return _OPENS.search(_INLINE.sub(lambda match: "x" * len(match[0]), text)) is not None


def _styled(match: re.Match[str], style: str, depth: int) -> Spans:
    kind = match.lastgroup
    if kind == "escape":
        return [(match["escape"], style)]
    if kind == "code":
        code = match["code"]
        whole = code.startswith(" ") and code.endswith(" ") and not code.isspace()
        return [(code[1:-1] if whole else code, _both(style, CODE))]
    if kind == "address":
        name, address = match["linked"], match["address"]
        beside = [] if name in ("", address) else [*inline(name, style, depth), (" (", style)]
        end = [(")", style)] if beside else []
        return [*beside, (address, _both(style, UNDERLINED)), *end]
    assert kind is not None
    return inline(match[kind], _both(style, _STYLES[kind]), depth)


def _both(one: str, other: str) -> str:
    return f"{one};{other}" if one else other
