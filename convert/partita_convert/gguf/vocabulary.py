"""A folder's vocabulary in the two forms that GGUF has: byte-level BPE with merges, and sentencepiece with scores.

Not here: ids by role and the check that both sides agree (`tokenizer`). Invariant: a step of tokenizer.json that
neither form can say (a normalizer, a pre-tokenizer, another kind of model) is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from partita.errors import CheckpointError, UnsupportedModel
from partita.files.bounded import find, read_bytes
from partita.text import sentencepiece_model as proto
from partita.text.added_tokens import Added
from partita.text.from_folder import Configs
from partita.text.pretokenizers import Pretokenizer, gpt2, name_of
from partita.text.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from partita.text.tokenizer_json import read_document

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_VISIBLE = frozenset(
    ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
)
"""Control tokens of Gemma 4 that its GGUF files call user-defined: readers look for them in a reply's text."""
_BPE = 2  # sentencepiece's TrainerSpec.ModelType


@dataclass
class Vocabulary:
    """tokens, types, scores: by id. kind: "gpt2", "gemma4" or "llama". pre: of the first. merges: of the first two.
    space_prefix: of the last two."""

    kind: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    pre: str
    space_prefix: bool

    def pad(self, size: int) -> None:
        """Slots that nothing can reach, up to the embedding's rows."""
        missing = range(len(self.tokens), size)
        self.tokens += [f"[PAD{i}]" for i in missing]
        self.types += [UNUSED] * len(missing)
        self.scores += [-10000.0] * len(missing)


def read_vocabulary(folder: Path, *, merged: bool = False) -> Vocabulary:
    """From tokenizer.json, with the scores of a tokenizer.model beside it, or from tokenizer.model alone. merged:
    whether a vocabulary with merges and spaces of its own becomes "gemma4", which keeps the merges.

    UnsupportedModel: something that GGUF cannot say. CheckpointError: damaged or missing files.
    """
    configs = Configs.read(folder)
    pieces = None
    if path := find(folder, "tokenizer.model"):
        pieces = proto.read(read_bytes(path, proto.FILE), str(path))
    try:
        if path := find(folder, "tokenizer.json"):
            return _from_json(read_document(path), configs, pieces, merged)
        if pieces is not None:
            vocabulary = _from_pieces(pieces, *proto.space_rules(pieces.normalizer))
            _add(vocabulary, configs.added(), configs)
            return vocabulary
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: a tokenizer file has an unexpected form ({reason})") from error
    raise CheckpointError(f"{folder}: no tokenizer.json and no tokenizer.model, one of them is needed")


def _from_json(library: Mapping[str, Any], configs: Configs, pieces: proto.Model | None, merged: bool) -> Vocabulary:
    model = library["model"]
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise _unsayable(f"a model of type {model.get('type')!r}")
    added = {int(entry["id"]): Added.read(entry) for entry in library["added_tokens"]}
    added |= {i: token for i, token in configs.added().items() if i not in added}
    kinds = {step["type"] for key in ("pre_tokenizer", "decoder") for step in _steps(library.get(key))}
    if "ByteLevel" in kinds:
        vocabulary = _byte_level(library, model)
    elif merged:
        vocabulary = _spaced(library, model)
    elif pieces is not None and _same_pieces(pieces, model["vocab"]):
        vocabulary = _from_pieces(pieces, _writes_space(library))
    else:
        vocabulary = _scored(model, _writes_space(library))
    _add(vocabulary, added, configs)
    return vocabulary


def _unsayable(what: str) -> UnsupportedModel:
    return UnsupportedModel(f"tokenizer.json: GGUF cannot express {what}; write `to` mlx or huggingface", field="to")


def _steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, sequences laid flat."""
    if step is None:
        return
    inner = next((step[key] for key in ("normalizers", "pretokenizers", "decoders") if key in step), None)
    if inner is None:
        yield step
    for part in inner or ():
        yield from _steps(part)


def _by_id(vocabulary: Mapping[str, int]) -> list[str]:
    tokens = {i: token for token, i in vocabulary.items()}
    return [tokens.get(i, f"[PAD{i}]") for i in range(max(tokens) + 1)] if tokens else []


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges are "a b" in older files and ["a", "b"] in newer ones."""
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if not all(len(merge) == 2 for merge in merges):
        raise _unsayable("a merge that is not of two tokens")
    return merges  # pyright: ignore[reportReturnType]


def _add(vocabulary: Vocabulary, added: Mapping[int, Added], configs: Configs) -> None:
    """Tokens that stand outside the segmentation: control tokens, and literals that are always taken whole."""
    vocabulary.pad(max(added, default=-1) + 1)
    special = configs.special_literals()
    for i, token in added.items():
        if vocabulary.types[i] == UNKNOWN:
            continue
        literal, control = token.literal, token.special or token.literal in special
        visible = vocabulary.kind == "gemma4" and literal in _VISIBLE
        vocabulary.types[i] = CONTROL if control and not visible else USER_DEFINED
        # GGUF's readers look for such a literal in the text itself
        vocabulary.tokens[i] = literal.replace(_SPACE, " ") if vocabulary.kind == "llama" and not control else literal


# --- with merges


def _byte_level(library: Mapping[str, Any], model: Mapping[str, Any]) -> Vocabulary:
    pairs = _pairs(model)
    if any(" " in part for pair in pairs for part in pair):
        raise _unsayable("a merge of tokens with spaces in them")
    tokens = _by_id(model["vocab"])
    types = [NORMAL if token in model["vocab"] else UNUSED for token in tokens]
    pre = _pre(library, model)
    return Vocabulary("gpt2", tokens, types, [0.0] * len(tokens), [" ".join(pair) for pair in pairs], pre, False)


def _spaced(library: Mapping[str, Any], model: Mapping[str, Any]) -> Vocabulary:
    """Without a space in front of a text; bytes have tokens of their own."""
    if _writes_space(library) or not model.get("byte_fallback"):
        raise _unsayable("a vocabulary that writes a space in front of a text, or has no bytes, for this model")
    scored = _scored(model, False)
    return replace(scored, kind="gemma4", merges=[" ".join(pair) for pair in _pairs(model)])


def _pre(library: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """The name of the pre-tokenizer, found by its expressions."""
    normalizers = [step["type"] for step in _steps(library.get("normalizer"))]
    if set(normalizers) - {"NFC"}:
        raise _unsayable(f"the normalizer {normalizers}")
    expressions = tuple(_expressions(library.get("pre_tokenizer")))
    whole, nfc = bool(model.get("ignore_merges")), bool(normalizers)
    name = name_of(Pretokenizer(expressions, whole, nfc=nfc))
    if name is None and (other := name_of(Pretokenizer(expressions, not whole, nfc=nfc))) and _all_merge(model):
        return other  # merging finds every token, so that taking words whole changes nothing
    if name is None:
        raise _unsayable(f"a pre-tokenizer with the expressions {' then '.join(expressions)[:300]}")
    return name


def _expressions(pre_tokenizer: Mapping[str, Any] | None) -> Iterator[str]:
    """The regular expressions that split a text, in order."""
    for step in _steps(pre_tokenizer):
        match step:
            case {"type": "Split", "pattern": {"Regex": expression}} if _is_plain(step):
                yield expression
            case {"type": "Digits"}:
                yield r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
            case {"type": "ByteLevel"} if not step.get("add_prefix_space"):
                if step.get("use_regex", True):
                    yield gpt2()
            case _:
                raise _unsayable(f"the pre-tokenizer {json.dumps(step, ensure_ascii=False)[:300]}")


def _is_plain(step: Mapping[str, Any]) -> bool:
    """Matches and gaps are both kept, or matches are all there is."""
    return (step["behavior"], bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))


def _all_merge(model: Mapping[str, Any]) -> bool:
    """Whether merging alone turns the text of every token into that token."""
    import tokenizers
    from tokenizers import models

    vocabulary = model["vocab"]
    library = tokenizers.Tokenizer(models.BPE(vocabulary, _pairs(model)))
    tokens = [token for token in vocabulary if len(token) > 1]
    return all(
        found.ids == [vocabulary[token]] for token, found in zip(tokens, library.encode_batch(tokens), strict=True)
    )


# --- sentencepiece


def _from_pieces(pieces: proto.Model, space_prefix: bool, shortens: bool = False) -> Vocabulary:
    if proto.trained_as(pieces.trainer) != _BPE:
        raise UnsupportedModel(
            "tokenizer.model: a vocabulary of unigrams is not written as GGUF; write `to` mlx instead", field="to"
        )
    if shortens:
        raise UnsupportedModel(
            "tokenizer.model: it shortens runs of spaces, which GGUF cannot express; write `to` mlx instead", field="to"
        )
    return Vocabulary(
        "llama", list(pieces.pieces), list(pieces.types), list(pieces.scores), [], "default", space_prefix
    )


def _same_pieces(pieces: proto.Model, vocabulary: Mapping[str, int]) -> bool:
    """Whether tokenizer.model is the vocabulary of tokenizer.json; some folders have one of another model."""
    return all(vocabulary.get(piece) == i for i, piece in enumerate(pieces.pieces) if pieces.types[i] == NORMAL)


def _writes_space(library: Mapping[str, Any]) -> bool:
    """Whether a space is put in front of a text. Refuses steps other than sentencepiece's own."""
    found = False
    for step in (*_steps(library.get("normalizer")), *_steps(library.get("pre_tokenizer"))):
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                found = True
            case {"type": "Metaspace", "replacement": "▁"} if not step.get("split", True):
                found |= step.get("prepend_scheme", "always") != "never"
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass
            case {"type": "Split", "pattern": {"String": " "}}:
                pass  # there are no spaces left to split at
            case _:
                raise _unsayable(f"the step {json.dumps(step, ensure_ascii=False)[:300]}")
    return found


def _scored(model: Mapping[str, Any], space_prefix: bool) -> Vocabulary:
    """A sentencepiece vocabulary from merges: the earlier a token is made, the higher its score."""
    if not model.get("byte_fallback") and not any(_SPACE in token for token in model["vocab"]):
        raise _unsayable("a vocabulary that is neither of bytes nor sentencepiece's")
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(_pairs(model)):
        scores.setdefault(left + right, -float(rank))
    tokens = _by_id(model["vocab"])
    types = [_type(token, model) for token in tokens]
    lowest = -float(len(scores))
    return Vocabulary(
        "llama", tokens, types, [scores.get(token, lowest) for token in tokens], [], "default", space_prefix
    )


def _type(token: str, model: Mapping[str, Any]) -> int:
    if token not in model["vocab"]:
        return UNUSED
    if token == model.get("unk_token"):
        return UNKNOWN
    return BYTE if _BYTE.fullmatch(token) else NORMAL
