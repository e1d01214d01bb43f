"""4-bit floats of compressed-tensors and of NVIDIA's Model Optimizer, in MLX's layout (`quantization.Packed`), where no
code and no multiplier changes.

Forms, by the tensors of a module X, with `in` and `out` of its matrix (out, in):
    compressed-tensors  X.weight_packed uint8 (out, in / 2), the first of two codes in the low half.
                        nvfp4-pack-quantized: X.weight_scale E4M3 (out, in / 16) over X.weight_global_scale
                        mxfp4-pack-quantized: X.weight_scale uint8 or E8M0 (out, in / 32), exponents
    modelopt            X.weight uint8 (out, in / 2). NVFP4: X.weight_scale E4M3 times X.weight_scale_2; MXFP4 as above
Stacks of experts have one dimension more, and one global scale or as many as experts.

modelopt's settings are in config.json, or in hf_quant_config.json, which `folder` reads (`announced`). Not here: its
8-bit floats (`fp8`); what only activations use. Invariant: a global scale that divides becomes a factor, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedModel
from ...files.bounded import is_table
from ...files.safetensors import StoredTensor
from ...quantization import MXFP4, NVFP4, SMALL_FLOATS, Packed
from ...small_floats import check
from .config_groups import METHOD, weight_groups
from .stored import Found, ReadTensor, Scheme, StoredWeight

MODELOPT = ("modelopt", "modelopt_fp4")
SETTINGS = "hf_quant_config.json"
_ALGORITHMS = ("NVFP4", "FP8", "MXFP8", "MIXED_PRECISION", "W4A8_NVFP4_FP8", "W4A8_MXFP4_FP8")
_MODES = {"F8_E4M3": NVFP4, "U8": MXFP4, "F8_E8M0": MXFP4}
"""By the dtype of multipliers."""
_BESIDE = ("input_scale", "input_global_scale", "k_scale", "v_scale", "q_scale", "output_scale")


@dataclass(frozen=True, kw_only=True)
class Fp4Weight(StoredWeight):
    """what: the folder and the module, for messages. codes, scale: names of the tensors; whole: of the global scale, if
    there is one. divides: whether it divides."""

    what: str
    mode: str
    codes: str
    scale: str
    whole: str | None
    divides: bool

    def read(self, tensor: ReadTensor) -> Packed:
        bits, group = SMALL_FLOATS[self.mode]
        words = np.ascontiguousarray(tensor(self.codes)).view("<u4")
        scales = np.ascontiguousarray(tensor(self.scale)).view(np.uint8)
        factors = None if self.whole is None else self._factors(tensor(self.whole))
        return check(Packed(words, scales, None, bits, group, self.mode, factors), self.what)

    def _factors(self, whole: np.ndarray) -> np.ndarray:
        """One for each row, (*leading, 1)."""
        *lead, rows, _ = self.shape
        each = whole.astype(np.float32).reshape(*(lead if whole.size > 1 else [1] * len(lead)), 1, 1)
        with np.errstate(divide="ignore"):
            each = 1 / each if self.divides else each
        return np.ascontiguousarray(np.broadcast_to(each, (*lead, rows, 1)))


def announced(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with what hf_quant_config.json says of the weights, as newer files have it in config.json itself.

    CheckpointError: settings of another form.
    """
    said = settings.get("quantization")
    if not is_table(said):
        raise CheckpointError(f"{SETTINGS}: there is no table of quantization")
    if config.get("quantization_config") or not said.get("quant_algo"):
        return dict(config)
    return {**config, "quantization_config": {**said, "quant_method": MODELOPT[0]}}


def is_modelopt(config: Mapping[str, Any]) -> bool:
    """Whether config.json announces it. UnsupportedModel: an algorithm that is not read."""
    block = config.get("quantization_config")
    if not is_table(block) or block.get("quant_method") not in MODELOPT:
        return False
    algorithm = block.get("quant_algo")
    if algorithm not in _ALGORITHMS:
        raise UnsupportedModel(f"config.json: modelopt weights of quant_algo {algorithm!r} are not read")
    return True


def find(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], where: str, read: ReadTensor) -> Found:
    """See `stored.Finder`: codes in bytes, with multipliers of 8-bit floats beside them."""
    modelopt = is_modelopt(config)
    if not modelopt and not any((g.get("type"), g.get("num_bits")) == ("float", 4) for g in weight_groups(config)):
        return {}
    suffix, second = (".weight", "weight_scale_2") if modelopt else (".weight_packed", "weight_global_scale")
    found: Found = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(suffix)
        if module == name or tensor.dtype != "U8":
            continue
        if f"{module}.pre_quant_scale" in tensors:
            raise UnsupportedModel(f"{where}: {module} has a pre_quant_scale for its inputs, which is not read")
        found[name] = None
        found[f"{module}.weight"] = _weight(module, tensor, name, second, tensors, where)
        found |= dict.fromkeys((f"{module}.weight_scale", f"{module}.{second}"))
    if found:
        found |= {name: None for name in tensors if name.rpartition(".")[2] in _BESIDE}
    return found


def _weight(
    module: str, codes: StoredTensor, name: str, second: str, tensors: Mapping[str, StoredTensor], where: str
) -> Fp4Weight:
    what, scale = f"{where}: {module}", tensors.get(f"{module}.weight_scale")
    if scale is None or scale.dtype not in _MODES:
        found = "no weight_scale" if scale is None else f"a weight_scale in {scale.dtype}"
        raise CheckpointError(f"{what} has 4-bit floats and {found}, which is F8_E4M3, F8_E8M0 or U8")
    mode = _MODES[scale.dtype]
    *lead, columns = codes.shape or (0,)
    shape, group = (*lead, columns * 2), SMALL_FLOATS[mode][1]
    if not lead or not columns or scale.shape != (*lead, columns * 2 // group) or columns * 2 % group:
        raise CheckpointError(f"{what}: {mode.upper()} codes {codes.shape} do not go with weight_scale {scale.shape}")
    whole = tensors.get(f"{module}.{second}") if mode == NVFP4 else None
    if mode == NVFP4 and (
        whole is None
        or whole.dtype not in ("F32", "BF16", "F16")
        or math.prod(whole.shape) not in (1, math.prod(lead[:-1]))
    ):
        found = "none" if whole is None else f"{whole.shape} in {whole.dtype}"
        raise CheckpointError(f"{what}: NVFP4 codes {codes.shape} need a {second}, one number; there is {found}")
    return Fp4Weight(
        name=f"{module}.weight",
        shape=shape,
        stored_as=mode.upper(),
        what=what,
        mode=mode,
        codes=name,
        scale=f"{module}.weight_scale",
        whole=None if whole is None else f"{module}.{second}",
        divides=second == "weight_global_scale",
    )


SCHEME = Scheme(find, methods=(METHOD, *MODELOPT))
