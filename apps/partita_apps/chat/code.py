"""Code in colours, a line at a time: Pygments reads the block again up to each new line and is believed for that line.

Not here: which lines are code. Invariant: the pieces put together are the line, whatever Pygments made of it.
"""

from __future__ import annotations

from typing import Any

from .layout import Spans

_STYLES = {  # of the eight colours that every terminal has, those that can be read on dark and on light ones
    "Token.Comment": "2",
    "Token.Keyword": "35",
    "Token.Operator.Word": "35",
    "Token.Name.Decorator": "35",
    "Token.Name.Tag": "35",
    "Token.Name.Builtin": "36",
    "Token.Name.Function": "36",
    "Token.Name.Class": "36",
    "Token.Name.Attribute": "36",
    "Token.Literal.Number": "36",
    "Token.Literal.String": "32",
    "Token.Generic.Deleted": "31",
    "Token.Generic.Inserted": "32",
    "Token.Generic.Heading": "1",
    "Token.Generic.Prompt": "2",
}
_CONTEXT, _MOST = 4_000, 16_000  # characters that are read again; past the first, from where something new begins


class Code:
    """The lines of one block. language: as its author called it; what Pygments does not know has no colours."""

    def __init__(self, language: str):
        self._lexer = _lexer(language)
        self._context = ""
        self._new = 0  # where in it, as far as can be told, something new begins

    def line(self, text: str) -> Spans:
        """A line or a piece of one, its line end left out."""
        if self._lexer is None or not text:
            self._context += "\n" * (not text)
            return [(text, "")]
        tokens = list(self._lexer.get_tokens(f"{self._context}{text}\n"))
        spans = _last(tokens, len(self._context), len(text))
        if "".join(piece for piece, _ in spans) != text:
            spans = [(text, "")]
        if self._context.endswith("\n\n") and not text[0].isspace() and spans[0][1] not in ("2", "32"):
            self._new = len(self._context)
        self._remember(f"{text}\n")
        return spans

    def _remember(self, text: str) -> None:
        self._context += text
        if len(self._context) > _MOST:
            self._new = len(self._context)
        if len(self._context) > _CONTEXT:
            self._context, self._new = self._context[self._new :], 0


def _lexer(language: str) -> Any:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False) if language else None
    except ClassNotFound:
        return None


def _last(tokens: list[tuple[Any, str]], begin: int, count: int) -> Spans:
    """The pieces of `count` characters from `begin`."""
    found, at = [], 0
    for kind, text in tokens:
        piece = text[max(begin - at, 0) : max(begin + count - at, 0)]
        if piece:
            found.append((piece, _style(kind)))
        at += len(text)
    return found


def _style(kind: Any) -> str:
    while kind is not None:
        if (style := _STYLES.get(str(kind))) is not None:
            return style
        kind = kind.parent
    return ""
