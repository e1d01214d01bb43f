"""GPTQ and AWQ: X.qweight, X.qzeros and X.scales in the place of X.weight, and auto-round, which writes either.

By `quantization_config`, with `in` and `out` of the matrix (out, in):
    gptq        qweight (in * bits / 32, out): a stream of bits down each column. qzeros (groups, out * bits / 32):
                zero points less one, unless checkpoint_format is gptq_v2. g_idx (in,): the group of each column
    awq         qweight (in, out / 8) and qzeros (groups, out / 8): eight integers a word, outputs in the order 0, 2, 4,
                6, 1, 3, 5, 7 from its low end. version gemm alone
    auto-round  packing_format: auto_round:auto_gptq is gptq, auto_round and auto_round:gptqmodel are gptq_v2,
                auto_round:auto_awq is awq
Scales are (groups, out). How many bits and columns a matrix has follows from its tensors, which may differ from those
that config.json names for all.

With `desc_act`, GPTQ takes columns by how much they matter, and g_idx is in any order: where it is the order of places
after all (static groups), the integers stay; else the matrix becomes dense (see `integers`). Not here: gemv and marlin
layouts, which are refused by name. Invariant: integers arrive as stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedModel
from ...files.bounded import is_table
from ...files.safetensors import StoredTensor
from ...quantization import pack, unpack
from . import integers
from .fp8 import target_dtype
from .integers import FLOATS, Integers, IntegerWeight
from .stored import Found, ReadTensor, Scheme

METHODS = ("gptq", "awq", "auto-round", "intel/auto-round")
_BITS = (2, 3, 4, 8)
_AWQ_BITS = 4
_OUTPUTS = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ's, counted from its low end, its eight outputs are."""
_PACKINGS = {
    "auto_round:auto_gptq": "gptq",
    "auto_round": "gptq_v2",
    "auto_round:gptqmodel": "gptq_v2",
    "auto_round:auto_awq": "awq",
}


@dataclass(frozen=True, kw_only=True)
class GptqWeight(IntegerWeight):
    """what: the folder and the module, for messages. less: what was taken from zero points. index: the name of g_idx,
    where there is one."""

    what: str
    less: int
    index: str | None

    def integers(self, tensor: ReadTensor) -> Integers:
        module = self.name.removesuffix(".weight")
        words = np.ascontiguousarray(tensor(f"{module}.qweight").T).view("<u4")
        zeros = unpack(tensor(f"{module}.qzeros").view("<u4"), self.bits).T
        scales = tensor(f"{module}.scales").T
        order = None
        if self.index is not None:
            order = integers.in_order(tensor(self.index), self.shape[-1], self.step, scales.shape[-1], self.what)
            if order is not None and not self.ordered:
                raise CheckpointError(f"{self.what}.g_idx orders columns, and config.json says desc_act false")
        return Integers(words, scales, zeros.astype(np.int16) + np.int16(self.less), order)


class AwqWeight(IntegerWeight):
    def integers(self, tensor: ReadTensor) -> Integers:
        module = self.name.removesuffix(".weight")
        q, zeros = (_outputs(tensor(f"{module}.{part}")) for part in ("qweight", "qzeros"))
        return Integers(pack(np.pad(q, ((0, 0), (0, -q.shape[1] % 8))), _AWQ_BITS), tensor(f"{module}.scales").T, zeros)


def _outputs(words: np.ndarray) -> np.ndarray:
    """AWQ's words int32 (n, out / 8) to uint8 (out, n)."""
    shifts = np.array(_OUTPUTS, np.uint32) * np.uint32(_AWQ_BITS)
    each = (words.view("<u4")[..., None] >> shifts) & np.uint32(15)
    return np.ascontiguousarray(each.astype(np.uint8).reshape(len(words), -1).T)


def layout(config: Mapping[str, Any]) -> str | None:
    """One of gptq, gptq_v2 and awq; None where config.json says no such method. UnsupportedModel: another form."""
    block = config.get("quantization_config")
    if not is_table(block) or block.get("quant_method") not in METHODS:
        return None
    method = block["quant_method"]
    if method == "awq":
        version = str(block.get("version") or "gemm").lower()
        if version != "gemm":
            raise UnsupportedModel(f"config.json: awq weights of version {version!r} are not read, gemm is")
        return "awq"
    if method == "gptq":
        form = str(block.get("checkpoint_format") or block.get("format") or "gptq").lower()
        if form not in ("gptq", "gptq_v2"):
            raise UnsupportedModel(f"config.json: gptq weights of checkpoint_format {form!r} are not read")
        return form
    packing = str(block.get("packing_format"))
    if packing not in _PACKINGS:
        raise UnsupportedModel(f"config.json: auto-round weights of packing_format {packing!r} are not read")
    return _PACKINGS[packing]


def find(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor) -> Found:
    """See `stored.Finder`. Reads g_idx where config.json says that columns are ordered."""
    form = layout(config)
    if form is None:
        return {}
    found: Found = {}
    for name in tensors:
        module = name.removesuffix(".qweight")
        if module == name:
            continue
        parts = _Parts.of(module, tensors, where)
        if form == "awq":
            found[f"{module}.weight"] = _awq(parts, config)
        else:
            found[f"{module}.weight"] = _gptq(parts, config, form, tensors.get(f"{module}.g_idx"), read)
        found |= {f"{module}.{part}": None for part in ("qweight", "qzeros", "scales", "g_idx")}
    if not found:
        raise CheckpointError(f"{where}: config.json says {form}, and no tensor is a qweight")
    return found


@dataclass(frozen=True)
class _Parts:
    """A module's tensors, by their shapes."""

    module: str
    qweight: tuple[int, ...]
    qzeros: tuple[int, ...]
    scales: tuple[int, ...]
    where: str

    @classmethod
    def of(cls, module: str, tensors: Mapping[str, StoredTensor], where: str) -> _Parts:
        shapes: dict[str, tuple[int, ...]] = {}
        for part in ("qweight", "qzeros", "scales"):
            tensor = tensors.get(f"{module}.{part}")
            if tensor is None:
                raise CheckpointError(f"{where}: {module} has a qweight and no {part}")
            kinds = FLOATS if part == "scales" else ("I32", "U32")
            if tensor.dtype not in kinds or len(tensor.shape) != 2:
                raise CheckpointError(
                    f"{where}: {module}.{part} of shape {tensor.shape} in {tensor.dtype} is not a matrix in {kinds[0]}"
                )
            shapes[part] = tensor.shape
        return cls(module=module, **shapes, where=where)

    def step(self, config: Mapping[str, Any], size: int, fits: bool) -> int:
        """Columns of `size` that share a scale: as config.json says if there are so many groups, else an equal share.

        CheckpointError: tensors that do not go together, which is all that is said where fits is False."""
        said, groups = config["quantization_config"].get("group_size"), self.scales[0]
        if fits and type(said) is int and said > 0 and -(-size // said) == groups:
            return min(said, size)
        if fits and size and groups and size % groups == 0:
            return size // groups
        raise CheckpointError(
            f"{self.where}: {self.module}: qweight {self.qweight} does not go with qzeros {self.qzeros} and scales "
            f"{self.scales}"
        )


def _gptq(
    parts: _Parts, config: Mapping[str, Any], form: str, index: StoredTensor | None, read: ReadTensor
) -> GptqWeight:
    (rows, out), (groups, words), module = parts.qweight, parts.qzeros, parts.module
    bits = words * 32 // out if out else 0
    size = rows * 32 // bits if bits else 0
    whole = bits in _BITS and out * bits == words * 32 and size * bits == rows * 32
    step = parts.step(config, size, whole and parts.scales == (groups, out))
    what, ordered = f"{parts.where}: {module}", False
    if index is not None:
        if (index.dtype, index.shape) != ("I32", (size,)):
            raise CheckpointError(f"{what}.g_idx of shape {index.shape} in {index.dtype} is not for {size} columns")
        if config["quantization_config"].get("desc_act"):
            ordered = integers.in_order(read(f"{module}.g_idx"), size, step, groups, what) is not None
    return GptqWeight(
        name=f"{module}.weight",
        shape=(out, size),
        stored_as=integers.stored_as(bits, size, step, ordered=ordered),
        bits=bits,
        step=step,
        dtype=target_dtype(config),
        ordered=ordered,
        what=what,
        less=0 if form == "gptq_v2" else 1,
        index=None if index is None else f"{module}.g_idx",
    )


def _awq(parts: _Parts, config: Mapping[str, Any]) -> AwqWeight:
    (size, words), (groups, out) = parts.qweight, parts.scales
    step = parts.step(config, size, words * 8 == out and parts.qzeros == (groups, words))
    return AwqWeight(
        name=f"{parts.module}.weight",
        shape=(out, size),
        stored_as=integers.stored_as(_AWQ_BITS, size, step),
        bits=_AWQ_BITS,
        step=step,
        dtype=target_dtype(config),
    )


SCHEME = Scheme(find, methods=METHODS)
