"""A tokenizer from a model folder in the layout of the Hub. Runs nothing that the folder brings.

The vocabulary is tokenizer.json, else tokenizer.model; the conventions (BOS, ends of turn, template) are gathered from
tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and the template files.
Invariant: whatever is damaged is named in a CheckpointError; nothing is guessed from a missing file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files.bounded import TEMPLATE, find, is_list, is_table, read_bytes, read_object, read_text
from . import sentencepiece_model as proto
from .added_tokens import MAX_ADDED, Added
from .engines import SentencePieceEngine, TokenizersEngine, decoder_kind, is_marker, load_sentencepiece
from .guard import guarded, without_collector
from .tokenizer_json import load_json
from .vocabulary import END_TOKENS, MAX_TOKEN, Engine, Facts

TOOL_TEMPLATE = "additional_chat_templates/tool_use.jinja"
"""Where transformers keeps the chat template for conversations with tools, if that is another one."""
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Configs:
    """The JSON files beside the vocabulary, {} where one is missing."""

    folder: Path
    tokenizer: dict[str, Any]
    specials: dict[str, Any]
    generation: dict[str, Any]
    model: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Configs:
        names = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
        return cls(folder, *(_json(folder, name) for name in names))

    def role(self, name: str) -> str | None:
        """Literal of a special token by its role; the tokenizer's own config decides, a null there too."""
        source = self.tokenizer if name in self.tokenizer else self.specials
        return _literal(source.get(name))

    def named_tokens(self) -> dict[str, str | None]:
        """Literals of special tokens by the names that templates know them under: the roles, and a model's own."""
        named: dict[str, Any] = {}
        for source in (self.specials, self.tokenizer):
            named |= {key: value for key, value in source.items() if key.endswith("_token")}
            for key in ("extra_special_tokens", "model_specific_special_tokens"):
                named |= source[key] if is_table(source.get(key)) else {}
        return {name: _literal(value) for name, value in named.items()}

    def special_literals(self) -> frozenset[str]:
        """Every token that these files call special."""
        found = {self.role(name) for name in _ROLES}
        for source in (self.tokenizer, self.specials):
            for key in ("additional_special_tokens", "extra_special_tokens"):
                listed: Any = source.get(key) or ()
                items: Iterable[Any] = listed.values() if is_table(listed) else listed
                found |= {_literal(item) for item in items}
        return frozenset(literal for literal in found if literal)

    def added(self) -> dict[int, Added]:
        """Tokens added to the vocabulary, by id."""
        result = {int(i): Added(literal) for literal, i in _json(self.folder, "added_tokens.json").items()}
        entries: Mapping[str, Any] = self.tokenizer.get("added_tokens_decoder") or {}
        for i, entry in entries.items():
            result[int(i)] = Added.read(entry)
        if len(result) > MAX_ADDED or any(len(token.literal) > MAX_TOKEN for token in result.values()):
            raise ValueError(f"more than {MAX_ADDED} added tokens, or one of more than {MAX_TOKEN} characters")
        return dict(sorted(result.items()))

    def ids(self, name: str) -> Iterator[int]:
        """Ids that config.json and generation_config.json give for `eos_token_id` or `bos_token_id`."""
        text: Mapping[str, Any] = self.model.get("text_config") or {}
        for source in (self.generation, self.model, text):
            value = source.get(name)
            yield from (int(i) for i in (value if is_list(value) else [value]) if i is not None)


def read_folder(folder: Path) -> tuple[Engine, Facts]:
    """Engine and facts of a model folder."""
    configs = Configs.read(folder)
    try:
        if path := find(folder, "tokenizer.json"):
            return _from_json(path, configs)
        if path := find(folder, "tokenizer.model"):
            return _from_sentencepiece(path, configs)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: a tokenizer config has an unexpected form ({reason})") from error
    raise CheckpointError(f"{folder}: no tokenizer.json and no tokenizer.model, one of them is needed")


def _from_json(path: Path, configs: Configs) -> tuple[Engine, Facts]:
    loaded = load_json(path)
    library = loaded.library
    named, beside = configs.special_literals(), configs.added()
    with guarded(str(path)):
        _add(library, beside, path)
        controls, hidden = _mark_controls(library, named)
        added = library.get_added_tokens_decoder()
    size = max(loaded.size, *(i + 1 for i in added), 1)
    to_bytes, space_prefix = decoder_kind(loaded.decoders, str(path))
    facts = _facts(configs, library.token_to_id, size)
    # what the file's own post-processor would do, unless the config says it
    by_itself = facts.bos_id is not None and loaded.leads == facts.bos_id
    engine = TokenizersEngine(
        library,
        controls=controls,
        literals={i: token.content for i, token in added.items()},
        hidden=hidden,
        to_bytes=to_bytes,
        space_prefix=space_prefix,
        size=size,
        where=str(path),
        easy=loaded.easy,
    )
    return engine, replace(facts, adds_bos=_stated_bos(configs, by_itself))


def _add(library: Any, added: Mapping[int, Added], path: Path) -> None:
    """Put tokens into `library` that only the files beside it name."""
    for i, token in added.items():
        if library.token_to_id(token.literal) is None:
            library.add_tokens([token.for_library()])
            if library.token_to_id(token.literal) != i:
                raise CheckpointError(f"{path}: the added token {token.literal!r} cannot have the id {i} given to it")


def _mark_controls(library: Any, named: frozenset[str]) -> tuple[dict[str, int], frozenset[int]]:
    """Controls and hidden ids; tokens that only their form or a config makes control tokens are marked in `library`."""
    controls: dict[str, int] = {}
    hidden: set[int] = set()
    for i, token in library.get_added_tokens_decoder().items():
        special = token.special or token.content in named
        if special or is_marker(token.content):
            controls[token.content] = i
            if special or token.content in END_TOKENS:
                hidden.add(i)
            if not token.special:
                token.special = True
                library.add_special_tokens([token])
    return controls, frozenset(hidden)


def _from_sentencepiece(path: Path, configs: Configs) -> tuple[Engine, Facts]:
    with without_collector():
        model = proto.read(read_bytes(path, proto.FILE), str(path))
    added = configs.added()
    special = configs.special_literals() | {token.literal for token in added.values() if token.special}
    for i, token in added.items():
        if i < len(model.pieces):
            continue
        if i > len(model.pieces):
            raise CheckpointError(
                f"{path}: the added token {token.literal!r} has the id {i}, {len(model.pieces)} is next"
            )
        model.add(token.literal.replace(" ", "▁"), 0.0, proto.CONTROL if token.special else proto.USER_DEFINED)
    # whether text after an added token has a space in front, and a text that begins with one; files from before the
    # flag have it so with control tokens alone
    legacy = configs.tokenizer.get("legacy")
    controls: dict[str, int] = {}
    hidden: set[int] = set()
    own: dict[str, int] = {}
    for i, (piece, kind) in enumerate(zip(model.pieces, model.types, strict=True)):
        literal = added[i].literal if i in added else piece
        marked = kind in (proto.NORMAL, proto.USER_DEFINED) and (literal in special or is_marker(literal))
        if marked or kind == proto.CONTROL:
            controls[literal], model.types[i] = i, proto.CONTROL
        elif kind == proto.USER_DEFINED and i in added and (legacy is not None or added[i].has_neighbours):
            own[literal], model.types[i] = i, proto.CONTROL  # which the library never finds: the engine does
        if kind in (proto.CONTROL, proto.UNKNOWN, proto.UNUSED) or (marked and literal in special | END_TOKENS):
            hidden.add(i)
    space_prefix, shortens = proto.space_rules(model.normalizer)
    index = {piece: i for i, piece in enumerate(model.pieces)}
    engine = SentencePieceEngine(
        load_sentencepiece(proto.write(model, space_prefix=space_prefix and shortens), str(path)),
        model.pieces,
        controls=controls,
        literals={i: token.literal for i, token in added.items()} | {i: literal for literal, i in controls.items()},
        hidden=frozenset(hidden),
        space_prefix=space_prefix,
        where=str(path),
        writes_space=not shortens,  # a space of ours would be shortened away: there the library writes it
        own=own,
        described={token.literal: token for token in added.values()},
        space_after=legacy is not False,
    )
    return engine, replace(_facts(configs, index.get, len(index)), adds_bos=_stated_bos(configs, True))


def _stated_bos(configs: Configs, otherwise: bool) -> bool:
    stated = configs.tokenizer.get("add_bos_token")
    return stated if isinstance(stated, bool) else otherwise


def _facts(configs: Configs, find: Callable[[str], int | None], size: int) -> Facts:
    """Ids by role. Literals come first for BOS; every source counts for the ends of a turn."""
    bos, eos = configs.role("bos_token"), configs.role("eos_token")
    bos_id = find(bos) if bos is not None else None
    if bos is None and "bos_token" not in configs.tokenizer:
        bos_id = next((i for i in configs.ids("bos_token_id") if 0 <= i < size), None)
    stops = [find(eos)] if eos is not None else []
    stops += [i for i in configs.ids("eos_token_id") if 0 <= i < size]
    known = [i for i in stops if i is not None]
    templates = _chat_templates(configs)
    return Facts(
        bos_id=bos_id,
        eos_id=next(iter(known), None),
        stop_ids=frozenset(known),
        chat_template=templates.get("default"),
        tool_template=templates.get("tool_use"),
        special_tokens=configs.named_tokens(),
    )


def _chat_templates(configs: Configs) -> dict[str, str]:
    """By name: "default", and "tool_use" where conversations with tools have their own."""
    files = {"default": "chat_template.jinja", "tool_use": TOOL_TEMPLATE}
    found = {name: path for name, file in files.items() if (path := find(configs.folder, file))}
    if found:
        return {name: read_text(path, TEMPLATE) for name, path in found.items()}
    for source in (configs.tokenizer, _json(configs.folder, "chat_template.json")):
        template = source.get("chat_template")
        if is_list(template):  # several by name
            return {entry["name"]: str(entry["template"]) for entry in template}
        if isinstance(template, str) and template:
            return {"default": template}
    return {}


def _literal(value: Any) -> str | None:
    if is_table(value):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file, {} where there is none."""
    path = find(folder, name)
    return {} if path is None else read_object(path)
