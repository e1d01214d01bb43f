"""MLX's `quantization` block in config.json: {"bits", "group_size", "mode", MODULE: {...} or a boolean, ...}.

Not here: what a mode means. A module without a table of its own is quantized as the block says; its own table says how
else, and a mode that it leaves out is "affine".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...files.bounded import is_table
from ...files.safetensors import StoredTensor
from ...quantization import AFFINE, SMALL_FLOATS


def block(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The block, {} where there is none."""
    found: Mapping[str, Any] = config.get("quantization") or {}
    return found


def modes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The mode that each table of the block gives, by module; the block's own under "quantization"."""
    tables = {"quantization": block(config), **block(config)}
    return {where: table.get("mode", AFFINE) for where, table in tables.items() if is_table(table)}


def table(config: Mapping[str, Any], module: str) -> Mapping[str, Any]:
    """What says how a module is quantized: its own table, else the block."""
    own = block(config).get(module)
    return own if is_table(own) else block(config)


def mode(config: Mapping[str, Any], module: str) -> Any:
    """The mode of one module, as config.json has it."""
    return table(config, module).get("mode", AFFINE)


def mode_of(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], module: str) -> Any:
    """The same, where a module without a table of its own may be in another mode than the block's: scales of bytes are
    of small floats, and a code of each is in so many words that the mode is plain. So reads mlx-lm."""
    weight, scales = tensors.get(f"{module}.weight"), tensors.get(f"{module}.scales")
    if is_table(block(config).get(module)) or not block(config) or weight is None or scales is None:
        return mode(config, module)
    if scales.dtype != "U8" or not weight.shape or not scales.shape:
        return mode(config, module)
    words, groups = weight.shape[-1], scales.shape[-1]
    fitting = (name for name, (bits, group) in SMALL_FLOATS.items() if words * 32 == groups * group * bits)
    return next(fitting, mode(config, module))
