"""Vocabulary over our vocabularies, by llguidance: what a grammar says of bytes becomes what it says of tokens.

Not here: what of a reply a grammar is for (`constraint`). Invariants: a mask covers every id of the logits, and ids
that are no token are in none; a control token is allowed only where a grammar names it, a stop id only where a grammar
may end; whatever a schema says, compiling it takes a bounded time and fails as one DataError.
"""

from __future__ import annotations

import json
import re
import threading
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from ..errors import DataError
from ..files.bounded import is_table
from ..text.tokenizer import Tokenizer
from .request import MAX_GRAMMAR, Constraint

JSON_OPTIONS = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "coerce_one_of": True,
    "lenient": False,
}
"""How JSON is written under a grammar: on one line, as models saw it in training. No keyword is passed over."""

Mask = np.ndarray[Any, np.dtype[np.int32]]
Part = dict[str, Any]
"""One grammar of several, in the library's form."""
_LEXER_WORK = 200_000  # for the expressions of one grammar: 0.2 s at most, where the library's own limit allows 3 s


class Vocabulary:
    """One vocabulary, as grammars see it. Made once for a loaded model; safe to share between threads.

    size: the width of the logits, which may be more than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer, self.size = tokenizer, max(size, tokenizer.vocab_size)
        self.stop_ids = tokenizer.stop_ids
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None

    @property
    def library(self) -> LLTokenizer:
        """What the library made of it: up to two seconds of work, for the first who asks."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def start(self, parts: list[Part]) -> LLMatcher:
        """Vocabulary at the beginning of the first of them, which refers to the others. Raises DataError where they do
        not compile."""
        text = json.dumps({"grammars": parts})
        found = LLMatcher(self.library, text, log_level=0, limits=_limits())
        if found.is_error():
            raise DataError(reason(found.get_error()))
        return found

    def mask(self, matcher: LLMatcher) -> Mask:
        """The tokens that may come next, a bit each from the lowest on: int32 (ceil(size / 32),)."""
        mask = allocate_token_bitmask(1, self.size)
        fill_next_token_bitmask(matcher, mask)
        return mask[0]

    def contribution(self, token: int) -> bytes:
        """What a token adds to a text; a control token \\xff and its literal, which no text holds."""
        return self._tokens[token] if 0 <= token < len(self._tokens) else b""

    def spelled(self, literal: str) -> bytes:
        """A literal as its tokens contribute it."""
        pieces = self.tokenizer.control_pattern.split(literal)
        return b"".join((b"\xff" if i % 2 else b"") + piece.encode() for i, piece in enumerate(pieces))

    @cached_property
    def controls(self) -> Mask:
        """A mask of all control tokens."""
        return self._mask_of(np.isin(np.arange(self.size), list(self.tokenizer.engine.hidden)))

    @cached_property
    def stops(self) -> Mask:
        """A mask of the stop ids."""
        return self._mask_of(np.isin(np.arange(self.size), list(self.stop_ids)))

    @cached_property
    def everything(self) -> Mask:
        """A mask of all tokens."""
        return self._mask_of(np.arange(self.size) < self.tokenizer.vocab_size)

    def _mask_of(self, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> Mask:
        words = -(-self.size // 32)
        bits = np.zeros(words * 32, np.bool_)
        bits[: self.size] = chosen
        return np.packbits(bits, bitorder="little").view(np.int32)

    @cached_property
    def _tokens(self) -> list[bytes]:
        hidden, known = self.tokenizer.engine.hidden, self.tokenizer
        found = [known.token_bytes(token) for token in range(known.vocab_size)]
        # \xff is in no text, and in front of a token the library takes it for the mark of a control token
        return [b"\xff" + text if i in hidden else b"" if text[:1] == b"\xff" else text for i, text in enumerate(found)]

    def _make(self) -> LLTokenizer:
        tokens = [*self._tokens, *([b""] * (self.size - len(self._tokens)))]
        stops = sorted(self.stop_ids)
        if not stops:
            raise DataError("a reply cannot be held to a grammar: the model has no token that ends one")
        return LLTokenizer(TokenizerWrapper(_Wrapped(self.tokenizer, tokens, stops[0])), self.size, stops)


class _Wrapped:
    """What the library asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], eos: int) -> None:
        self._tokenizer, self.tokens, self.eos_token_id, self.bos_token_id = tokenizer, tokens, eos, None
        self.special_token_ids = sorted(tokenizer.engine.hidden)

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):  # asked for once, to learn that it must be text
            raise TypeError("text is wanted")
        return self._tokenizer.encode_parts([(text, False)], continues=True)


def body(constraint: Constraint) -> Part:
    """The grammar of a constraint, under the name "body". Raises DataError for one that is too long or no schema."""
    if len(constraint.grammar) > MAX_GRAMMAR:
        raise DataError(
            f"the schema has {len(constraint.grammar)} characters, more than {MAX_GRAMMAR} are not accepted"
        )
    if constraint.kind == "lark":
        return {"name": "body", "lark_grammar": constraint.grammar}
    try:
        schema: object = json.loads(constraint.grammar)
    except (ValueError, RecursionError):
        raise DataError("the schema is not valid JSON, or nested too deeply") from None
    return {"name": "body", "json_schema": with_options({} if schema is True else schema)}


def check(constraint: Constraint) -> None:
    """Raise the DataError of a constraint that does not compile, whatever the vocabulary."""
    failed, messages = LLMatcher.validate_grammar_with_warnings(
        json.dumps({"grammars": [body(constraint)]}), limits=_limits()
    )
    if failed:
        raise DataError(reason(messages[0]))


def _limits() -> LLParserLimits:
    return LLParserLimits(initial_lexer_fuel=_LEXER_WORK, verbose_errors=False)


def with_options(schema: object) -> dict[str, Any]:
    """A schema that is enforced as `JSON_OPTIONS` say, whatever it says itself. Raises DataError for none."""
    if not is_table(schema):
        raise DataError("a JSON schema must be an object")
    return {**schema, "x-guidance": JSON_OPTIONS}


def reason(error: str) -> str:
    """What the library has against a grammar, in a line for a person."""
    keys = re.search(r"Unimplemented keys: \[(.*?)\]", error)
    if keys is not None:
        return f"the schema cannot be enforced: its keyword {keys[1]} is not supported; leave it out"
    if "NoExtension" in error:  # its parser's name for a dead end
        return "the schema cannot be enforced: nothing that the model can write satisfies it"
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), (lines or ["?"])[0])
    line = re.sub(r"^(?:at )?\d+\(\d+\): (?:failed to compile JSON schema: )?", "", line)
    return f"the schema cannot be enforced: {line[:200]}"
