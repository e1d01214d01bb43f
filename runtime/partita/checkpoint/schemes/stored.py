"""What every stored scheme of a folder is made of: a weight as its files keep it, and the way to find such weights.

Not here: which schemes there are (`registry`). Invariant: what can be known of a weight from headers and config.json is
checked when it is found; reading it looks at numbers alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...files.safetensors import StoredTensor
from ...quantization import Packed

ReadTensor = Callable[[str], np.ndarray]
"""A tensor of the files by name, as stored."""


@dataclass(frozen=True, kw_only=True)
class StoredWeight(ABC):
    """One weight. name: of its tensor. shape: of what `read` gives. stored_as: how the files keep it, for reports and
    estimates of memory: "4-bit:64" (bits, group size) says that `read` packs it so."""

    name: str
    shape: tuple[int, ...]
    stored_as: str

    @abstractmethod
    def read(self, tensor: ReadTensor) -> np.ndarray | Packed:
        """The weight, from the tensors it is made of. CheckpointError: a number that cannot be."""


class DenseWeight(StoredWeight):
    """A tensor that stands for itself."""

    def read(self, tensor: ReadTensor) -> np.ndarray:
        return tensor(self.name)


Found = dict[str, StoredWeight | None]
"""A scheme's weights by name, and None under the name of each tensor that is no weight of its own."""

Finder = Callable[[Mapping[str, StoredTensor], Mapping[str, Any], str, ReadTensor], Found]
"""(tensors of the files, config.json, name of the folder, read) to a scheme's weights; nothing where the scheme is not
used. read: for the few small tensors without which a shape is not known.

CheckpointError: tensors that do not go together. UnsupportedModel: a form of the scheme that is not read.
"""


@dataclass(frozen=True)
class Scheme:
    """A row of the registry. methods: values of `quant_method` in quantization_config that announce the scheme. modes:
    values of `mode` in MLX's quantization block that do."""

    find: Finder
    methods: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
