"""What a model's file or folder holds, from its headers and small files: shapes, types and sizes of its tensors, its
vocabulary, template and metadata, and why partita would not run it.

Not here: printing. Invariants: no number of a weight is read; whatever part cannot be read is said in one line, and the
others are told all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from partita.adapters.read import is_adapter, open_adapter
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.gguf import blocks, header, reader
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, PartitaError
from partita.files import safetensors
from partita.files.bounded import begins_with, find, is_list, read_object
from partita.model.config import ConvConfig, DeltaConfig, ModelConfig
from partita.model.load import check_whole, read_config
from partita.model.notes import notes
from partita.text.chat_template import ChatTemplate
from partita.text.load import load_tokenizer
from partita.text.reply.formats import ReplyFormat
from partita.text.tokenizer import Tokenizer

T = TypeVar("T")
_SHOWN = 4096  # characters of a text of the metadata


@dataclass(frozen=True)
class Tensor:
    """One weight. type: how the file keeps it. nbytes: with its scales and what else belongs to it."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def values(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Type:
    """All tensors of a type."""

    type: str
    tensors: int
    values: int
    nbytes: int

    @property
    def bits(self) -> float:
        """Of each value."""
        return 8 * self.nbytes / self.values if self.values else 0.0


@dataclass(frozen=True)
class Contents:
    """form: "gguf", "folder", "safetensors" or "adapter". files: those that hold tensors. model, tokenizer, template,
    adapter: None where there is none, or it cannot be read. refused: why partita would not run it, a line each."""

    path: Path
    form: str
    files: int
    nbytes: int
    architecture: str | None
    tensors: tuple[Tensor, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: Mapping[str, Any] | None = None
    tokenizer: Mapping[str, Any] | None = None
    template: Mapping[str, Any] | None = None
    adapter: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def types(self) -> list[Type]:
        """The types of its tensors, the largest first."""
        found: dict[str, list[Tensor]] = {}
        for tensor in self.tensors:
            found.setdefault(tensor.type, []).append(tensor)
        rows = [
            Type(kind, len(own), sum(each.values for each in own), sum(each.nbytes for each in own))
            for kind, own in found.items()
        ]
        return sorted(rows, key=lambda row: (-row.nbytes, row.type))

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "form": self.form,
            "files": self.files,
            "bytes": self.nbytes,
            "architecture": self.architecture,
            "model": self.model,
            "types": [
                {"type": row.type, "tensors": row.tensors, "values": row.values, "bytes": row.nbytes, "bits": row.bits}
                for row in self.types
            ],
            "tensors": [
                {"name": each.name, "type": each.type, "shape": list(each.shape), "bytes": each.nbytes}
                for each in self.tensors
            ],
            "tokenizer": self.tokenizer,
            "template": self.template,
            "adapter": self.adapter,
            "metadata": self.metadata,
            "notes": list(self.notes),
            "refused": list(self.refused),
        }


class _Trial:
    """Things that are tried, and what was said of those that failed."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    def of(self, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except PartitaError as error:
            if str(error) not in self.refused:
                self.refused.append(str(error))
            return None


def contents(path: Path) -> Contents:
    """What is there. CheckpointError: neither a folder nor a file, or one of which not even a header can be read."""
    if path.is_dir() and is_adapter(path):
        return _adapter(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.suffix == ".safetensors" and not begins_with(path, header.MAGIC):
        store, trial = safetensors.open_file(path), _Trial()
        trial.of(lambda: open_checkpoint(path))
        nbytes = sum(map(len, store.files.values()))
        found = _stored(store)
        return Contents(path, "safetensors", 1, nbytes, None, found, refused=tuple(trial.refused))
    return _gguf(path)


def _gguf(path: Path) -> Contents:
    file, trial = reader.open_gguf(path), _Trial()
    checkpoint = trial.of(lambda: open_checkpoint(path))
    tensors = tuple(Tensor(each.name, each.type, each.shape, each.nbytes) for each in file.tensors.values())
    for tensor in {each.type: each for each in tensors}.values():
        trial.of(lambda tensor=tensor: _try_type(path, tensor))
    said = file.metadata.get("general.architecture")
    return _with_parts(
        Contents(
            path,
            "gguf",
            len(file.parts),
            sum(map(len, file.parts)),
            said if isinstance(said, str) else None,
            tensors,
            {key: _short(value) for key, value in sorted(file.metadata.items())},
        ),
        checkpoint,
        trial,
    )


def _try_type(path: Path, tensor: Tensor) -> None:
    """Read one row of zeros in a tensor's type. UnsupportedModel: a type that nobody here can read."""
    size = tensor.shape[-1]
    blocks.decode(np.zeros(tensor.nbytes * size // tensor.values, np.uint8), tensor.type, (1, size), path.name)


def _folder(path: Path) -> Contents:
    trial = _Trial()
    checkpoint, store = trial.of(lambda: open_checkpoint(path)), trial.of(lambda: safetensors.open_folder(path))
    settings = find(path, "config.json")
    config = None if settings is None else trial.of(lambda: read_object(settings))
    if store is None and config is None:
        raise CheckpointError(trial.refused[0])
    said = None if config is None else config.get("model_type")
    sizes = _file_sizes(path) if store is None else [len(data) for data in store.files.values()]
    tensors = () if store is None else _stored(store) if checkpoint is None else _weights(checkpoint)
    return _with_parts(
        Contents(
            path,
            "folder",
            len(sizes),
            sum(sizes),
            said if isinstance(said, str) else None,
            tensors,
            {key: _short(value) for key, value in (config or {}).items()},
        ),
        checkpoint,
        trial,
    )


def _file_sizes(folder: Path) -> list[int]:
    """Bytes of each file of weights, where their headers cannot be read."""
    return [file.stat().st_size for file in folder.glob("*.safetensors") if file.is_file()]


def _stored(store: safetensors.SafetensorsSet) -> tuple[Tensor, ...]:
    """Tensors as the files have them."""
    return tuple(Tensor(name, each.dtype, each.shape, each.nbytes) for name, each in store.tensors.items())


def _weights(checkpoint: Checkpoint) -> tuple[Tensor, ...]:
    """Weights as they are read; what a scheme keeps beside one is counted with it."""
    sizes = checkpoint.weight_bytes()
    return tuple(
        Tensor(name, checkpoint.stored_as(name), checkpoint.shape(name), sizes[name]) for name in checkpoint.names()
    )


def _with_parts(found: Contents, checkpoint: Checkpoint | None, trial: _Trial) -> Contents:
    """With what is known only of a checkpoint that opens."""
    if checkpoint is None:
        return replace(found, refused=tuple(trial.refused))
    config = trial.of(lambda: read_config(checkpoint))
    if config is not None:
        trial.of(lambda: check_whole(checkpoint))
    tokenizer = trial.of(lambda: load_tokenizer(checkpoint))
    template = None
    if tokenizer is not None and tokenizer.chat_template is not None:
        template = trial.of(lambda: ChatTemplate.of(tokenizer))
    said = () if config is None else trial.of(lambda: notes(checkpoint)) or ()
    return replace(
        found,
        model=None if config is None else model_facts(config),
        tokenizer=None if tokenizer is None else _tokenizer_facts(tokenizer),
        template=None if tokenizer is None or template is None else _template_facts(tokenizer, template),
        notes=said,
        refused=tuple(trial.refused),
    )


def model_facts(config: ModelConfig) -> dict[str, Any]:
    """What a decoder is, in numbers; lists where layers differ."""
    layers = config.layers
    recurrent = sum(isinstance(layer.mixer, DeltaConfig) for layer in layers)
    convolutions = sum(isinstance(layer.mixer, ConvConfig) for layer in layers)
    attend = [i for i, layer in enumerate(layers) if layer.mixer is None]
    experts = config.experts
    return {
        "model_type": config.model_type,
        "layers": len(layers),
        "attention_layers": len(attend),
        "recurrent_layers": recurrent,
        "convolution_layers": convolutions,
        "sharing_layers": sum(layer.shares is not None for layer in layers),
        "hidden_size": config.hidden_size,
        "heads": _alike(config.num_heads for _ in attend),
        "kv_heads": _alike(config.kv_heads_of(i) for i in attend),
        "head_dim": _alike(config.head_dim_of(i) for i in attend),
        "intermediate_size": _alike(config.intermediate_size_of(i) for i in range(len(layers))),
        "window": _alike(layers[i].window for i in attend),
        "experts": None if experts is None else {"count": experts.count, "active": experts.active},
        "vocab_size": config.vocab_size,
        "tied": config.tie_embeddings,
        "context": config.max_positions,
    }


def _alike(values: Iterable[int | None]) -> int | list[int | None] | None:
    """One number where all are it, else each."""
    found = list(values)
    return found[0] if found and all(value == found[0] for value in found) else found or None


def _tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokens": tokenizer.vocab_size,
        "controls": len(tokenizer.controls),
        "bos": tokenizer.bos_token or None,
        "adds_bos": tokenizer.adds_bos,
        "stops": sorted(tokenizer.engine.token_text(token) for token in tokenizer.stop_ids),
    }


def _template_facts(tokenizer: Tokenizer, template: ChatTemplate) -> dict[str, Any]:
    """thoughts, calls: how replies begin them; None where none are known."""
    form = ReplyFormat.of(tokenizer, template)
    thought, calls = form.thought, form.calls
    return {
        "characters": len(template.source),
        "tools": template.taking([]).mentions("tools"),
        "channels": form.dialect is not None,
        "thoughts": None if thought is None else thought.begin,
        "calls": None if calls is None else calls.begin,
    }


def _adapter(path: Path) -> Contents:
    trial = _Trial()
    adapter = trial.of(lambda: open_adapter(path))
    config = read_object(path / "adapter_config.json")
    files = sorted(path.glob("adapter*.safetensors"))
    stores = [store for file in files if (store := trial.of(lambda file=file: safetensors.open_file(file))) is not None]
    tensors = tuple(tensor for store in stores for tensor in _stored(store))
    facts = None
    if adapter is not None:
        facts = {
            "kind": adapter.kind,
            "rank": adapter.rank,
            "dora": adapter.is_dora,
            "targets": list(adapter.targets),
            "changes": len(adapter.changes),
            "base_model": adapter.base_model,
        }
    return Contents(
        path,
        "adapter",
        len(files),
        sum(file.stat().st_size for file in files),
        None,
        tensors,
        {key: _short(value) for key, value in config.items()},
        adapter=facts,
        refused=tuple(trial.refused),
    )


def _short(value: Any) -> Any:
    """A value of the metadata as JSON has it, long ones cut: what is left out is said."""
    if is_list(value):
        return list(value) if len(value) <= 64 and not any(map(is_list, value)) else f"{len(value)} values"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{value[:_SHOWN]}… ({len(value)} characters)"
    return value
