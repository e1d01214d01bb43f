"""A GGUF file as a checkpoint: its tensors under Hugging Face's names, in Hugging Face's order of rows and columns.

Not here: bytes of the header (`header`), of blocks (`blocks`), what a key or tensor is called elsewhere (`names`), and
which order a file has (`arrangement`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import CheckpointError, UnsupportedModel
from ...files import safetensors
from ...quantization import Packed, Stored, StoredRows, dequantize
from ..base import Checkpoint, shares
from . import blocks, names, reader
from .architectures import Architecture
from .arrangement import (
    Arrangement,
    arrangement,
    exponent,
    new_axis,
    published_shape,
    reordered,
    with_columns,
    with_rows,
)


@dataclass(frozen=True, kw_only=True)
class GgufCheckpoint(Checkpoint):
    file: reader.GgufFile
    gguf_of: Mapping[str, str]  # Hugging Face name to GGUF name

    @classmethod
    def open(cls, path: Path) -> GgufCheckpoint:
        """Header and config of a file, and of the other parts of a split model, checked."""
        file = reader.open_gguf(path)

        def dense(name: str) -> np.ndarray:
            tensor = file.tensors[name]
            value = blocks.decode(file.raw(name), tensor.type, tensor.shape, name)
            return dequantize(value) if isinstance(value, Packed) else value

        try:
            shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
            row = names.architecture(file.metadata)
            config = names.with_rope_tensors(names.config_from(file.metadata, shapes), dense)
            gguf_of = names.tensor_names(file.metadata, tuple(shapes))
            generation = names.generation_config_from(file.metadata)
        except (CheckpointError, UnsupportedModel) as error:
            raise type(error)(f"{path.name}: {error}", field=error.field) from None
        return cls(
            path=path,
            config=config,
            generation_config=generation,
            norms_include_one=row.norms_include_one,
            metadata=file.metadata,
            file=file,
            gguf_of=gguf_of,
        )

    def names(self) -> tuple[str, ...]:
        return tuple(self.gguf_of)

    def _tensor(self, name: str) -> reader.GgufTensor:
        if name not in self.gguf_of:
            raise self.missing(name)
        return self.file.tensors[self.gguf_of[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        tensor = self._tensor(name)
        return published_shape(self.config, tensor.name, tensor.shape, name)

    def read(self, name: str) -> np.ndarray | Packed:
        tensor, order = self._tensor(name), self._arrangement(name)
        value = blocks.decode(self.file.raw(tensor.name), tensor.type, tensor.shape, self._where(tensor))
        if order.rows is not None:
            taken = partial(with_rows, rows=order.rows)
            value = value.map(taken) if isinstance(value, Packed) else taken(value)
        if order.columns is not None:
            value = with_columns(value, order.columns)
        if (axis := new_axis(tensor.name, tensor.shape)) is not None:
            new = partial(np.expand_dims, axis=axis)
            value = value.map(new) if isinstance(value, Packed) else new(value)
        if order.decay and isinstance(value, np.ndarray):
            return exponent(value, self._where(tensor))
        return value

    def read_stored(self, name: str) -> np.ndarray | Packed | Stored:
        tensor, order = self._tensor(name), self._arrangement(name)
        if tensor.type not in (*blocks.AFFINE, *blocks.SMALL) or len(tensor.shape) < 2:
            return self.read(name)
        size, taken, columns = tensor.shape[-1], order.rows, order.columns
        kind, where = tensor.type, self._where(tensor)
        raw = self.file.raw(tensor.name).reshape(math.prod(tensor.shape[:-1]), -1)
        if columns is not None and size // len(columns) % blocks.block_size(kind) == 0:
            raw, columns = reordered(raw, columns), None  # each head is whole blocks
        if taken is not None and len(taken) < len(raw):
            raw, taken = raw[taken], None

        def decode(raw: np.ndarray, smallest_group: int) -> np.ndarray | Packed:
            value = blocks.decode(raw.reshape(-1), kind, (len(raw), size), where, smallest_group)
            return value if columns is None else with_columns(value, columns)

        rows = StoredRows(raw, taken, decode, partial(self.file.release, tensor.name))
        return Stored(kind if columns is None else f"{kind}, heads in another order", size, (rows,))

    def _where(self, tensor: reader.GgufTensor) -> str:
        return f"{self.path.name}: {tensor.name}"

    def _arrangement(self, name: str) -> Arrangement:
        tensor = self._tensor(name)
        return arrangement(self._row, self.config, tensor.name, tensor.shape, self._where(tensor), name)

    @property
    def _row(self) -> Architecture:
        return names.architecture(self.file.metadata)

    def stored_as(self, name: str) -> str:
        return self._tensor(name).type

    def nbytes(self) -> int:
        return sum(map(len, self.file.parts))

    def weight_bytes(self) -> Mapping[str, int]:
        sizes = {name: tensor.nbytes for name, tensor in self.file.tensors.items()}
        return shares({name: (own,) for name, own in self.gguf_of.items()}, sizes)

    def fingerprint(self) -> str:
        # not under the files' own names: a renamed file is the same model
        called = ["gguf", *(f"gguf {i}" for i in range(1, len(self.file.parts)))]
        places = [(called[tensor.part], tensor.start, tensor.nbytes) for tensor in self.file.tensors.values()]
        ends = dict(zip(called, self.file.header_bytes, strict=True))
        return safetensors.fingerprint(dict(zip(called, self.file.parts, strict=True)), ends, places)
