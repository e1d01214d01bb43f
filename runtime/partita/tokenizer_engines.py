"""The two segmentation libraries behind one interface (`tokenizer.Engine`). Reads no files.

Invariant: `encode(parse=False)` never returns a control token, whatever the text says.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from .errors import CheckpointError, UnsupportedModel

# Literals that act as markers whatever type the file gives them: `<|name|>`, and Gemma's turns and images.
_MARKER = re.compile(r"<[|｜][^\s<>]*>|<[^\s<>]*[|｜]>|</?(start|end)_of_(turn|image)>")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def is_marker(literal: str) -> bool:
    """Whether a token's literal is a marker of a chat or tool format by its very form."""
    return _MARKER.fullmatch(literal) is not None


def byte_alphabet() -> dict[str, int]:
    """Character to byte of byte-level BPE (GPT-2): printable Latin-1 stands for itself, the rest follow from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + i): byte for i, byte in enumerate(rest)}}


def byte_level_bytes(alphabet: Mapping[str, int], text: str) -> bytes:
    """Bytes of one byte-level token; a token with a character outside the alphabet is taken literally."""
    try:
        return bytes([alphabet[character] for character in text])
    except KeyError:
        return text.encode("utf-8", "replace")


def sentence_bytes(text: str) -> bytes:
    """Bytes of one sentencepiece token: `<0x0A>` is a byte, U+2581 a space."""
    if match := _BYTE.fullmatch(text):
        return bytes([int(match[1], 16)])
    return text.replace("▁", " ").encode("utf-8", "replace")


class _Controls:
    """What the engines share: where literals of control tokens stand in a text."""

    controls: Mapping[str, int]

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches any control token's literal; longest first, so that one which begins like another is found whole."""
        return self._compiled

    @cached_property  # on demand: thousands of literals take tens of milliseconds
    def _compiled(self) -> re.Pattern[str]:
        names = sorted(self.controls, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else r"((?!))")


class TokenizersEngine(_Controls):
    """An instance of the `tokenizers` library.

    literals: tokens whose text is taken as it is (added tokens). The library parses control tokens or not by a switch
    of the whole instance, hence the lock.
    """

    def __init__(
        self,
        library: Any,
        *,
        controls: Mapping[str, int],
        literals: Mapping[int, str],
        hidden: frozenset[int],
        to_bytes: Callable[[str], bytes],
        space_prefix: bool,
        size: int,
    ) -> None:
        self.size = size
        self.controls = controls
        self.hidden = hidden
        self.space_prefix = space_prefix
        self._library = library
        self._literals = literals
        self._to_bytes = to_bytes
        self._lock = threading.Lock()

    def encode(self, text: str, *, parse: bool, first: bool) -> list[int]:
        with self._lock:
            self._library.encode_special_tokens = not parse
            return self._library.encode(text, add_special_tokens=False).ids

    def token_text(self, token: int) -> str:
        text = self._literals.get(token)
        return text if text is not None else self._library.id_to_token(token) or ""

    def token_bytes(self, token: int) -> bytes:
        literal = self._literals.get(token)
        return literal.encode("utf-8", "replace") if literal is not None else self._to_bytes(self.token_text(token))


class SentencePieceEngine(_Controls):
    """A sentencepiece model, with control tokens split off by us and the space in front of a text written by us.

    The library never reads a control piece from text, which is the rule for a user's text; `parse` splits first.
    """

    def __init__(
        self,
        library: Any,
        pieces: Sequence[str],
        *,
        controls: Mapping[str, int],
        literals: Mapping[int, str],
        hidden: frozenset[int],
        space_prefix: bool,
        writes_space: bool = True,
    ) -> None:
        self.size = len(pieces)
        self.controls = controls
        self.hidden = hidden
        self.space_prefix = space_prefix
        self._writes_space = space_prefix and writes_space
        self._library = library
        self._pieces = pieces
        self._literals = literals

    def encode(self, text: str, *, parse: bool, first: bool) -> list[int]:
        if not parse:
            return self._plain(text, first)
        ids: list[int] = []
        for i, part in enumerate(self.pattern.split(text)):
            if i % 2:
                ids.append(self.controls[part])
            elif part:  # a control token begins a new text: its first word gets the space again
                ids += self._plain(part, first or i > 0)
        return ids

    def _plain(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        return self._library.encode(" " + text if first and self._writes_space else text)

    def token_text(self, token: int) -> str:
        return self._literals.get(token, self._pieces[token])

    def token_bytes(self, token: int) -> bytes:
        literal = self._literals.get(token)
        return literal.encode("utf-8", "replace") if literal is not None else sentence_bytes(self._pieces[token])


def decoder_kind(library: Any) -> tuple[Callable[[str], bytes], bool]:
    """How a `tokenizers` instance turns tokens into bytes, and whether it drops a text's first space.

    Read from its decoder, so that streaming agrees with what the library would decode.
    """
    steps = _decoder_steps(library.decoder)
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()
        return lambda text: byte_level_bytes(alphabet, text), False
    if not kinds & {"Metaspace", "Replace", "ByteFallback"}:
        raise UnsupportedModel(f"tokenizer.json: a decoder of kind {sorted(kinds) or 'none'} is not supported")
    strips = any(
        (step["type"] == "Strip" and step.get("content") == " " and step.get("start", 0) > 0)
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    if "ByteFallback" in kinds:
        return sentence_bytes, strips
    return lambda text: text.replace("▁", " ").encode("utf-8", "replace"), strips


def _decoder_steps(decoder: Any) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]


def load_sentencepiece(proto: bytes, where: str) -> Any:
    """A SentencePieceProcessor of a serialized model; CheckpointError when the library refuses it."""
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor()
    try:
        library.LoadFromSerializedProto(proto)
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{where}: not a usable sentencepiece model ({reason})") from error
    return library
