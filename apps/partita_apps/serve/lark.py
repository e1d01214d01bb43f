"""Grammars in llguidance's Lark, rule by rule: literals in which control tokens are tokens, and JSON of a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from partita.engine.grammars import with_options
from partita.text.tokenizer import Tokenizer

ANYTHING = "/(?s:.*)/"


def quoted(text: str) -> str:
    """A literal of text, as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


def any_of(expressions: Sequence[str]) -> str:
    return f"({' | '.join(expressions)})"


class Writer:
    """The rules of one grammar. Expressions are Lark's; where a rule is made, its name is one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._controls, self._pattern = tokenizer.controls, tokenizer.control_pattern
        self._bodies: dict[str, str] = {}  # of rules, by their names with options
        self._names: dict[str, str] = {}  # of rules, by their bodies

    def grammar(self, start: str) -> str:
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for name, body in self._bodies.items())])

    def literal(self, text: str) -> str:
        """Text in which literals of control tokens are these tokens."""
        pieces = self._pattern.split(text)
        return " ".join(
            f"<[{self._controls[piece]}]>" if i % 2 else quoted(piece) for i, piece in enumerate(pieces) if piece
        )

    def is_control(self, literal: str) -> bool:
        return literal in self._controls

    def rule(self, body: str, options: str = "") -> str:
        """options: what stands in brackets behind the name (`[lazy]`)."""
        if body not in self._names:
            name = self.reserve()
            self._bodies[f"{name}{options}"] = self._bodies.pop(name) or body
            self._names[body] = name
        return self._names[body]

    def terminal(self, body: str) -> str:
        """A rule that is one regular expression."""
        if body not in self._names:
            self._names[body] = f"T{len(self._bodies)}"
            self._bodies[self._names[body]] = body
        return self._names[body]

    def json(self, schema: Mapping[str, Any]) -> str:
        """JSON that a schema admits."""
        return self.rule(f"%json {json.dumps(with_options(schema))}")

    def reserve(self) -> str:
        """The name of a rule that `define` says later, for rules that hold themselves."""
        name = f"r{len(self._bodies)}"
        self._bodies[name] = ""
        return name

    def define(self, name: str, body: str) -> str:
        self._bodies[name] = body
        return name

    def listed(self, items: Sequence[tuple[str, bool]], separator: str) -> str:
        """Some of these expressions in their order, those that are needed (True) among them, a separator between."""
        rest, first = "", ""
        for item, needed in reversed(items):
            first = (
                f"{item} {rest}" if needed else self.rule(f"{item} {rest} | {first}" if first else f"({item} {rest})?")
            )
            more = f"{quoted(separator)} {item}"
            rest = f"{more} {rest}" if needed else f"({more})? {rest}"
            rest = self.rule(rest)
        return first
