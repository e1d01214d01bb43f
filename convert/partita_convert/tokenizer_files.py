"""Tokenizer files out: copied from a folder, or rebuilt from a GGUF file's vocabulary as tokenizer.json.

Invariant: the ids that the written tokenizer gives are those of the source's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partita.checkpoint.base import Checkpoint
from partita.errors import CheckpointError
from partita.files.bounded import find, read_bytes
from partita.text.added_tokens import Added
from partita.text.engines import TokenizersEngine
from partita.text.from_folder import TOOL_TEMPLATE
from partita.text.from_gguf import neighbours
from partita.text.load import load_tokenizer
from partita.text.tokenizer import Tokenizer
from partita.text.tokenizer_json import FILE

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    TOOL_TEMPLATE,
)
_SLOW = ("vocab.json", "merges.txt")  # what others read where there is no tokenizer.json
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # sentencepiece's types, as GGUF keeps them
_SPACE = "▁"  # sentencepiece's letter for a space
_DECODERS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "gemma4": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
}


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the tokenizer's files into `folder`."""
    if checkpoint.metadata is None:
        _copy(checkpoint.path, folder)
        return
    metadata, tokenizer = checkpoint.metadata, load_tokenizer(checkpoint)
    kind = metadata.get("tokenizer.ggml.model")
    library = _sentencepiece(metadata, tokenizer) if kind == "llama" else _merged(tokenizer, _DECODERS[str(kind)])
    if tokenizer.adds_bos:
        library["post_processor"] = _bos_first(tokenizer)
    _write_json(folder / "tokenizer.json", library)
    _write_json(folder / "tokenizer_config.json", _settings(checkpoint, tokenizer))
    if tokenizer.chat_template:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    if tokenizer.tool_template:
        (folder / TOOL_TEMPLATE).parent.mkdir(exist_ok=True)
        (folder / TOOL_TEMPLATE).write_text(tokenizer.tool_template, encoding="utf-8")


def _copy(source: Path, folder: Path) -> None:
    """The files that somebody reads. CheckpointError for a link out of the source: what it leads to is not the model's,
    and would be published with it."""
    places = {name: find(source, name) for name in _FILES}
    if places[_FILES[0]] is None:
        places |= {name: find(source, name) for name in _SLOW}
    for name, place in places.items():
        if place is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(read_bytes(place, FILE))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _settings(checkpoint: Checkpoint, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json."""
    metadata = checkpoint.metadata or {}
    tokens = metadata["tokenizer.ggml.tokens"]
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {field: metadata.get(f"tokenizer.ggml.{key}_token_id") for field, key in named.items()}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {field: tokens[i] for field, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}
    settings |= {"add_bos_token": tokenizer.adds_bos, "clean_up_tokenization_spaces": False}
    settings["model_max_length"] = checkpoint.config["max_position_embeddings"]
    if tokenizer.chat_template:
        settings["chat_template"] = tokenizer.chat_template
    return settings


def _bos_first(tokenizer: Tokenizer) -> dict[str, Any]:
    """The post-processor that puts BOS in front."""
    bos = {"SpecialToken": {"id": tokenizer.bos_token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, {"SpecialToken": {"id": tokenizer.bos_token, "type_id": 1}}, second],
        "special_tokens": {
            tokenizer.bos_token: {
                "id": tokenizer.bos_token,
                "ids": [tokenizer.bos_id],
                "tokens": [tokenizer.bos_token],
            }
        },
    }


def _merged(tokenizer: Tokenizer, decoder: Mapping[str, Any]) -> dict[str, Any]:
    """The BPE with merges that the runtime built from the file, with the decoder that the runtime does not need."""
    engine = tokenizer.engine
    if not isinstance(engine, TokenizersEngine):
        raise CheckpointError("the vocabulary has no form as tokenizer.json")
    library = json.loads(engine.as_json())
    library["decoder"] = decoder
    return library


def _sentencepiece(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """A sentencepiece BPE vocabulary as the `tokenizers` library reads it: merges in the order of their scores."""
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        raise CheckpointError("the GGUF metadata lacks tokenizer.ggml.token_type, so its tokenizer cannot be written")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    described, space_after = neighbours(metadata, tokenizer.controls)
    added = [
        _added(i, described.get(tokens[i]) or Added(tokens[i], special=types[i] != _USER_DEFINED))
        for i in range(len(tokens))
        if types[i] in (_CONTROL, _UNKNOWN, _USER_DEFINED)
    ]
    normalizers, first, decoders = _spaces(
        prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)), after_controls=space_after
    )
    unknown = next((tokens[i] for i, kind in enumerate(types) if kind == _UNKNOWN), None)
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": _BYTE in types,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": _merges(tokens, scores, types),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": first,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _spaces(
    *, prefix: bool, after_controls: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, list[dict[str, Any]]]:
    """(normalizers, pre-tokenizer, decoders) that write spaces as `_SPACE` and back.

    prefix: one is put in front of the text; after_controls: and of what follows each control token.
    """
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    first = None
    if prefix and after_controls:
        normalizers.insert(0, {"type": "Prepend", "prepend": _SPACE})
    elif prefix:  # before a text alone
        first = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return normalizers, first, decoders


def _added(token_id: int, token: Added) -> dict[str, Any]:
    flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return {"id": token_id, "content": token.literal, **flags}


def _merges(tokens: list[str], scores: Sequence[float], types: Sequence[int]) -> list[list[str]]:
    """Every way of joining two normal pieces into a third, best score of the result first.

    sentencepiece joins, of all neighbours whose join is a piece, the one of highest score; a list of merges in that
    order, ties broken by the parts' own ids, is the same rule.
    """
    ids = {token: i for i, token in enumerate(tokens) if types[i] == _NORMAL}
    found: list[tuple[float, int, int]] = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[i], left, right))
    found.sort()
    return [[tokens[left], tokens[right]] for _, left, right in found]
