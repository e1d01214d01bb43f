"""A checkpoint, whatever its file format: a config, tensor names in Hugging Face's words, tensors on demand.

Not here: what a config means, devices, downloads. Invariants: nothing in a model folder is ever executed or imported;
integers of quantized tensors arrive as they were stored (`Packed`), never re-quantized; every fault of a file is a
CheckpointError naming the file, every format that is not read an UnsupportedModel naming it.

Two formats, of which `open.py` takes the right one: a folder in the layout of the Hub (`folder.py`) and a GGUF file
(`gguf/checkpoint.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..brief import Brief
from ..errors import CheckpointError
from ..quantization import Packed, Stored
from . import names


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Brief, ABC):
    """What both formats share.

    config: as config.json (for GGUF derived from the metadata). generation_config: as generation_config.json, or {}.
    norms_include_one: whether stored RMS norm weights of a `1 + w` family already hold the one (GGUF's, MLX's Qwen).
    metadata: GGUF's keys and values, None for a folder.
    """

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    norms_include_one: bool = False
    metadata: Mapping[str, Any] | None = None

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Tensor names, Hugging Face's; the scales and biases of a packed tensor are folded into its `.weight`."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that `read(name)` will have, without reading."""

    @abstractmethod
    def read(self, name: str) -> np.ndarray | Packed:
        """One tensor as stored (bfloat16 through ml_dtypes), 8-bit floats as what they stand for (see `fp8`).
        Private memory over the file: writing to it is safe.

        CheckpointError: no such tensor, or a damaged one. UnsupportedModel: a block format that cannot be read.
        """

    def read_stored(self, name: str) -> np.ndarray | Packed | Stored:
        """The same for `Backend.prepare`: a matrix in blocks of integers stays as the file has it, and a stack of
        them as one matrix. Errors of what is damaged in it come later."""
        return self.read(name)

    @abstractmethod
    def stored_as(self, name: str) -> str:
        """How the file keeps a tensor, for reports: a GGUF or safetensors type ("Q4_1", "BF16"), or "4-bit:64"."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A stable identity of the weights in hexadecimal: see `safetensors.fingerprint` for what it covers."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the files that hold the weights."""

    @abstractmethod
    def weight_bytes(self) -> Mapping[str, int]:
        """Of each of `names`, the bytes that the files keep it in, with its scales and what else belongs to it."""

    def embedding_rows(self) -> int | None:
        """How many tokens have a row in the embedding; None for a checkpoint without one (an adapter's base may be)."""
        embedding = names.Index(self.names()).find(names.EMBEDDING)
        return None if embedding is None else self.shape(embedding)[0]

    def missing(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: there is no tensor {name!r}")


def shares(made_of: Mapping[str, Sequence[str]], sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes behind each tensor, by the parts that it is made of; a part of several counts for each in equal shares.
    sizes: of the parts. One that is not there counts for nothing: it is missed where it is read."""
    uses = Counter(source for sources in made_of.values() for source in sources)
    return {name: sum(sizes.get(own, 0) // uses[own] for own in sources) for name, sources in made_of.items()}
