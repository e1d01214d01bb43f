"""A GGUF file as a checkpoint: its tensors under Hugging Face's names, q and k in its order of rows.

Not here: bytes of the header (`header`), of blocks (`blocks`), what a key or tensor is called elsewhere (`names`).
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
from ..base import Checkpoint
from . import blocks, names, reader


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
        return self._tensor(name).shape

    def read(self, name: str) -> np.ndarray | Packed:
        tensor, order = self._tensor(name), self._order(name)
        value = blocks.decode(self.file.raw(tensor.name), tensor.type, tensor.shape, self._where(tensor))
        if order is None:
            return value
        return value.map(lambda part: part[order]) if isinstance(value, Packed) else value[order]

    def read_stored(self, name: str) -> np.ndarray | Packed | Stored:
        tensor = self._tensor(name)
        if tensor.type not in (*blocks.AFFINE, *blocks.SMALL) or len(tensor.shape) < 2:
            return self.read(name)
        size = tensor.shape[-1]
        kind, where = tensor.type, self._where(tensor)

        def decode(raw: np.ndarray, smallest_group: int) -> np.ndarray | Packed:
            return blocks.decode(raw.reshape(-1), kind, (len(raw), size), where, smallest_group)

        raw = self.file.raw(tensor.name).reshape(math.prod(tensor.shape[:-1]), -1)
        rows = StoredRows(raw, self._order(name), decode, partial(self.file.release, tensor.name))
        return Stored(kind, size, (rows,))

    def _where(self, tensor: reader.GgufTensor) -> str:
        return f"{self.path.name}: {tensor.name}"

    def _order(self, name: str) -> np.ndarray | None:
        """In which the rows of the file are those of Hugging Face's tensor; None: in the same."""
        tensor = self._tensor(name)
        heads = names.permuted_heads(names.architecture(self.file.metadata), self.config, tensor.name)
        if not heads:
            return None
        rows = tensor.shape[0]
        if rows % (2 * heads):
            raise CheckpointError(f"{self._where(tensor)} has {rows} rows, which {heads} heads do not divide in pairs")
        return unpermuted_rows(rows, heads)

    def stored_as(self, name: str) -> str:
        return self._tensor(name).type

    def nbytes(self) -> int:
        return sum(map(len, self.file.parts))

    def fingerprint(self) -> str:
        # not under the files' own names: a renamed file is the same model
        called = ["gguf", *(f"gguf {i}" for i in range(1, len(self.file.parts)))]
        places = [(called[tensor.part], tensor.start, tensor.nbytes) for tensor in self.file.tensors.values()]
        ends = dict(zip(called, self.file.header_bytes, strict=True))
        return safetensors.fingerprint(dict(zip(called, self.file.parts, strict=True)), ends, places)


def unpermuted_rows(rows: int, heads: int) -> np.ndarray:
    """Row numbers that bring GGUF's llama q or k back to Hugging Face's order, int64 (rows,).

    In a head of d rows GGUF keeps the two of a rotated pair side by side (2i, 2i + 1); Hugging Face keeps them half a
    head apart (i, i + d / 2). So row i of a head comes from row 2i, and row i + d / 2 from row 2i + 1.
    """
    pairs = rows // heads // 2
    return np.arange(rows).reshape(heads, pairs, 2).swapaxes(1, 2).reshape(rows)
