"""In which order, shape and form a GGUF file keeps a part of a model, where it is not Hugging Face's.

Not here: bytes (`blocks`), names (`names`). Invariants: an arrangement and the converter's way back undo each other
without loss but for the rounding of a logarithm; no list of rows is longer than the tensor that it is for.

Sources are llama.cpp's converters and graphs. Value heads of a layer with the gated delta rule are grouped in Hugging
Face's order: with r value heads for each key head, head g r + j reads key head g. In tiled order, which is that of a
repeated tensor of keys, it stands at place j (key heads) + g.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...quantization import Packed, dequantize
from .architectures import Architecture
from .parts import BY_KEY_HEADS, GATE_AND_UP

Value = np.ndarray | Packed
_OF_ONE = {"ssm_conv1d": 1, "shortconv.conv": 1, "ffn_gate_inp_shexp": 0}
"""Parts of which Hugging Face has an axis more, of length 1, and where."""


@dataclass(frozen=True)
class Arrangement:
    """rows: row i in Hugging Face's order is the file's rows[i], which may have more. columns: the same of equal parts
    of its columns, one a head. None: the same order. axis: where Hugging Face has one more, of length 1; None: nowhere.
    decay: the file has -exp of the numbers. Rows are those of all leading axes as one.
    """

    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    axis: int | None = None
    decay: bool = False


def part_of(gguf_name: str) -> str:
    """ "ssm_a" of "blk.3.ssm_a", "attn_q" of "blk.3.attn_q.weight", "shortconv.conv" of "blk.3.shortconv.conv.weight";
    "" of what belongs to no layer."""
    prefix, *rest = gguf_name.split(".")
    if prefix != "blk" or len(rest) < 2:
        return ""
    return rest[1] if len(rest) == 2 else ".".join(rest[1:-1])


def permuted_heads(row: Architecture, config: Mapping[str, Any], gguf_name: str) -> int:
    """How many heads the rows of this tensor are permuted in, in pairs; 0 if they are not."""
    fields = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    return config[fields[part]] if row.permuted and (part := part_of(gguf_name)) in fields else 0


def new_axis(gguf_name: str, stored: tuple[int, ...]) -> int | None:
    """Where a tensor of this shape in the file gets an axis; None if it has it, or needs none."""
    axis = _OF_ONE.get(part_of(gguf_name))
    return axis if axis is not None and len(stored) == axis + 1 else None


def published_shape(config: Mapping[str, Any], gguf_name: str, stored: tuple[int, ...], name: str) -> tuple[int, ...]:
    """Hugging Face's shape of `name`, which the file has in this one."""
    axis = new_axis(gguf_name, stored)
    if (share := _share(gguf_name, name)) is not None and part_of(gguf_name) in BY_KEY_HEADS:
        stored = (config["linear_num_key_heads"] * sum(_widths(part_of(gguf_name), config)[share]), *stored[1:])
    elif share is not None and len(stored) == 3:
        stored = (*stored[:-2], stored[-2] // 2, stored[-1])
    return stored if axis is None else (*stored[:axis], 1, *stored[axis:])


def arrangement(
    row: Architecture, config: Mapping[str, Any], gguf_name: str, shape: tuple[int, ...], what: str, name: str = ""
) -> Arrangement:
    """Of one tensor. config: numbers of heads and their widths, by Hugging Face's names. shape: the file's, or Hugging
    Face's. what: begins a CheckpointError, for rows that heads do not divide. name: Hugging Face's, of what is read
    from a part that holds several."""
    if heads := permuted_heads(row, config, gguf_name):
        if shape[0] % (2 * heads):
            raise CheckpointError(f"{what} has {shape[0]} rows, which {heads} heads do not divide in pairs")
        return Arrangement(unpermuted_rows(shape[0], heads))
    part, share = part_of(gguf_name), _share(gguf_name, name)
    if share is not None and part in BY_KEY_HEADS:
        return Arrangement(rows_by_key_heads(part, config, shape[0], what)[share])
    if share is not None:
        if len(shape) != 3 or shape[1] % 2:
            raise CheckpointError(f"{what} has shape {shape}, which gate and up cannot share")
        return Arrangement(np.arange(shape[0] * shape[1]).reshape(shape[0], 2, -1)[:, share].reshape(-1))
    if row.recurrent is None:
        return Arrangement(axis=_OF_ONE.get(part))
    rows, columns = _tiled(config, part, shape, what) if row.recurrent == "tiled" else (None, None)
    return Arrangement(rows, columns, _OF_ONE.get(part), decay=part == "ssm_a")


def _tiled(
    config: Mapping[str, Any], part: str, shape: tuple[int, ...], what: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(rows, columns) of `Arrangement`."""
    key_heads, value_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    width, first = config["linear_value_head_dim"], 2 * key_heads * config["linear_key_head_dim"]
    places = {  # rows in front, and of each head
        "attn_qkv": (first, width),
        "ssm_conv1d": (first, width),
        "attn_gate": (0, width),
        "ssm_beta": (0, 1),
        "ssm_alpha": (0, 1),
        "ssm_a": (0, 1),
        "ssm_dt": (0, 1),
    }
    if key_heads == value_heads or part not in (*places, "ssm_out"):
        return None, None
    if part == "ssm_out":
        _check(what, "columns", math.prod(shape[1:]), value_heads * width)
        return None, grouped_heads(key_heads, value_heads)
    first, width = places[part]
    _check(what, "rows", shape[0], first + value_heads * width)
    rows = grouped_heads(key_heads, value_heads)[:, None] * width + np.arange(width)
    return np.concatenate([np.arange(first), first + rows.reshape(-1)]), None


def grouped_heads(key_heads: int, value_heads: int) -> np.ndarray:
    """The tiled place of each value head in grouped order, int64 (value heads,)."""
    return np.arange(value_heads).reshape(-1, key_heads).T.reshape(-1)


def _share(gguf_name: str, name: str) -> int | None:
    """Which of the tensors that a part holds is read; None where it is one of its own."""
    part = part_of(gguf_name)
    names = ("gate_proj", "up_proj") if part == GATE_AND_UP else BY_KEY_HEADS.get(part, ())
    return next((i for i, called in enumerate(names) if name.endswith(f".{called}.weight")), None)


def _widths(part: str, config: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Rows of a key head, in the order of the file, of each of BY_KEY_HEADS."""
    each = config["linear_num_value_heads"] // config["linear_num_key_heads"]
    if part == "ssm_ba":
        return (each,), (each,)
    key, values = config["linear_key_head_dim"], each * config["linear_value_head_dim"]
    return (key, key, values), (values,)


def rows_by_key_heads(part: str, config: Mapping[str, Any], rows: int, what: str) -> tuple[np.ndarray, ...]:
    """Of a matrix of so many rows, which has for each key head those of its query, key, value heads and their gates
    ("ssm_in"), or two numbers for each value head ("ssm_ba"): the rows of each of BY_KEY_HEADS. what: begins a
    CheckpointError, for another number of rows."""
    heads, widths = config["linear_num_key_heads"], _widths(part, config)
    total = sum(map(sum, widths))
    _check(what, "rows", rows, heads * total)
    of_heads, start, found = np.arange(rows).reshape(heads, total), 0, list[np.ndarray]()
    for own in widths:
        ends = np.cumsum(own)
        pieces = np.split(of_heads[:, start : start + ends[-1]], ends[:-1], axis=1)
        found.append(np.concatenate([piece.reshape(-1) for piece in pieces]))
        start += ends[-1]
    return tuple(found)


def _check(what: str, axis: str, found: int, expected: int) -> None:
    if found != expected:
        raise CheckpointError(f"{what} has {found} {axis}, its heads have {expected}")


def unpermuted_rows(rows: int, heads: int) -> np.ndarray:
    """Row numbers that bring GGUF's llama q or k back to Hugging Face's order, int64 (rows,).

    In a head of d rows GGUF keeps the two of a rotated pair side by side (2i, 2i + 1); Hugging Face keeps them half a
    head apart (i, i + d / 2). So row i of a head comes from row 2i, and row i + d / 2 from row 2i + 1.
    """
    pairs = rows // heads // 2
    return np.arange(rows).reshape(heads, pairs, 2).swapaxes(1, 2).reshape(rows)


def with_rows(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """These rows of all leading axes as one; of three, as many for each of the first."""
    if x.ndim != 3:
        return x[rows]
    return x.reshape(-1, x.shape[-1])[rows].reshape(len(x), -1, x.shape[-1])


def with_columns(value: Value, heads: np.ndarray) -> Value:
    """(rows, columns) with its equal parts, as many as there are heads, in another order. Packed stays packed where a
    part is whole groups in whole words; else it becomes dense, since a group's numbers share a scale."""
    if isinstance(value, Packed):
        width = value.shape[-1] // len(heads)
        if not width % value.group_size and not width * value.bits % 32:
            return value.map(lambda part: part if part is value.factors else reordered(part, heads))
        value = dequantize(value)
    return reordered(value, heads)


def reordered(x: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """(rows, anything) with the equal parts of its columns in another order."""
    return x.reshape(len(x), len(heads), -1)[:, heads].reshape(x.shape)


def exponent(decay: np.ndarray, what: str) -> np.ndarray:
    """A of decay = -exp(A), float32. CheckpointError: a decay that is above 0, or no number."""
    wide = -decay.astype(np.float64)
    if not (wide >= 0).all():
        raise CheckpointError(f"{what}: what decays by it would grow; the file is damaged, fetch it again")
    with np.errstate(divide="ignore"):
        return np.log(wide).astype(np.float32)
