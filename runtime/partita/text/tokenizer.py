"""Text to token ids and back, for every vocabulary we read. Knows no model and no chat format.

Invariant: what a token contributes to text is a fixed string of bytes (`Engine.token_bytes`). `decode` and
`TextStream` both join those bytes, so a stream of any ids, split anywhere, gives exactly what decoding the whole gives.
A control token (`<|im_end|>`) enters the ids only where the caller says `specials=True`: typed by a user it is text.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable

from ..errors import DataError
from ..printable import printable
from .vocabulary import END_TOKENS, Engine, Facts


class Tokenizer:
    """One vocabulary with its conventions. Ids are plain ints in [0, vocab_size). Safe to share between threads."""

    def __init__(self, engine: Engine, facts: Facts) -> None:
        self.engine = engine
        """What segments text, without these conventions."""
        self._bytes: dict[int, bytes] = {}  # filled on demand: a table of 262,144 entries would cost start-up time
        self.vocab_size = engine.size
        self.bos_id = facts.bos_id
        self.eos_id = facts.eos_id
        self.adds_bos = facts.adds_bos and facts.bos_id is not None
        self.chat_template, self.tool_template = facts.chat_template, facts.tool_template
        self.controls = engine.controls
        named = {"bos_token": self.bos_token, "eos_token": self.eos_token, **facts.special_tokens}
        self.special_tokens = {name: literal for name, literal in named.items() if literal}
        """Literals of special tokens, by the names under which chat templates know them."""
        self.stop_ids = _stop_ids(engine, facts)

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens, {len(self.controls)} of control)"

    @property
    def bos_token(self) -> str:
        """Literal of the BOS token, "" without one."""
        return "" if self.bos_id is None else self.engine.token_text(self.bos_id)

    @property
    def eos_token(self) -> str:
        """Literal of the main EOS token, "" without one."""
        return "" if self.eos_id is None else self.engine.token_text(self.eos_id)

    @property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches the literal of any control token, in one group."""
        return self.engine.pattern

    def encode(self, text: str, *, bos: bool | None = None, specials: bool = False) -> list[int]:
        """Token ids of `text`.

        bos: put BOS in front (None: as the model was trained, `adds_bos`); a text that already begins with it, parsed
        by `specials`, does not get a second. specials: control tokens' literals in `text` become those tokens.
        """
        wants_bos = self.adds_bos if bos is None else bos
        if wants_bos and self.bos_id is None:
            raise DataError("this tokenizer has no BOS token: encode with bos=False")
        ids = self.engine.encode(_valid(text), parse=specials, first=True)
        if wants_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def encode_parts(self, parts: Iterable[tuple[str, bool]], *, continues: bool = False) -> list[int]:
        """Ids of consecutive (text, specials) parts of one text, without a BOS of our own.

        continues: the parts go on after other text.
        """
        ids: list[int] = []
        for text, specials in parts:
            if text:
                ids += self.engine.encode(_valid(text), parse=specials, first=not (ids or continues))
        return ids

    def decode(self, ids: Iterable[int], *, specials: bool = False, continues: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, and so does an id outside the vocabulary.

        specials: show control tokens by their literals. continues: the ids go on after other text, so that a leading
        space is part of it (sentencepiece vocabularies put one in front of a text's first word).
        """
        joined = b"".join(self._contribution(token, specials) for token in ids)
        if self.engine.space_prefix and not continues:
            joined = joined.removeprefix(b" ")
        return joined.decode("utf-8", "replace")

    def stream(self, *, specials: bool = False, continues: bool = False) -> TextStream:
        """A decoder that takes one id at a time; the arguments mean what they mean in `decode`."""
        strips = self.engine.space_prefix and not continues
        return TextStream(lambda token: self._contribution(token, specials), strips=strips)

    def token_text(self, token: int) -> str:
        """Printable form of one token: a control token's literal, "·" for a space, `<0xE2>` for a byte that is no
        UTF-8 by itself, escapes for characters that move the cursor."""
        if token in self.engine.hidden:
            return printable(self.engine.token_text(token))
        return shown_bytes(self._contribution(token, True))

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text, a control token its literal; b"" for none of its own."""
        return self._contribution(token, True)

    def _contribution(self, token: int, specials: bool) -> bytes:
        if not specials and token in self.engine.hidden:
            return b""
        known = self._bytes.get(token)
        if known is None:
            inside = 0 <= token < self.vocab_size
            known = self._bytes[token] = self.engine.token_bytes(token) if inside else "\ufffd".encode()
        return known


class TextStream:
    """Detokenizer for one stream of ids, constant work a token.

    `push` returns the text that no later id can change, so an incomplete UTF-8 sequence waits; `finish` returns the
    rest. All of it joined equals `Tokenizer.decode` of all the ids.
    """

    def __init__(self, contribution: Callable[[int], bytes], *, strips: bool) -> None:
        self._contribution = contribution
        self._strips = strips  # a leading space is still to be dropped
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that became certain with `token`, perhaps ""."""
        data = self._contribution(token)
        if self._strips and data:
            data, self._strips = data.removeprefix(b" "), False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What was held back; an incomplete sequence becomes U+FFFD. The stream can then not be used again."""
        return self._utf8.decode(b"", final=True)


def _valid(text: str) -> str:
    """`text` with lone surrogates (bytes of a terminal that were no UTF-8) as U+FFFD: the libraries take UTF-8 only."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def shown_bytes(data: bytes | bytearray) -> str:
    """The bytes of a token as `Tokenizer.token_text` shows them."""
    return "".join(map(_printable, data.decode("utf-8", "surrogateescape").replace(" ", "·")))


def _printable(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is not UTF-8
        return f"<0x{code - 0xDC00:02X}>"
    return printable(character)


def _stop_ids(engine: Engine, facts: Facts) -> frozenset[int]:
    known = {name for name in END_TOKENS if engine.controls.get(name) in engine.hidden}
    # where a turn has several messages, these end one of them, and the turn goes on
    if "<|return|>" in known or "<|channel|>" in engine.controls:
        known.discard("<|end|>")
    if "<|message|>" in engine.controls:
        known.discard("<|eom|>")
    stops = facts.stop_ids | {engine.controls[name] for name in known}
    if facts.eos_id is not None:
        stops |= {facts.eos_id}
    return frozenset(stops)
