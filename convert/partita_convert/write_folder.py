"""Checkpoints out, in the layout of the Hub: packed weights in MLX's affine layout, or dense for transformers.

Not here: deciding how a weight is quantized (a `transform` passed in does that) and writing GGUF. Invariants: a folder
is there whole or not at all (a temporary sibling is written, flushed to disk and renamed); the source is never touched;
memory holds one shard at a time. config.json names the rope base both ways, `rope_theta` for mlx-lm and
`rope_parameters` for transformers 5, since a reader that misses it is fluent for a while and then is not.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from partita.checkpoint import Checkpoint
from partita.errors import DataError
from partita.quantization import Packed, dequantize

from .config_files import huggingface_config
from .tokenizer_files import write_tokenizer

SHARD_BYTES = 5 * 1000**3
DTYPES = ("float32", "float16", "bfloat16")

Value = np.ndarray | Packed
Transform = Callable[[str, Value], Value]


@dataclass(frozen=True)
class WrittenTensor:
    """name: of the weight. target: a dtype's name, or "4-bit:32". nbytes: scales and biases included."""

    name: str
    shape: tuple[int, ...]
    target: str
    nbytes: int


@dataclass(frozen=True)
class WrittenFolder:
    path: Path
    nbytes: int  # of the weight files
    tensors: tuple[WrittenTensor, ...]


def write_mlx(
    checkpoint: Checkpoint, folder: Path, *, transform: Transform | None = None, shard_bytes: int = SHARD_BYTES
) -> WrittenFolder:
    """Write a folder that mlx-lm loads: packed tensors keep their integers, dense ones their dtype.

    transform(name, value) may replace each value first (quantize, cast). DataError: the folder exists or cannot be
    written. UnsupportedModel: something of the source that config.json cannot say.
    """
    return _write(checkpoint, Path(folder), transform or _same, "mlx", shard_bytes)


def write_huggingface(
    checkpoint: Checkpoint, folder: Path, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> WrittenFolder:
    """Write a folder that transformers loads: every floating tensor dense in `dtype`. Errors as for `write_mlx`."""
    if dtype not in DTYPES:
        raise DataError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    target = _numpy_dtype(dtype)

    def dense(name: str, value: Value) -> Value:
        if isinstance(value, Packed):
            return dequantize(value, target)
        floating = value.dtype.kind == "f" or value.dtype.name == "bfloat16"
        return value.astype(target, copy=False) if floating else value

    return _write(checkpoint, Path(folder), dense, "pt", shard_bytes)


def _same(name: str, value: Value) -> Value:
    return value


def _numpy_dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _write(checkpoint: Checkpoint, folder: Path, transform: Transform, form: str, shard_bytes: int) -> WrittenFolder:
    config, dropped = huggingface_config(checkpoint)
    with new_folder(folder) as partial:
        shards = _Shards(partial, form, shard_bytes)
        formats: dict[str, tuple[int, int]] = {}
        written = []
        for name in checkpoint.names():
            if name in dropped:
                continue
            value = transform(name, _without_one(checkpoint, name, checkpoint.read(name)))
            if isinstance(value, Packed):
                value = _wide_enough(config, name, value)
                formats[name.removesuffix(".weight")] = (value.bits, value.group_size)
            written.append(_describe(name, value))
            shards.add(name, value)
        nbytes = shards.finish()
        _write_json(partial / "config.json", _with_formats(config, formats, written))
        if checkpoint.generation_config:
            _write_json(partial / "generation_config.json", checkpoint.generation_config)
        write_tokenizer(checkpoint, partial)
    return WrittenFolder(folder, nbytes, tuple(written))


def _without_one(checkpoint: Checkpoint, name: str, value: Value) -> Value:
    """Hugging Face's Gemma stores w where GGUF's stores 1 + w."""
    if checkpoint.norms_include_one and name.endswith("norm.weight") and isinstance(value, np.ndarray):
        return value.astype(np.float32) - np.float32(1)
    return value


def _wide_enough(config: dict[str, Any], name: str, value: Packed) -> Packed:
    """mlx-lm computes in the dtype of the embedding's scales, and Gemma's activations need more than float16 holds:
    measured on Gemma 3 270M, logits up to 40 away from the float32 ones, and 0.1 with these scales widened."""
    if not str(config.get("model_type")).startswith("gemma") or not name.endswith("embed_tokens.weight"):
        return value
    return replace(value, scales=value.scales.astype(np.float32), biases=value.biases.astype(np.float32))


def _describe(name: str, value: Value) -> WrittenTensor:
    target = f"{value.bits}-bit:{value.group_size}" if isinstance(value, Packed) else value.dtype.name
    return WrittenTensor(name, tuple(value.shape), target, int(value.nbytes))


def _with_formats(
    config: dict[str, Any], formats: dict[str, tuple[int, int]], written: list[WrittenTensor]
) -> dict[str, Any]:
    """config.json with MLX's `quantization` block: the commonest format for all, an entry for each that differs."""
    if not formats:
        dtypes = Counter(tensor.target for tensor in written if tensor.target in DTYPES)
        return config | ({"dtype": dtypes.most_common(1)[0][0]} if dtypes else {})
    ((bits, group_size), _), *_ = Counter(formats.values()).most_common()
    block: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": "affine"}
    for module, (own_bits, own_group) in formats.items():
        if (own_bits, own_group) != (bits, group_size):
            block[module] = {"group_size": own_group, "bits": own_bits, "mode": "affine"}
    return config | {"quantization": block, "quantization_config": block}


class _Shards:
    """Tensors in, safetensors files out: a file is written whenever the next tensor would make it too large."""

    def __init__(self, folder: Path, form: str, limit: int):
        self.folder, self.form, self.limit = folder, form, limit
        self.pending: dict[str, np.ndarray] = {}
        self.places: list[list[str]] = []
        self.total = 0

    def add(self, name: str, value: Value) -> None:
        arrays = _arrays(name, value)
        size = sum(array.nbytes for array in arrays.values())
        if self.pending and size + sum(array.nbytes for array in self.pending.values()) > self.limit:
            self._flush()
        self.pending |= arrays

    def _flush(self) -> None:
        from safetensors.numpy import save_file

        path = self._path(len(self.places))
        path.touch()  # for the user's usual permissions: the library makes files for the owner alone
        mode = path.stat().st_mode
        save_file(self.pending, path, metadata={"format": self.form})
        path.chmod(mode)
        self.places.append(list(self.pending))
        self.total += sum(array.nbytes for array in self.pending.values())
        self.pending = {}

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number}"

    def finish(self) -> int:
        """Give the files their names, which hold their count, and write the index. Returns the weights' bytes."""
        if self.pending:
            self._flush()
        count = len(self.places)
        index: dict[str, str] = {}
        for number, names in enumerate(self.places):
            file = "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._path(number).rename(self.folder / file)
            index |= dict.fromkeys(names, file)
        if count > 1:
            table = {"metadata": {"total_size": self.total}, "weight_map": index}
            _write_json(self.folder / "model.safetensors.index.json", table)
        return self.total


def _arrays(name: str, value: Value) -> dict[str, np.ndarray]:
    """A tensor as safetensors keeps it. mlx-lm wants scales and biases in one dtype: the wider holds both exactly."""
    if not isinstance(value, Packed):
        return {name: np.ascontiguousarray(value).reshape(value.shape)}
    if value.scales.dtype != value.biases.dtype:
        value = replace(value, scales=value.scales.astype(np.float32), biases=value.biases.astype(np.float32))
    module = name.removesuffix(".weight")
    parts = {"weight": value.weight, "scales": value.scales, "biases": value.biases}
    return {f"{module}.{part}": np.ascontiguousarray(array) for part, array in parts.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `folder` when the block ends well, and vanishes when it does not.

    DataError: `folder` exists, or the disk refuses.
    """
    from safetensors import SafetensorError

    if os.path.lexists(folder):
        raise DataError(f"{folder} exists already; choose another name or remove it")
    partial = folder.absolute().parent / f".{folder.absolute().name}.partial-{uuid.uuid4().hex[:8]}"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        for path in (*partial.rglob("*"), partial):
            _flush_to_disk(path)
        os.rename(partial, folder.absolute())
        _flush_to_disk(partial.parent)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:
        raise DataError(f"{folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _flush_to_disk(path: Path) -> None:
    """fsync, for files and, where the system can, for folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
