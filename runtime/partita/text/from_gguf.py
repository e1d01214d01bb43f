"""A tokenizer from a GGUF file's metadata. Opens no file: the metadata is a mapping, keys as in the file.

Three kinds exist for the models we run: "gpt2" (byte-level BPE with merges), "gemma4" (BPE with merges over text whose
spaces are U+2581, with tokens for bytes that no other has) and "llama" (sentencepiece with scores). Each is rebuilt in
the library that defines it, so ids are those the model was trained with.
Invariant: what does not fit together (counts, ids, types) is a CheckpointError, found before the library sees it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, UnsupportedModel
from .added_tokens import MAX_ADDED, Added
from .engines import (
    SentencePieceEngine,
    TokenizersEngine,
    byte_alphabet,
    byte_level_bytes,
    is_marker,
    load_sentencepiece,
    sentence_bytes,
)
from .guard import guarded, without_collector
from .pretokenizers import GEMMA4, Pretokenizer, find
from .sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Model, bpe_specs, write
from .vocabulary import END_TOKENS, MAX_MERGES, MAX_TOKEN, MAX_TOKENS, Engine, Facts

_WHERE = "GGUF vocabulary"  # as errors call it
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "mask": "mask"}
"""What templates call special tokens, and what GGUF does."""
_PHI3_NAME = re.compile(r"(?<![a-z])phi[ _-]?3", re.IGNORECASE)
_PHI3_TOKENS = frozenset({"<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<|placeholder1|>"})
_PHI3_PLAIN = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def read_metadata(metadata: Mapping[str, Any]) -> tuple[Engine, Facts]:
    """Engine and facts of a GGUF vocabulary."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise CheckpointError("GGUF: no tokenizer.ggml.model: the file carries no vocabulary")
    if kind not in ("gpt2", "gemma4", "llama"):
        raise UnsupportedModel(f"tokenizer.ggml.model: a vocabulary of kind {kind!r} is not supported")
    pre = find(str(metadata.get("tokenizer.ggml.pre") or "default")) if kind == "gpt2" else None
    pre = GEMMA4 if kind == "gemma4" else pre
    try:
        with without_collector():
            tokens = _tokens(metadata)
            types = _types(metadata, tokens)
            facts = _facts(metadata, tokens, adds_bos=pre is None or pre.adds_bos)
            engine = _merged(metadata, tokens, types, pre) if pre else _sentencepiece(metadata, tokens, types)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:  # a value of another type than its key's
        reason = " ".join(str(error).split())
        raise CheckpointError(f"tokenizer.ggml: a value has an unexpected form ({reason})") from error
    return engine, facts


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None or not 0 < len(tokens) <= MAX_TOKENS:
        raise CheckpointError("tokenizer.ggml.tokens: missing, empty or too long")
    seen: set[str] = set()
    result: list[str] = []
    for i, token in enumerate(tokens):
        text = token.decode("utf-8", "replace") if isinstance(token, bytes) else token
        if not isinstance(text, str):
            raise CheckpointError(f"tokenizer.ggml.tokens: entry {i} is not a string")
        if not text or text in seen:  # a slot that nothing can reach, yet its id counts
            text = f"[unreachable_{i}]"
        seen.add(text)
        result.append(text)
    if max(map(len, result)) > MAX_TOKEN:
        raise CheckpointError(f"tokenizer.ggml.tokens: a token of more than {MAX_TOKEN} characters")
    return result


def _types(metadata: Mapping[str, Any], tokens: list[str]) -> list[int]:
    """Type of every token; markers count as control tokens whatever the file says of them."""
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        types = [CONTROL if is_marker(token) else NORMAL for token in tokens]
    if len(types) != len(tokens):
        raise CheckpointError(f"tokenizer.ggml.token_type: {len(types)} types for {len(tokens)} tokens")
    result = [int(kind) for kind in types]
    if not all(NORMAL <= kind <= BYTE for kind in set(result)):
        raise CheckpointError("tokenizer.ggml.token_type: a type outside 1..6")
    return result


def _id(metadata: Mapping[str, Any], name: str, size: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return int(value) if value is not None and 0 <= int(value) < size else None


def _facts(metadata: Mapping[str, Any], tokens: list[str], *, adds_bos: bool) -> Facts:
    size = len(tokens)
    named = {f"{name}_token": _id(metadata, key, size) for name, key in _NAMED.items()}
    stops = {_id(metadata, name, size) for name in ("eos", "eot", "eom")} - {None}
    return Facts(
        bos_id=_id(metadata, "bos", size),
        eos_id=_id(metadata, "eos", size),
        stop_ids=frozenset(stop for stop in stops if stop is not None),
        adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos)),
        chat_template=_text(metadata, "tokenizer.chat_template"),
        tool_template=_text(metadata, "tokenizer.chat_template.tool_use"),
        special_tokens={name: tokens[i] for name, i in named.items() if i is not None},
    )


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) and value else None


def _controls(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int]
) -> tuple[dict[str, int], frozenset[int]]:
    """Literals that a user's text must not become, and ids that decoding hides (markers the file calls user-defined,
    such as `<|tool_call|>`, stay visible: programs look for them in the text)."""
    named = {_id(metadata, name, len(tokens)) for name in ("bos", "eos", "eot", "eom")}
    controls: dict[str, int] = {}
    hidden: set[int] = set()
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == BYTE or (kind == NORMAL and i not in named and token not in END_TOKENS):
            continue
        if kind == CONTROL or i in named or (kind != UNKNOWN and is_marker(token)):
            controls[token] = i
        if kind in (CONTROL, UNKNOWN, UNUSED) or i in named or (token in controls and token in END_TOKENS):
            hidden.add(i)
    return controls, frozenset(hidden)


def neighbours(metadata: Mapping[str, Any], controls: Mapping[str, int]) -> tuple[dict[str, Added], bool]:
    """(control tokens to which white space beside them belongs, whether text after a control token has a space in
    front) of a sentencepiece vocabulary.

    No key says either. By llama.cpp's rule it is Phi-3's tokens that swallow white space after them, as its
    tokenizer_config.json has it; llama.cpp knows the model by `general.name`, here its tokens tell it too. The space is
    written after every control token, as by llama.cpp and Phi-3's own tokenizer.json, but for Phi-3's vocabulary in
    another architecture: there transformers' tokenizer of that architecture follows `legacy: false` of Phi-3's config.
    """
    named = _PHI3_NAME.search(str(metadata.get("general.name") or ""))
    if not (named or controls.keys() >= _PHI3_TOKENS):
        return {}, True
    swallow = {name: Added(name, special=True, rstrip=True) for name in controls if name not in _PHI3_PLAIN}
    return swallow, metadata.get("general.architecture") == "phi3"


def _merged(metadata: Mapping[str, Any], tokens: list[str], types: list[int], pre: Pretokenizer) -> TokenizersEngine:
    controls, hidden = _controls(metadata, tokens, types)
    own = {i: tokens[i] for i, kind in enumerate(types) if kind == USER_DEFINED and tokens[i] not in controls}
    if len(own) + len(controls) > MAX_ADDED:
        raise CheckpointError(f"tokenizer.ggml.token_type: more than {MAX_ADDED} control and user-defined tokens")
    merges = metadata.get("tokenizer.ggml.merges", ())
    if len(merges) > MAX_MERGES:
        raise CheckpointError(f"tokenizer.ggml.merges: more than {MAX_MERGES}")
    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    if not pairs or set(map(len, pairs)) != {2}:
        raise CheckpointError("tokenizer.ggml.merges: missing, or an entry that is not two tokens")
    with guarded("tokenizer.ggml.merges"):  # a merge of tokens that are not there
        library = (
            _spaced_library(metadata, tokens, pairs, pre) if pre is GEMMA4 else _byte_level_library(tokens, pairs, pre)
        )
        library.add_tokens([Added(token).for_library() for token in own.values()])
        library.add_special_tokens([Added(token, special=True).for_library() for token in controls])
    alphabet = byte_alphabet()
    return TokenizersEngine(
        library,
        controls=controls,
        literals={**own, **{i: token for token, i in controls.items()}},
        hidden=hidden,
        to_bytes=sentence_bytes if pre is GEMMA4 else lambda text: byte_level_bytes(alphabet, text),
        space_prefix=False,
        size=len(tokens),
        where=_WHERE,
    )


def _byte_level_library(tokens: list[str], merges: list[Any], pre: Pretokenizer) -> Any:
    import tokenizers
    from tokenizers import Regex, models, normalizers, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre.whole_words))
    if pre.nfc:
        library.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in pre.expressions]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    return library


def _spaced_library(metadata: Mapping[str, Any], tokens: list[str], merges: list[Any], pre: Pretokenizer) -> Any:
    """Of a vocabulary that writes spaces as U+2581, in which newlines never join other text."""
    import tokenizers
    from tokenizers import Regex, models, normalizers, pre_tokenizers

    unknown = _id(metadata, "unknown", len(tokens))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            merges,
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    library.normalizer = normalizers.Replace(" ", "▁")
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in pre.expressions]
    library.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return library


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> SentencePieceEngine:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError("tokenizer.ggml.scores: missing, or not one score for every token")
    controls, hidden = _controls(metadata, tokens, types)
    for i in controls.values():
        types[i] = CONTROL
    _one_unknown(metadata, tokens, types)
    # user-defined tokens are written with real spaces in GGUF files, with U+2581 in sentencepiece's
    pieces = [
        token.replace(" ", "▁") if kind == USER_DEFINED else token for token, kind in zip(tokens, types, strict=True)
    ]
    if len(set(pieces)) != len(pieces):
        raise CheckpointError("tokenizer.ggml.tokens: two tokens differ only in their spaces")
    values = [float(score) for score in scores]
    if not all(map(math.isfinite, values)):
        raise CheckpointError("tokenizer.ggml.scores: non-finite score")
    model = Model(pieces, values, types, *bpe_specs(types))
    described, space_after = neighbours(metadata, controls)
    return SentencePieceEngine(
        load_sentencepiece(write(model, space_prefix=False), _WHERE),  # the engine writes that space
        pieces,
        controls=controls,
        literals={i: tokens[i] for i, kind in enumerate(types) if kind in (CONTROL, UNKNOWN, USER_DEFINED)},
        hidden=hidden,
        space_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        where=_WHERE,
        described=described,
        space_after=space_after,
    )


def _one_unknown(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> None:
    """The library wants exactly one unknown token: the one that the file names, else the first of that type."""
    found = [i for i, kind in enumerate(types) if kind == UNKNOWN]
    named = _id(metadata, "unknown", len(tokens))
    chosen = named if named is not None else next(iter(found), None)
    if chosen is None:
        raise CheckpointError("tokenizer.ggml.unknown_token_id: a sentencepiece vocabulary needs an unknown token")
    for i in found:
        types[i] = UNUSED
    types[chosen] = UNKNOWN
