"""What a person should know of a checkpoint before it is played, a line each. Reads no weight but rows of two matrices
that should be one."""

from __future__ import annotations

import math

import numpy as np

from ..backend import Backend
from ..checkpoint.base import Checkpoint
from ..checkpoint.names import EMBEDDING, HEAD, Index, predicts_further
from ..quantization import Packed, dequantize
from ..units import memory_size
from .families.wrappers import left_out
from .load import bits_on_device, dense_bits, packed_as, read_config
from .weight_source import Value, WeightSource

_FLOATS = ("F64", "F32", "F16", "BF16")
_COMPARED = 64  # rows of two matrices that should be one


def notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a person should know: that a model sees or hears, or guesses further tokens, and is played without, and
    where a checkpoint says two things, of which the config decides, and the other is reported."""
    return _beside(checkpoint) + _further(checkpoint) + _two_heads(checkpoint)


def held_dense(ops: Backend, checkpoint: Checkpoint) -> tuple[str, ...]:
    """That some weights take more memory than their files do, since products of this backend do not take them as they
    are stored; nothing where there are none."""
    source, dense = WeightSource(checkpoint, read_config(checkpoint)), dense_bits(ops)
    kinds: dict[str, int] = {}
    for spec in source.specs:
        kind = source.stored_as(spec)
        packed = packed_as(kind, ops.smallest_group)
        if bits_on_device(packed, dense, ops.modes) == dense and kind not in _FLOATS:
            kinds[kind] = kinds.get(kind, 0) + math.prod(spec.shape)
    if not kinds:
        return ()
    size = memory_size(sum(kinds.values()) * dense // 8)
    said = f"weights in {' and '.join(kinds)} are held in {ops.decode_dtype} by the {ops.name} backend: {size}"
    return (f"{checkpoint.path.name}: {said}",)


def _beside(checkpoint: Checkpoint) -> tuple[str, ...]:
    parts = left_out(checkpoint.names())
    if not parts:
        return ()
    said = ", ".join(f"{part} ({count} tensors)" for part, count in parts.items())
    return (f"{checkpoint.path.name}: this model also sees or hears, by {said}; here it reads and writes text alone",)


def _further(checkpoint: Checkpoint) -> tuple[str, ...]:
    count = sum(map(predicts_further, checkpoint.names()))
    if not count:
        return ()
    return (f"{checkpoint.path.name}: {count} tensors that guess further tokens than the next (mtp) are not used",)


def _two_heads(checkpoint: Checkpoint) -> tuple[str, ...]:
    index = Index(checkpoint.names())
    head, embedding = index.find(HEAD), index.find(EMBEDDING)
    if head is None or embedding is None or not read_config(checkpoint).tie_embeddings:
        return ()
    if checkpoint.shape(head) == checkpoint.shape(embedding) and _alike(
        checkpoint.read(head), checkpoint.read(embedding)
    ):
        return ()
    return (
        f"{checkpoint.path.name}: {head} is not the embedding, and config.json says that it is: the embedding is used; "
        "if the head is meant, set tie_word_embeddings to false there",
    )


def _alike(a: Value, b: Value) -> bool:
    """Whether two matrices hold the same numbers, by rows from all over them; each may be rounded in its own way."""
    rows = np.unique(np.linspace(0, a.shape[0] - 1, _COMPARED, dtype=int))
    x, y = (dequantize(v.map(lambda part: part[rows])) if isinstance(v, Packed) else v[rows] for v in (a, b))
    x, y = x.astype(np.float32), y.astype(np.float32)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype:
        return np.array_equal(x, y, equal_nan=True)
    return float(np.square(x - y).sum()) <= 0.05 * float(np.square(x).sum())
