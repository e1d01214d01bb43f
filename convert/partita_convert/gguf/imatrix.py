"""What the columns of each matrix are multiplied by, in the files of llama.cpp's `llama-imatrix`: read and written.

Not here: measuring it (`activations`). Invariants: a number in a file is compared with the file's size before anything
is allocated; a damaged or another kind of file is a DataError in one line, which names it.

Two forms (llama.cpp, tools/imatrix): GGUF, `general.type` imatrix, for each matrix the sums of squares of its inputs,
`NAME.in_sum2` (matrices, n), over the rows that each saw, `NAME.counts` (matrices, 1); and before, little-endian:
entries, int32, then for each the name (int32 length, bytes), calls, int32, n, int32, and n float32, the mean squares
times the calls. Of a stack of experts, matrices is their number.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from partita.checkpoint.gguf import blocks, reader
from partita.errors import CheckpointError, DataError
from partita.files.atomic import whole_file

from .file import GgufWriter, Typed
from .write import Planned, importance_in_file

SUMS, COUNTS = ".in_sum2", ".counts"
_MOST_NAME = 1 << 10
_ENTRIES = 1 << 20


def read_imatrix(path: Path, planned: Sequence[Planned]) -> dict[str, np.ndarray]:
    """A tensor's name to a number for each of its columns, float64, of a stack of experts (experts, n); an expert that
    saw nothing has those of all. planned: the tensors of a file of the model.

    DataError: the file cannot be read, is another one, damaged, or of another model.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", field="imatrix") from None
    stacks = _of_gguf(path) if magic == b"GGUF" else _of_dat(path)
    found: dict[str, np.ndarray] = {}
    for tensor in planned:
        if tensor.gguf_name not in stacks or len(tensor.shape) < 2:
            continue
        sums, counts = stacks[tensor.gguf_name]
        n, name = tensor.shape[-1], tensor.gguf_name
        experts = math.prod(tensor.shape[:-2])
        if sums.size not in (n, n * experts):
            raise _wrong(path, f"{name} has {sums.size} numbers, the model's matrix {n} columns: it is another model's")
        sums = sums.reshape(-1, n)
        if counts.size not in (1, len(sums)):
            raise _wrong(path, f"damaged, {name} has {counts.size} counts for {len(sums)} matrices")
        mean = _means(sums, counts)
        if not np.isfinite(mean).all() or (mean < 0).any():
            raise _wrong(path, f"{name} has a number that is negative or not finite")
        if mean.any():  # experts that saw no token say nothing
            found[tensor.name] = mean if tensor.heads is None else _as_read(mean, tensor.heads)
    if not found:
        raise _wrong(path, "it names no matrix of this model")
    return found


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """sums (matrices, n) over counts (matrices or 1,): (n,) of one matrix, else of each, where it has any."""
    counts = np.broadcast_to(counts, len(sums))
    total = sums.sum(0) / max(counts.sum(), 1)
    if len(sums) == 1:
        return total
    seen = (counts > 0) & sums.any(-1)
    return np.where(seen[:, None], sums / np.maximum(counts, 1)[:, None], total)


def _as_read(mean: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """From the file's order of heads to the source's."""
    found = np.empty_like(mean).reshape(len(heads), -1)
    found[heads] = mean.reshape(len(heads), -1)
    return found.reshape(-1)


def _wrong(path: Path, what: str) -> DataError:
    return DataError(f"{path.name}: {what}", field="imatrix")


def _of_gguf(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name to (sums, counts), float64, flat."""
    try:
        file = reader.open_gguf(path)
        if file.metadata.get("general.type") != "imatrix":
            raise _wrong(path, "a GGUF file, and no importance matrix (general.type is not imatrix)")
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in file.tensors:
            if name.endswith(SUMS):
                key = name.removesuffix(SUMS)
                if key + COUNTS not in file.tensors:
                    raise _wrong(path, f"damaged, {key + COUNTS} is missing")
                sums, counts = _numbers(path, file, name), _numbers(path, file, key + COUNTS)
                found[key] = sums, counts
        return found
    except CheckpointError as error:
        raise DataError(str(error), field="imatrix") from None


def _numbers(path: Path, file: reader.GgufFile, name: str) -> np.ndarray:
    tensor = file.tensors[name]
    if tensor.type != "F32":
        raise _wrong(path, f"damaged, {name} is {tensor.type} and not F32")
    value = blocks.decode(file.raw(name), "F32", tensor.shape, name)
    assert isinstance(value, np.ndarray)
    return value.astype(np.float64).reshape(-1)


def _of_dat(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name to (mean squares times calls, calls)."""
    data, place = path.read_bytes(), 0

    def number(most: int) -> int:
        nonlocal place
        if place + 4 > len(data):
            raise _wrong(path, "no importance matrix, or cut off")
        (value,) = struct.unpack_from("<i", data, place)
        place += 4
        if not 0 < value <= most:
            raise _wrong(path, "no importance matrix, or a damaged one")
        return value

    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for _ in range(number(_ENTRIES)):
        length = number(_MOST_NAME)
        name = data[place : place + length].decode(errors="replace")
        place += length
        calls = number(2**31 - 1)
        size = number(len(data))
        if place + 4 * size > len(data):
            raise _wrong(path, "no importance matrix, or cut off")
        values = np.frombuffer(data, "<f4", size, place).astype(np.float64)
        place += 4 * size
        found[name] = values, np.full(1, calls, np.float64)
    return found


def write_imatrix(path: Path, planned: Sequence[Planned], columns: Mapping[str, np.ndarray], tokens: int) -> None:
    """As GGUF. columns: a tensor's name to the mean squares of its inputs, also (experts, n). tokens: how many were
    read, which counts say, of experts too, so that sums over counts are these means. DataError: the file exists or
    cannot be written."""
    keys = {
        "general.type": Typed("str", "imatrix"),
        "imatrix.datasets": Typed("str", ["calibration"], many=True),
        "imatrix.chunk_count": Typed("u32", 1),
        "imatrix.chunk_size": Typed("u32", tokens),
    }
    tensors: dict[str, np.ndarray] = {}
    for tensor in planned:
        if len(tensor.shape) < 2 or (mean := importance_in_file(tensor, columns)) is None:
            continue
        count = math.prod(tensor.shape[:-2])  # of a stack of experts
        sums = np.broadcast_to(mean.astype("<f4") * np.float32(tokens), (count, tensor.shape[-1]))
        tensors[tensor.gguf_name + SUMS] = np.ascontiguousarray(sums)
        tensors[tensor.gguf_name + COUNTS] = np.full((count, 1), tokens, "<f4")
    with whole_file(path, replace=False) as temporary, open(temporary, "wb") as file:
        writer = GgufWriter(file, keys, [(name, value.shape) for name, value in tensors.items()])
        for value in tensors.values():
            writer.write("F32", [value])
        writer.finish()
