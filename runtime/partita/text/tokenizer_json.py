"""A tokenizer.json, judged and then built out of checked parts. The `tokenizers` library never reads the file itself.

Not here: single steps (`steps`), what other files say (`from_folder`). Given the file, the library would
panic or end the process where it is damaged, draw at random where training did (dropout), and cut or pad texts.
Invariants: sizes are bounded before anything is parsed; a kind of model, or a field of one, that is not implemented is
refused by name; a field of training is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from ..errors import CheckpointError, UnsupportedModel
from ..files.bounded import is_list, is_table, parse, read_bytes
from .added_tokens import MAX_ADDED, Added
from .guard import guarded, without_collector
from .steps import Step, Steps, read_steps
from .vocabulary import MAX_MERGES, MAX_TOKEN, MAX_TOKENS

FILE = 64 << 20
"""Bytes of a tokenizer.json, at most. The largest published ones have 35 MB."""
_MAX_TABLES = 1_500_000  # tables and lists in it; 515,000 are published, a merge each
_MAX_COMMAS = 4_000_000
_WORST_SCORE = 1e9
_MAX_UNIGRAM = 128  # characters: each is tried at each place of a text
_NOT_FOLLOWED = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}


@dataclass(frozen=True)
class LoadedJson:
    """library: a `tokenizers.Tokenizer`. size: one more than the largest id. decoders, easy: as in `Steps`. leads: the
    id that the file's post-processor puts before a text."""

    library: Any
    size: int
    decoders: list[Step]
    leads: int | None
    easy: int | None


def load_json(path: Path) -> LoadedJson:
    """The tokenizer of a tokenizer.json. CheckpointError, UnsupportedModel name the file and what is wrong with it."""
    where = str(path)
    with without_collector():
        document = read_document(path)
        try:
            steps, added = read_steps(document, where), _added(document)
            leads = _leading(document.get("post_processor"), where)
            model, size = _model(document.pop("model", None), where)
            with guarded(where):
                library = _library(model, steps, added)
                size = max(size, *(i + 1 for i in library.get_added_tokens_decoder()), 1)
            return LoadedJson(library, size, steps.decoders, leads, steps.easy)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(f"{where}: not a tokenizer's JSON ({reason})") from None


def read_document(path: Path) -> dict[str, Any]:
    """What a tokenizer.json holds, unjudged. CheckpointError for what is no JSON object of a possible size."""
    raw = read_bytes(path, FILE)
    if raw.count(b"[") + raw.count(b"{") > _MAX_TABLES or raw.count(b",") > _MAX_COMMAS:
        raise CheckpointError(f"{path}: more lists, tables or values than a tokenizer has")
    try:
        text = raw.decode()
        del raw  # the larger part of what parsing takes
        document = parse(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: not a tokenizer's JSON ({error})") from None
    if not is_table(document):
        raise CheckpointError(f"{path}: a JSON object is expected")
    return document


def _library(model: Any, steps: Steps, added: list[Added]) -> Any:
    library = _without_model(steps)
    library.model = model
    library.add_tokens([token.for_library() for token in added])
    return library


def _without_model(steps: Steps) -> Any:
    """The library's only way in for single steps is a file's text."""
    import tokenizers

    empty: dict[str, Any] = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return tokenizers.Tokenizer.from_str(json.dumps({**empty, **steps.as_json()}))


def _added(document: Mapping[str, Any]) -> list[Added]:
    entries: Any = document.get("added_tokens") or []
    if not is_list(entries) or len(entries) > MAX_ADDED:
        raise ValueError(f"added_tokens: a list of at most {MAX_ADDED} is expected")
    added = [Added.read(entry, normalized=not entry.get("special")) for entry in entries]
    if any(len(token.literal) > MAX_TOKEN for token in added):
        raise ValueError(f"an added token of more than {MAX_TOKEN} characters")
    return added


def _leading(processor: Any, where: str) -> int | None:
    """The id that a post-processor puts before a text."""
    waiting, found = [processor] if processor else [], None
    for step in waiting:  # which grows by the steps of sequences
        kind = step["type"]
        if kind == "Sequence":
            waiting += step["processors"]
        elif kind == "TemplateProcessing":
            for piece in step["single"][:1]:
                if "SpecialToken" in piece:
                    found = step["special_tokens"][piece["SpecialToken"]["id"]]["ids"][0]
        elif kind in ("RobertaProcessing", "BertProcessing"):
            found = step["cls"][1]
        elif kind != "ByteLevel":
            raise UnsupportedModel(f"{where}: a post_processor of kind {brief(kind)} is not supported")
    if found is not None and not isinstance(found, int):
        raise TypeError(f"post_processor: {brief(found)} is not an id")
    return found


# --- the model


def _model(model: Any, where: str) -> tuple[Any, int]:
    """The library's model and one more than its largest id."""
    if not is_table(model):
        raise TypeError("no model")
    kind = model.get("type")
    if kind is None:  # as older files have it
        kind = "Unigram" if is_list(model.get("vocab")) else "BPE" if "merges" in model else None
    if kind == "BPE":
        return _bpe(model, where)
    if kind == "Unigram":
        return _unigram(model, where)
    raise UnsupportedModel(f"{where}: a model of kind {brief(kind)} is not supported; BPE and Unigram are")


def _bpe(model: dict[str, Any], where: str) -> tuple[Any, int]:
    from tokenizers import models

    for name, usual in _NOT_FOLLOWED.items():
        if model.get(name) not in (None, usual):
            raise UnsupportedModel(f"{where}: a model with {name} {brief(model[name])} is not supported")
    vocabulary = model["vocab"]
    if not is_table(vocabulary) or len(vocabulary) > MAX_TOKENS:
        raise ValueError(f"vocab: a table of at most {MAX_TOKENS} tokens is expected")
    ids = vocabulary.values()
    last = -1 if set(map(type, ids)) - {int} else max(ids, default=0)
    if not 0 <= last < MAX_TOKENS or min(ids, default=0) < 0:
        raise ValueError(f"vocab: an id that is not an integer from 0 to {MAX_TOKENS - 1}")
    _short(vocabulary, MAX_TOKEN)
    merges = _merges(model.pop("merges"))
    flags = {name: _optional(model, name, bool, False) for name in ("fuse_unk", "byte_fallback", "ignore_merges")}
    with guarded(where):  # a merge of tokens that are not there
        found = models.BPE(vocabulary, merges, unk_token=_optional(model, "unk_token", str, None), **flags)
    return found, last + 1


def _merges(merges: Any) -> list[tuple[str, str]]:
    """Pairs; older files have them as "a b"."""
    if not is_list(merges) or len(merges) > MAX_MERGES:
        raise ValueError(f"merges: a list of at most {MAX_MERGES} is expected")
    pairs = (merge.split(" ") for merge in merges) if str in set(map(type, merges)) else merges
    return [(left, right) for left, right in pairs]


def _unigram(model: Mapping[str, Any], where: str) -> tuple[Any, int]:
    from tokenizers import models

    entries, unknown = model["vocab"], model.get("unk_id")
    if not is_list(entries) or not 0 < len(entries) <= MAX_TOKENS:
        raise ValueError(f"vocab: a list of 1 to {MAX_TOKENS} tokens is expected")
    vocabulary = [(token, float(score)) for token, score in entries]
    if not all(math.isfinite(score) and abs(score) < _WORST_SCORE for _, score in vocabulary):
        raise ValueError("vocab: non-finite score")
    if type(unknown) is not int or not 0 <= unknown < len(vocabulary):
        raise ValueError(f"unk_id: {brief(unknown)} is none of its tokens, and text of other letters needs one")
    _short((token for token, _ in vocabulary), _MAX_UNIGRAM)
    by_bytes = _optional(model, "byte_fallback", bool, False)
    with guarded(where):
        return models.Unigram(vocabulary, unknown, by_bytes), len(vocabulary)


def _short(tokens: Iterable[str], most: int) -> None:
    if max(map(len, tokens), default=0) > most:
        raise ValueError(f"vocab: a token of more than {most} characters")


def _optional(model: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = default if model.get(name) is None else model[name]
    if value is not default and not isinstance(value, kind):
        raise TypeError(f"{name}: {brief(value)} is not of its kind")
    return value
