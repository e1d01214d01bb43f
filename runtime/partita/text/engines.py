"""The two segmentation libraries behind one interface (`tokenizer.Engine`). Reads no files.

Invariants: `encode(parse=False)` never returns a control token, whatever the text says; what a library fails on is a
CheckpointError.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..errors import UnsupportedModel
from .added_tokens import Added, Literals
from .guard import Watch, guarded, translated
from .steps import Step

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


class TokenizersEngine:
    """An instance of the `tokenizers` library.

    literals: tokens whose text is taken as it is (added tokens). where: what errors call its source. easy: as in
    `steps.Steps`. The library parses control tokens or not by a switch of the
    whole instance, hence the lock.
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
        where: str,
        easy: int | None = None,
    ) -> None:
        self.size = size
        self.controls = controls
        self.hidden = hidden
        self.space_prefix = space_prefix
        self._library = library
        self._literals = literals
        self._to_bytes = to_bytes
        self._lock = threading.Lock()
        self._found = Literals(controls)
        self._where, self._encode = where, self._whole if easy is None else Watch(self._batch, where, easy)

    @property
    def pattern(self) -> re.Pattern[str]:
        return self._found.pattern

    def encode(self, text: str, *, parse: bool, first: bool) -> list[int]:
        if not text:  # in which the library cannot replace the beginning of a line
            return []
        with self._lock:
            try:
                self._library.encode_special_tokens = not parse
                return self._encode(text)
            except BaseException as error:  # a panic is no Exception
                raise translated(error, self._where) from None

    def _whole(self, text: str) -> list[int]:
        return self._library.encode(text, add_special_tokens=False).ids

    def _batch(self, text: str) -> list[int]:
        # unlike `encode`, it lets other threads run: the one that waits for it
        return self._library.encode_batch([text], add_special_tokens=False)[0].ids

    def as_json(self) -> str:
        """The text of a tokenizer.json, as the library writes it."""
        return self._library.to_str()

    def token_text(self, token: int) -> str:
        text = self._literals.get(token)
        return text if text is not None else self._library.id_to_token(token) or ""

    def token_bytes(self, token: int) -> bytes:
        literal = self._literals.get(token)
        return literal.encode("utf-8", "replace") if literal is not None else self._to_bytes(self.token_text(token))


class SentencePieceEngine:
    """A sentencepiece model, with control tokens split off by us and the space in front of a text written by us.

    The library never reads a control piece from text, which is the rule for a user's text; `parse` splits first.
    own: literals that are split off any text. described: what is known of these and of controls. space_after: text
    after any of them has a space in front, as a text's beginning has. where: as in TokenizersEngine.
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
        where: str,
        writes_space: bool = True,
        own: Mapping[str, int] = MappingProxyType({}),
        described: Mapping[str, Added] = MappingProxyType({}),
        space_after: bool = True,
    ) -> None:
        self.size = len(pieces)
        self.controls = controls
        self.hidden = hidden
        self.space_prefix = space_prefix
        self._writes_space = space_prefix and writes_space
        self._library = library
        self._pieces = pieces
        self._literals = literals
        self._where, self._space_after = where, space_after
        self._own = Literals(own, described) if own else None
        self._found = Literals({**own, **controls}, described)
        self._controls = Literals(controls) if own else self._found

    @property
    def pattern(self) -> re.Pattern[str]:
        return self._controls.pattern

    def encode(self, text: str, *, parse: bool, first: bool) -> list[int]:
        literals = self._found if parse else self._own
        if literals is None:
            return self._plain(text, first)
        ids: list[int] = []
        for at, part, token in literals.split(text):
            if token is None:
                ids += self._plain(part, first if at == 0 else self._space_after)
            else:
                ids.append(token)
        return ids

    def _plain(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        try:
            return self._library.encode(" " + text if first and self._writes_space else text)
        except Exception as error:
            raise translated(error, self._where) from None

    def token_text(self, token: int) -> str:
        return self._literals.get(token, self._pieces[token])

    def token_bytes(self, token: int) -> bytes:
        literal = self._literals.get(token)
        return literal.encode("utf-8", "replace") if literal is not None else sentence_bytes(self._pieces[token])


def decoder_kind(steps: Sequence[Step], where: str) -> tuple[Callable[[str], bytes], bool]:
    """How decoding by these steps turns tokens into bytes, and whether it drops a text's first space.

    So streaming agrees with what the library would decode.
    """
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()
        return lambda text: byte_level_bytes(alphabet, text), False
    if not kinds & {"Metaspace", "Replace", "ByteFallback"}:
        raise UnsupportedModel(f"{where}: a decoder of kind {sorted(kinds) or 'none'} is not supported")
    strips = any(
        (step["type"] == "Strip" and step["content"] == " " and step["start"] > 0)
        or (step["type"] == "Metaspace" and step["prepend_scheme"] != "never")
        for step in steps
    )
    if "ByteFallback" in kinds:
        return sentence_bytes, strips
    return lambda text: text.replace("▁", " ").encode("utf-8", "replace"), strips


def load_sentencepiece(proto: bytes, where: str) -> Any:
    """A SentencePieceProcessor of a serialized model; CheckpointError when the library refuses it."""
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor()
    with guarded(where):
        library.LoadFromSerializedProto(proto)
    return library
