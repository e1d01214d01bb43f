"""A checkpoint, whatever its file format: a config, tensor names in Hugging Face's words, tensors on demand.

Not here: what a config means, devices, downloads. Invariants: nothing in a model folder is ever executed or imported;
integers of quantized tensors arrive as they were stored (`Packed`), never re-quantized; every fault of a file is a
CheckpointError naming the file, every format that is not read an UnsupportedModel naming it.

Two formats: a folder in the layout of the Hub (config.json, model*.safetensors, with MLX's `quantization` block or
weights in 8-bit floats), and a GGUF file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..brief import Brief
from ..errors import CheckpointError, UnsupportedModel
from ..files import safetensors
from ..files.bounded import begins_with, find, read_object
from ..quantization import Packed, dequantize
from . import names
from .gguf import blocks, header, reader
from .gguf import names as gguf_names
from .schemes import fp8, mxfp4

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
_CODE_KEYS = ("model_file", "auto_map", "custom_pipelines", "trust_remote_code")


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Brief, ABC):
    """What both formats share.

    config: as config.json (for GGUF derived from the metadata). generation_config: as generation_config.json, or {}.
    norms_include_one: whether stored RMS norm weights of a `1 + w` family already hold the one (GGUF's Gemma).
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

    @abstractmethod
    def stored_as(self, name: str) -> str:
        """How the file keeps a tensor, for reports: a GGUF or safetensors type ("Q4_1", "BF16"), or "4-bit:64"."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A stable identity of the weights in hexadecimal: see `safetensors.fingerprint` for what it covers."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the files that hold the weights."""

    def embedding_rows(self) -> int | None:
        """How many tokens have a row in the embedding; None for a checkpoint without one (an adapter's base may be)."""
        embedding = names.Index(self.names()).find(names.EMBEDDING)
        return None if embedding is None else self.shape(embedding)[0]

    def missing(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: there is no tensor {name!r}")


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a model folder or a `.gguf` file. Reads headers only; tensors are mapped and read on demand."""
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    if begins_with(path, header.MAGIC):  # which says more than a name
        return _open_gguf(path)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path.name}: name the folder that holds it, with its config.json")
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise CheckpointError(f"{path.name}: pickled weights can run code and are not opened; use safetensors or GGUF")
    return _open_gguf(path)


@dataclass(frozen=True, kw_only=True)
class _GgufCheckpoint(Checkpoint):
    file: reader.GgufFile
    gguf_of: Mapping[str, str]  # Hugging Face name to GGUF name

    def names(self) -> tuple[str, ...]:
        return tuple(self.gguf_of)

    def _tensor(self, name: str) -> reader.GgufTensor:
        if name not in self.gguf_of:
            raise self.missing(name)
        return self.file.tensors[self.gguf_of[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def read(self, name: str) -> np.ndarray | Packed:
        tensor = self._tensor(name)
        where = f"{self.path.name}: {tensor.name}"
        value = blocks.decode(self.file.raw(tensor.name), tensor.type, tensor.shape, where)
        row = gguf_names.architecture(self.file.metadata)
        heads = gguf_names.permuted_heads(row, self.config, tensor.name)
        if not heads:
            return value
        if tensor.shape[0] % (2 * heads):
            raise CheckpointError(f"{where} has {tensor.shape[0]} rows, which {heads} heads do not divide in pairs")
        order = unpermuted_rows(tensor.shape[0], heads)
        return value.map(lambda part: part[order]) if isinstance(value, Packed) else value[order]

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


def _open_gguf(path: Path) -> Checkpoint:
    file = reader.open_gguf(path)

    def dense(name: str) -> np.ndarray:
        tensor = file.tensors[name]
        value = blocks.decode(file.raw(name), tensor.type, tensor.shape, name)
        return dequantize(value) if isinstance(value, Packed) else value

    try:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        row = gguf_names.architecture(file.metadata)
        config = gguf_names.with_rope_tensors(gguf_names.config_from(file.metadata, shapes), dense)
        names = gguf_names.tensor_names(file.metadata, tuple(shapes))
        generation = gguf_names.generation_config_from(file.metadata)
    except (CheckpointError, UnsupportedModel) as error:
        raise type(error)(f"{path.name}: {error}") from None
    return _GgufCheckpoint(
        path=path,
        config=config,
        generation_config=generation,
        norms_include_one=row.norms_include_one,
        metadata=file.metadata,
        file=file,
        gguf_of=names,
    )


@dataclass(frozen=True, kw_only=True)
class _FolderCheckpoint(Checkpoint):
    store: safetensors.SafetensorsSet

    @cached_property
    def _packed(self) -> dict[str, tuple[int, int]]:
        """Weight name to (bits, group_size), for the weights that have scales and biases beside them."""
        block = self.config.get("quantization") or {}
        found = {}
        for name, tensor in self.store.tensors.items():
            module = name.removesuffix(".weight")
            if name in self._mxfp4:
                continue
            if module != name and tensor.dtype == "U32" and f"{module}.scales" in self.store.tensors:
                found[name] = _quantized_as(block, module)
                self._check_packed(module, *found[name])
        return found

    @cached_property
    def _mxfp4(self) -> frozenset[str]:
        """Weight names that MLX's block gives the mode "mxfp4": 4-bit floats in words, exponents as scales."""
        block = self.config.get("quantization") or {}
        found = set()
        for name, tensor in self.store.tensors.items():
            module = name.removesuffix(".weight")
            own = block.get(module)
            mode = own.get("mode", "affine") if isinstance(own, dict) else block.get("mode", "affine")
            if mode != "mxfp4" or module == name or f"{module}.scales" not in self.store.tensors:
                continue
            scales = self.store.tensors[f"{module}.scales"]
            *lead, words = tensor.shape or (0,)
            if (tensor.dtype, scales.dtype) != ("U32", "U8") or (*lead, words * 8) != (
                *scales.shape[:-1],
                scales.shape[-1] * mxfp4.GROUP,
            ):
                raise CheckpointError(
                    f"{tensor.file}: {module}: MXFP4 weight {tensor.shape} of {tensor.dtype} does not go with scales "
                    f"{scales.shape} of {scales.dtype}"
                )
            found.add(name)
        return frozenset(found)

    def _check_packed(self, module: str, bits: int, group_size: int) -> None:
        parts = [self.store.tensors.get(f"{module}.{part}") for part in ("weight", "scales", "biases")]
        weight, scales, biases = parts
        where = f"{weight.file if weight else self.path.name}: {module}"
        if weight is None or scales is None or biases is None:
            raise CheckpointError(f"{where}: a packed tensor needs weight, scales and biases")
        floats = ("F16", "BF16", "F32")
        *lead, words = weight.shape or (0,)
        expected = (*lead, words * 32 // bits // group_size)
        if scales.shape != expected or biases.shape != expected or words * 32 % (bits * group_size):
            raise CheckpointError(
                f"{where}: weight {weight.shape} at {bits} bits in groups of {group_size} does not go with scales "
                f"{scales.shape} and biases {biases.shape}"
            )
        if scales.dtype not in floats or biases.dtype not in floats:
            raise CheckpointError(f"{where}: scales in {scales.dtype} and biases in {biases.dtype} are not floats")

    @cached_property
    def _fp8(self) -> dict[str, fp8.Fp8Weight]:
        return fp8.find(self.store.tensors, self.config, self.path.name)

    @cached_property
    def _names(self) -> dict[str, None]:
        modules = [name.removesuffix(".weight") for name in (*self._packed, *self._mxfp4)]
        folded = {f"{module}.{part}" for module in modules for part in ("scales", "biases")}
        folded |= fp8.companions(self._fp8, self.store.tensors)
        return {name: None for name in self.store.tensors if name not in folded}

    def missing(self, name: str) -> CheckpointError:
        if name not in self.store.promised:
            return super().missing(name)
        where = f"{safetensors.INDEX_FILE} looks for in {self.store.promised[name]}"
        return CheckpointError(f"{self.path.name}: there is no tensor {name!r}, which {where}; fetch that file again")

    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._names:
            raise self.missing(name)
        shape = self.store.tensors[name].shape
        if name in self._mxfp4:
            return (*shape[:-1], shape[-1] * 8)
        return (*shape[:-1], shape[-1] * 32 // self._packed[name][0]) if name in self._packed else shape

    def read(self, name: str) -> np.ndarray | Packed:
        if name not in self._names:
            raise self.missing(name)
        if name in self._mxfp4:
            words, scales = self.store.read(name), self.store.read(f"{name.removesuffix('.weight')}.scales")
            blocks = words.view(np.uint8).reshape(*scales.shape, -1)
            return mxfp4.repack(blocks, scales, what=f"{self.path.name}: {name}")
        if name in self._fp8:
            scale, block = self._fp8[name].scale, self._fp8[name].block
            multipliers = None if scale is None else self.store.read(scale)
            return fp8.dequantize(self.store.read(name), multipliers, block, fp8.target_dtype(self.config))
        if name not in self._packed:
            return self.store.read(name)
        module = name.removesuffix(".weight")
        parts = [self.store.read(f"{module}.{part}") for part in ("weight", "scales", "biases")]
        bits, group_size = self._packed[name]
        return Packed(*parts, bits=bits, group_size=group_size)

    def stored_as(self, name: str) -> str:
        if name not in self._names:
            raise self.missing(name)
        if name in self._mxfp4:
            return "MXFP4"
        return "{}-bit:{}".format(*self._packed[name]) if name in self._packed else self.store.tensors[name].dtype

    def nbytes(self) -> int:
        return sum(map(len, self.store.files.values()))

    def fingerprint(self) -> str:
        places = [(tensor.file, tensor.start, tensor.nbytes) for tensor in self.store.tensors.values()]
        return safetensors.fingerprint(self.store.files, self.store.header_ends, places)


def _open_folder(folder: Path) -> Checkpoint:
    settings, generation = find(folder, "config.json"), find(folder, "generation_config.json")
    if settings is None:
        raise CheckpointError(f"{folder}: there is no config.json; a model folder has one beside its safetensors")
    config = read_object(settings)
    _refuse_code(config)
    _check_quantization(config)
    extra = {} if generation is None else read_object(generation)
    store, alone = safetensors.open_folder(folder), "text_config" not in config
    store = replace(
        store,
        tensors=names.canonical(store.tensors, folder.name, alone=alone),
        promised=names.canonical(store.promised, safetensors.INDEX_FILE, alone=alone),
    )
    checkpoint = _FolderCheckpoint(path=folder, config=config, generation_config=extra, store=store)
    if _is_mxfp4(config) and not any(name.endswith("_blocks") for name in store.tensors):
        raise CheckpointError(f"{folder.name}: config.json says mxfp4, and no tensor holds such blocks")
    checkpoint.names()  # a packed tensor that does not fit its block is told now, not in the middle of loading
    return checkpoint


def _refuse_code(config: Mapping[str, Any]) -> None:
    for key in _CODE_KEYS:
        if config.get(key):
            raise UnsupportedModel(
                f"config.json: {key!r} asks for code from the model folder to be run, which is never done; "
                "use a checkpoint of the built-in architecture"
            )


def _is_mxfp4(config: Mapping[str, Any]) -> bool:
    """gpt-oss as published: blocks of 4-bit floats, which `checkpoint/experts.py` reads. The name alone is enough: the
    other fields say which modules are left dense, and the tensors say that too."""
    other = config.get("quantization_config")
    return isinstance(other, dict) and other.get("quant_method") == "mxfp4"


def _check_quantization(config: Mapping[str, Any]) -> None:
    """Refuse what is neither MLX's layout nor MXFP4 nor 8-bit floats. mlx-lm writes its block under both keys."""
    block, other = config.get("quantization"), config.get("quantization_config")
    for value, key in ((block, "quantization"), (other, "quantization_config")):
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"config.json: {key} is not a table")
    if _is_mxfp4(config) or fp8.is_fp8(config):
        return
    if other and other.get("quant_method"):
        raise UnsupportedModel(f"config.json: weights quantized with {other['quant_method']!r} are not read")
    if other and not block:
        raise UnsupportedModel("config.json: quantization_config without quant_method or MLX's quantization block")
    for where, entry in {"quantization": block or {}, **(block or {})}.items():
        if isinstance(entry, dict) and entry.get("mode", "affine") not in ("affine", "mxfp4"):
            raise UnsupportedModel(f"config.json: quantization mode {entry['mode']!r} in {where!r} is not read")


def _quantized_as(block: Mapping[str, Any], module: str) -> tuple[int, int]:
    """(bits, group_size) of one module: its own entry if it is a table, else the block's."""
    own = block.get(module, {})
    if own is False or not isinstance(own, dict | bool):
        raise CheckpointError(f"config.json: {module} is packed, but its quantization entry is {own!r}")
    merged = {**block, **(own if isinstance(own, dict) else {})}
    bits, group_size = merged.get("bits"), merged.get("group_size")
    if type(bits) is not int or bits not in BITS or type(group_size) is not int or group_size not in GROUP_SIZES:
        raise CheckpointError(
            f"config.json: {module} is packed, but its bits and group are {bits!r} and {group_size!r}"
        )
    return bits, group_size
