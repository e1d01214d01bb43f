"""What config.json says of weights in compressed-tensors' files: the groups of its quantization_config.

Not here: their tensors (`compressed`, `fp8`, `fp4`). Invariant: a form that none of these reads is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ...files.bounded import is_table

METHOD = "compressed-tensors"
_FORMATS = (
    *("dense", "int-quantized", "naive-quantized", "pack-quantized", "float-quantized", "mixed-precision"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
)


def weight_groups(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What each config group says of weights, [] where config.json says another method.

    CheckpointError: a block that is none. UnsupportedModel: a form that is not read.
    """
    block = config.get("quantization_config")
    if not is_table(block) or block.get("quant_method") != METHOD:
        return []
    groups = block.get("config_groups")
    if not is_table(groups) or not groups:
        raise CheckpointError("config.json: quantization_config of compressed-tensors has no config_groups")
    sparsity = block.get("sparsity_config")
    for key, said in (("transform_config", block.get("transform_config")), ("sparsity_config", sparsity)):
        if said and not (is_table(said) and said.get("format") == "dense"):
            raise UnsupportedModel(f"config.json: compressed-tensors with a {key} is not read")
    found: list[Mapping[str, Any]] = []
    for name, group in groups.items():
        weights = group.get("weights") if is_table(group) else None
        if not is_table(weights):
            raise CheckpointError(f"config.json: {name} of compressed-tensors has no weights")
        for form in (block.get("format"), group.get("format")):
            if form is not None and form not in _FORMATS:
                raise UnsupportedModel(f"config.json: compressed-tensors weights of format {form!r} are not read")
        kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
        whole = kind == "int" and type(bits) is int and 1 <= bits <= 8
        floating = kind == "float" and bits in (4, 8) and weights.get("symmetric", True)
        if not whole and not floating:
            raise UnsupportedModel(
                f"config.json: compressed-tensors weights of type {kind!r} in {bits!r} bits are not read"
            )
        found.append(weights)
    return found
