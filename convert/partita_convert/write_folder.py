"""Checkpoints out, in the layout of the Hub: packed weights in MLX's layouts, or dense for transformers.

Not here: deciding how a weight is quantized (a `transform` passed in does that) and writing GGUF. Invariants: a folder
is there whole or not at all; the source is never touched; the same source gives the same bytes; memory holds one tensor
at a time. config.json names the rope base both ways, `rope_theta` for mlx-lm and `rope_parameters` for transformers 5,
since a reader that misses it is fluent for a while and then is not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.names import adds_one, chooses
from partita.checkpoint.schemes.mlx_floats import global_scales
from partita.errors import DataError
from partita.files.atomic import whole_folder
from partita.quantization import AFFINE, Packed, dequantize, require_known
from partita.small_floats import exact_dtype
from partita.sources.listener import OnPart, unheard

from .config_files import for_form, huggingface_config
from .layouts import as_huggingface, as_mlx
from .moved import Moved
from .quantize import Rounded, affine_lost
from .recipes import Format
from .shards import SHARD_BYTES, Shards, header_room, write_json
from .tokenizer_files import write_tokenizer

DTYPES = ("float32", "float16", "bfloat16")
_CHUNK = 1 << 18  # values compared at a time

Value = np.ndarray | Packed
Transform = Callable[[str, Value], Value]


@dataclass(frozen=True)
class WrittenTensor:
    """name: of the weight. source, target: how it is stored, "BF16" or "4-bit:64" there, "bfloat16" or "4-bit:64" here.

    nbytes: scales and biases included. error: root mean square of what was written less what was read, over that of
    what was read; 0.0 where it is exact, None where that was not asked for.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    target: str
    nbytes: int
    error: float | None


@dataclass(frozen=True)
class Layout:
    """How a folder keeps packed weights, where that is not MLX's way. form: what readers look for in files, "mlx" or
    "pt". part_names: the tensors that one weight may become. arrays: those that it becomes. settings: config.json, of
    what was written."""

    form: str
    part_names: Callable[[str], tuple[str, ...]]
    arrays: Callable[[str, Value], dict[str, np.ndarray]]
    settings: Callable[[dict[str, Any], Sequence[WrittenTensor]], dict[str, Any]]


@dataclass(frozen=True)
class WrittenFolder:
    path: Path
    nbytes: int  # of the weights
    tensors: tuple[WrittenTensor, ...]


Card = Callable[[WrittenFolder], str]
"""The text of the folder's README.md."""


def write_mlx(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    transform: Transform | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_bytes: OnPart = unheard,
    card: Card | None = None,
) -> WrittenFolder:
    """Write a folder that mlx-lm loads: packed tensors keep their integers, dense ones their dtype.

    transform(name, value) may replace each value first (quantize, cast). DataError: the folder exists or cannot be
    written. UnsupportedModel: something of the source that config.json cannot say.
    """
    return _write(as_mlx(checkpoint), Path(folder), transform or _same, "mlx", shard_bytes, on_bytes, card)


def write_huggingface(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dtype: str | None = "float32",
    shard_bytes: int = SHARD_BYTES,
    on_bytes: OnPart = unheard,
    card: Card | None = None,
    replace: bool = False,
) -> WrittenFolder:
    """Write a folder that transformers loads: every floating tensor dense in `dtype`. Errors as for `write_mlx`.

    What chooses experts is not rounded. dtype None: dense tensors as they are stored, bit for bit; where any is packed
    all become float32, which holds every packed value exactly. Small floats count as dense: they become what holds them
    exactly, bfloat16 as a rule (`small_floats.exact_dtype`). replace: a folder that is there.
    """
    checkpoint = as_huggingface(checkpoint)
    transform = _dense(checkpoint, dtype)
    return _write(checkpoint, Path(folder), transform, "pt", shard_bytes, on_bytes, card, replace=replace)


def write_laid_out(
    checkpoint: Checkpoint,
    folder: Path,
    layout: Layout,
    *,
    transform: Transform,
    on_bytes: OnPart = unheard,
    card: Card | None = None,
) -> WrittenFolder:
    """Write a folder with packed weights of another layout, in the names that transformers has. Errors as for
    `write_mlx`."""
    checkpoint = as_huggingface(checkpoint)
    return _write(checkpoint, Path(folder), transform, layout.form, SHARD_BYTES, on_bytes, card, layout=layout)


def _dense(checkpoint: Checkpoint, dtype: str | None) -> Transform:
    if dtype is None and not is_packed(checkpoint):
        return _unpacked
    target = numpy_dtype(dtype or "float32")

    def dense(name: str, value: Value) -> Value:
        if isinstance(value, Packed):
            return cast(name, dequantize(value), target)
        return cast(name, value, target) if is_floating(value) and not chooses(name) else value

    return dense


def cast(name: str, value: np.ndarray, target: Any) -> np.ndarray:
    """A floating array in another dtype; DataError if a finite number is too large for it."""
    if value.dtype == target:
        return value
    with np.errstate(over="ignore"):
        changed = value.astype(target)
    if target.itemsize < value.dtype.itemsize or target == np.float16:
        lost = np.isinf(changed) & np.isfinite(value)
        if lost.any():
            raise DataError(
                f"{name}: {int(lost.sum())} of its numbers are too large for {target}; try `dtype` bfloat16",
                field="dtype",
            )
    return changed


def is_packed(checkpoint: Checkpoint) -> bool:
    """Whether any tensor is kept as integers with scales, in a folder or in GGUF's blocks."""
    return any("-bit:" in stored or stored[:1] == "Q" for stored in map(checkpoint.stored_as, checkpoint.names()))


def is_floating(value: Value) -> bool:
    return isinstance(value, np.ndarray) and (value.dtype.kind == "f" or value.dtype.name == "bfloat16")


def _same(name: str, value: Value) -> Value:
    return value


def _unpacked(name: str, value: Value) -> Value:
    """What is not packed, as it is; small floats in what holds them."""
    return dequantize(value, exact_dtype(value)) if isinstance(value, Packed) else value


def numpy_dtype(name: str) -> Any:
    """One of DTYPES; DataError for another name."""
    if name not in DTYPES:
        raise DataError(f"unknown dtype {name!r}; expected one of {', '.join(DTYPES)}")
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _write(
    checkpoint: Checkpoint,
    folder: Path,
    transform: Transform,
    form: str,
    shard_bytes: int,
    on_bytes: OnPart,
    card: Card | None,
    *,
    replace: bool = False,
    layout: Layout | None = None,
) -> WrittenFolder:
    config, dropped = huggingface_config(checkpoint)
    names = [name for name in checkpoint.names() if name not in dropped]
    config = for_form(config, form, names)
    with whole_folder(folder, replace=replace) as partial:
        write_tokenizer(checkpoint, partial)  # first: it may be refused, and weights take long
        parts = part_names if layout is None else layout.part_names
        room = header_room(part for name in names for part in parts(name))
        shards = Shards(partial, form, room, shard_bytes)
        formats: dict[str, Format] = {}
        written: list[WrittenTensor] = []
        sizes = checkpoint.weight_bytes()
        moved = Moved({name: sizes[name] for name in names}, on_bytes)
        try:
            for name in names:
                source = _as_published(checkpoint, name, checkpoint.read(name))
                source = _for_mlx(config, name, source) if form == "mlx" else source
                value = transform(name, source)
                if isinstance(value, Packed):
                    value = _as_mlx_has_it(_wide_enough(config, name, require_known(value, name)))
                if isinstance(value, Packed):
                    formats[name.removesuffix(".weight")] = Format(value.bits, value.group_size, value.mode)
                arrays = (_arrays if layout is None else layout.arrays)(name, value)
                shards.add(arrays)
                nbytes = sum(array.nbytes for array in arrays.values())
                written.append(_describe(name, checkpoint.stored_as(name), source, value, nbytes))
                moved(name)
            total = shards.finish()
        finally:
            shards.close()
        said = _with_formats(config, formats, written) if layout is None else layout.settings(config, written)
        write_json(partial / "config.json", said)
        if checkpoint.generation_config:
            write_json(partial / "generation_config.json", checkpoint.generation_config)
        result = WrittenFolder(folder, total, tuple(written))
        if card is not None:
            (partial / "README.md").write_text(card(result), encoding="utf-8")
    return result


def _as_published(checkpoint: Checkpoint, name: str, value: Value) -> Value:
    """Hugging Face's Gemma and Qwen3.5 store w where GGUF, and MLX's Qwen3.5, store 1 + w; MLX turns the taps of a
    short convolution, (channels, taps, 1) for (channels, 1, taps)."""
    if name.endswith(".conv.conv.weight") and isinstance(value, np.ndarray) and value.ndim == 3:
        return value.reshape(len(value), 1, -1)
    if not checkpoint.norms_include_one or not isinstance(value, np.ndarray):
        return value
    if name.endswith("conv1d.weight") and value.ndim == 3:
        return value.reshape(len(value), 1, -1)
    return (value.astype(np.float32) - np.float32(1)).astype(value.dtype) if adds_one(name) else value


def _for_mlx(config: dict[str, Any], name: str, value: Value) -> Value:
    """mlx-lm turns Qwen3-Next's taps and adds the one to its norms only where experts come one by one, and they are
    stacked here: it wants both done, in the tensor's own dtype, as its own folders have them."""
    if config.get("model_type") != "qwen3_next" or not isinstance(value, np.ndarray):
        return value
    if name.endswith("conv1d.weight") and value.ndim == 3:
        return value.reshape(len(value), -1, 1)
    return (value.astype(np.float32) + np.float32(1)).astype(value.dtype) if adds_one(name) else value


def _as_mlx_has_it(value: Packed) -> Value:
    """mlx-lm knows global scales of stacks alone, one for each expert: other matrices with factors become dense."""
    return value if value.factors is None or len(value.shape) == 3 else dequantize(value)


def _wide_enough(config: dict[str, Any], name: str, value: Packed) -> Packed:
    """mlx-lm computes in the dtype of the embedding's scales, and Gemma's activations need more than float16 holds:
    measured on Gemma 3 270M, logits up to 40 away from the float32 ones, and 0.1 with these scales widened."""
    gemma = str(config.get("model_type")).startswith("gemma") and name.endswith("embed_tokens.weight")
    if not gemma or value.mode != AFFINE:
        return value
    scales, biases = (part.astype(np.float32) for part in value.grid)
    return replace(value, scales=scales, biases=biases)


def _describe(name: str, stored: str, source: Value, value: Value, nbytes: int) -> WrittenTensor:
    packed = isinstance(value, Packed)
    target = str(Format(value.bits, value.group_size, value.mode)) if packed else value.dtype.name
    return WrittenTensor(name, tuple(value.shape), stored, target, nbytes, relative_error(source, value))


def relative_error(source: Value, value: Value) -> float:
    """Root mean square of value - source over that of source, in float64 by pieces; 0.0 if they are equal.

    What is not finite in the source is left out.
    """
    if source is value or (isinstance(value, np.ndarray) and not is_floating(value)):
        return 0.0
    if isinstance(value, Packed) and (sums := _squares(source, value)) is not None:
        return math.sqrt(sums[0] / sums[1]) if sums[1] else math.inf if sums[0] else 0.0
    squares = difference = 0.0
    for before, after in zip(_pieces(source), _pieces(value), strict=True):
        finite = np.isfinite(before)
        if not finite.all():
            before, after = before[finite], after[finite]
        squares += float(np.einsum("i,i", before, before))  # of small pieces cheaper than a threaded library
        before -= after
        difference += float(np.einsum("i,i", before, before))
    if difference == 0:
        return 0.0
    return math.sqrt(difference / squares) if squares else math.inf


def _squares(source: Value, value: Packed) -> tuple[float, float] | None:
    """Of value - source and of source, summed, where that is known or cheaply found."""
    return value.squares if isinstance(value, Rounded) else affine_lost(source, value)


def _pieces(value: Value) -> Iterator[np.ndarray]:
    """The values in order, float64, some rows at a time."""
    width = max(value.shape[-1] if value.shape else 1, 1)
    step = max(_CHUNK // width, 1)
    if isinstance(value, Packed):
        flat = value.map(lambda part: part.reshape(-1, part.shape[-1]))
        for start in range(0, flat.scales.shape[0], step):
            yield dequantize(flat.map(lambda part, a=start: part[a : a + step])).reshape(-1).astype(np.float64)
        return
    rows = value.reshape(-1, width)
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step].reshape(-1).astype(np.float64)


def _with_formats(config: dict[str, Any], formats: dict[str, Format], written: list[WrittenTensor]) -> dict[str, Any]:
    """config.json with MLX's `quantization` block: the commonest format for all, an entry for each that differs."""
    if not formats:
        dtypes = Counter(tensor.target for tensor in written if tensor.target in DTYPES)
        return config | ({"dtype": dtypes.most_common(1)[0][0]} if dtypes else {})
    (usual, _), *_ = Counter(formats.values()).most_common()
    block = _said(usual) | {module: _said(own) for module, own in formats.items() if own != usual}
    return config | {"quantization": block, "quantization_config": block}


def _said(format: Format) -> dict[str, Any]:
    return {"group_size": format.group_size, "bits": format.bits, "mode": format.mode}


def part_names(name: str) -> tuple[str, ...]:
    """The tensors that `name` may become: itself, and what stands beside it if it is packed."""
    module = name.removesuffix(".weight")
    return (name,) if module == name else (name, *(f"{module}.{part}" for part in ("scales", "biases", "global_scale")))


def _arrays(name: str, value: Value) -> dict[str, np.ndarray]:
    """A tensor as safetensors keeps it. mlx-lm wants scales and biases in one dtype: the wider holds both exactly."""
    if not isinstance(value, Packed):
        return {name: np.ascontiguousarray(value).reshape(value.shape)}
    module = name.removesuffix(".weight")
    if value.mode == AFFINE:
        scales, biases = value.grid
        if scales.dtype != biases.dtype:
            scales, biases = scales.astype(np.float32), biases.astype(np.float32)
        parts = {"weight": value.weight, "scales": scales, "biases": biases}
    else:
        parts = {"weight": value.weight, "scales": value.scales}
        if value.factors is not None:
            parts["global_scale"] = global_scales(value.factors)
    return {f"{module}.{part}": np.ascontiguousarray(array) for part, array in parts.items()}
