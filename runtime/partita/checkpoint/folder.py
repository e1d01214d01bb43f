"""A model folder in the layout of the Hub: config.json, model*.safetensors, weights in any of the stored `schemes`.

Not here: what a scheme's tensors mean (`schemes/`). Invariants: nothing in a folder is executed; every name that is
handed out is one weight, dense or of one scheme, and whatever a scheme keeps beside it has no name of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedModel
from ..files import safetensors
from ..files.bounded import find, read_object
from ..quantization import Packed
from . import names
from .base import Checkpoint
from .schemes import fp4, registry
from .schemes.stored import StoredWeight

_CODE_KEYS = ("model_file", "auto_map", "custom_pipelines", "trust_remote_code")


@dataclass(frozen=True, kw_only=True)
class FolderCheckpoint(Checkpoint):
    """weights: each tensor that is read, by name, in the order of the files. store: the files' tensors under them."""

    store: safetensors.SafetensorsSet
    weights: Mapping[str, StoredWeight]

    @classmethod
    def open(cls, folder: Path) -> FolderCheckpoint:
        """Headers and configs of a folder, checked. A quantized tensor that does not fit its companions is refused here
        and not in the middle of loading."""
        settings, generation = find(folder, "config.json"), find(folder, "generation_config.json")
        if settings is None:
            raise CheckpointError(f"{folder}: there is no config.json; {_where_one_is(folder)}")
        config = read_object(settings)
        _refuse_code(config)
        if (beside := find(folder, fp4.SETTINGS)) is not None:
            config = fp4.announced(config, read_object(beside))
        registry.check_config(config)
        extra = {} if generation is None else read_object(generation)
        store, alone = safetensors.open_folder(folder), "text_config" not in config
        store = replace(
            store,
            tensors=names.canonical(store.tensors, folder.name, alone=alone),
            promised=names.canonical(store.promised, safetensors.INDEX_FILE, alone=alone),
        )
        weights = registry.stored_weights(store.tensors, config, folder.name, store.read)
        # where MLX turns the taps of Qwen's convolutions, (C, K, 1), it adds the one to norms
        taps = [weight.shape for name, weight in weights.items() if name.endswith("linear_attn.conv1d.weight")]
        return cls(
            path=folder,
            config=config,
            generation_config=extra,
            norms_include_one=any(shape[1] > shape[-1] == 1 for shape in taps),
            store=store,
            weights=weights,
        )

    def missing(self, name: str) -> CheckpointError:
        if name not in self.store.promised:
            return super().missing(name)
        where = f"{safetensors.INDEX_FILE} looks for in {self.store.promised[name]}"
        return CheckpointError(f"{self.path.name}: there is no tensor {name!r}, which {where}; fetch that file again")

    def _weight(self, name: str) -> StoredWeight:
        if name not in self.weights:
            raise self.missing(name)
        return self.weights[name]

    def names(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weight(name).shape

    def read(self, name: str) -> np.ndarray | Packed:
        return self._weight(name).read(self.store.read)

    def stored_as(self, name: str) -> str:
        return self._weight(name).stored_as

    def nbytes(self) -> int:
        return sum(map(len, self.store.files.values()))

    def weight_bytes(self) -> Mapping[str, int]:
        """A tensor that is no weight belongs to the one whose name, or what stands before `.weight`, its own begins
        with; nothing here is said of those that belong to none."""
        owner = {name.removesuffix(".weight"): name for name in self.weights} | {name: name for name in self.weights}
        sizes = dict.fromkeys(self.weights, 0)
        for name, tensor in self.store.tensors.items():
            beside = (name, name.rpartition("_")[0], *_above(name))
            own = next((owner[each] for each in beside if each in owner), None)
            if own is not None:
                sizes[own] += tensor.nbytes
        return sizes

    def fingerprint(self) -> str:
        places = [(tensor.file, tensor.start, tensor.nbytes) for tensor in self.store.tensors.values()]
        return safetensors.fingerprint(self.store.files, self.store.header_ends, places)


def _above(name: str) -> Iterator[str]:
    """What a name stands under: "a.b", then "a" of "a.b.c"."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _where_one_is(folder: Path) -> str:
    """What to say of a folder without config.json. A run that trained all weights keeps its model in `model`."""
    if find(folder / "model", "config.json") is not None:
        return f"give the model of this run, {folder / 'model'}"
    return "a model folder has one beside its safetensors"


def _refuse_code(config: Mapping[str, Any]) -> None:
    for key in _CODE_KEYS:
        if config.get(key):
            raise UnsupportedModel(
                f"config.json: {key!r} asks for code from the model folder to be run, which is never done; "
                "use a checkpoint of the built-in architecture"
            )
