"""The colours of code, for light and for dark paper: which kinds of token have one, and the stylesheet that says so.

`docs/code_css.py` writes the stylesheet into the page. Kinds without a colour get no element (`code`). Every colour has
a contrast of 4.5 or more on PAPERS: the darkest of the light page, the lightest of the dark one.
"""

from __future__ import annotations

from functools import cache

PAPERS = ("#eeeeea", "#262b29")
COLOURS = {  # what it is -> on light, on dark paper
    "comment": ("#5a6560", "#9aa8a1"),
    "keyword": ("#8a2f7a", "#dd9ad2"),
    "function": ("#1f5a9e", "#84b9f2"),
    "builtin": ("#0a6464", "#71cfc8"),
    "string": ("#2b6230", "#9bd08f"),
    "number": ("#8a4300", "#eab376"),
    "removed": ("#a3262a", "#f29b99"),
}
KINDS = {  # Pygments' short names
    "comment": "c c1 ch cm cp cpf cs gp",
    "keyword": "k kc kd kn kp kr kt ow",
    "function": "fm nc nd ne nf nt",
    "builtin": "bp na nb nn no vm",
    "string": "gi s s1 s2 sa sb sc sd se sh si sr ss sx dl",
    "number": "il m mb mf mh mi mo",
    "removed": "gd",
}
STRONG = "gh gu gs"


@cache
def coloured() -> frozenset[str]:
    """The kinds that have a colour or a weight."""
    return frozenset(" ".join([*KINDS.values(), STRONG]).split())


def stylesheet() -> str:
    lines = ["/* Written by docs/code_css.py: the colours of code, for light and dark. */"]
    for name, kinds in KINDS.items():
        light, dark = COLOURS[name]
        lines.append(f"{_selectors(kinds)} {{\n  color: light-dark({light}, {dark});\n}}")
    lines.append(f"{_selectors(STRONG)} {{\n  font-weight: 600;\n}}")
    return "\n".join(lines) + "\n"


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it: 1 to 21."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _selectors(kinds: str) -> str:
    return f".code :is({', '.join(f'.{kind}' for kind in kinds.split())})"


def _luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
