"""Code in colours, a line at a time: Pygments reads the block again up to each new line and is believed for that line.

Invariant: the pieces put together are the line, whatever Pygments made of it.
"""

from __future__ import annotations

from typing import Any

from .layout import Spans

_COMMENT, _STRING = "2", "32"
_STYLES = {  # of the eight colours that every terminal has, those that can be read on dark and on light ones
    "Token.Comment": _COMMENT,
    "Token.Keyword": "35",
    "Token.Operator.Word": "35",
    "Token.Name.Decorator": "35",
    "Token.Name.Tag": "35",
    "Token.Name.Builtin": "36",
    "Token.Name.Function": "36",
    "Token.Name.Class": "36",
    "Token.Name.Attribute": "36",
    "Token.Literal.Number": "36",
    "Token.Literal.String": _STRING,
    "Token.Generic.Deleted": "31",
    "Token.Generic.Inserted": "32",
    "Token.Generic.Heading": "1",
    "Token.Generic.Prompt": "2",
}
_CONTEXT, _MORE, _MOST = 500, 1_500, 8_000  # characters that are read again


class Code:
    """The lines of one block. language: as its author called it; what Pygments does not know has no colours."""

    def __init__(self, language: str):
        self._lexer = _lexer(language)
        self._context = ""
        self._new = 0  # where in it, as far as can be told, something new begins
        self._line = 0  # where its last line begins that is not within a string or a comment

    def line(self, text: str) -> Spans:
        """A line or a piece of one, its line end left out."""
        if self._lexer is None or not text:
            self._context += "\n" * (not text)
            return [(text, "")]
        tokens = list(self._lexer.get_tokens(f"{self._context}{text}\n"))
        spans = _last(tokens, len(self._context), len(text))
        if "".join(piece for piece, _ in spans) != text:
            spans = [(text, "")]
        if spans[0][1] not in (_COMMENT, _STRING):
            begins = self._context.endswith("\n\n") and not text[0].isspace()
            self._new = len(self._context) if begins else self._new
            self._line = len(self._context)
        self._remember(f"{text}\n")
        return spans

    def _remember(self, text: str) -> None:
        """Past _CONTEXT what follows a blank line is enough, past _MORE the last line, past _MOST nothing is kept."""
        self._context += text
        size = len(self._context)
        cut = size if size > _MOST else self._line if size > _MORE else self._new if size > _CONTEXT else 0
        if cut:
            self._context, self._new, self._line = self._context[cut:], 0, 0


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
