"""MLX's `quantization` block in config.json: {"bits", "group_size", "mode", MODULE: {...} or a boolean, ...}.

Not here: what a mode means. A module without a table of its own is quantized as the block says; its own table says how
else, and a mode that it leaves out is "affine".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...files.bounded import is_table
from ...quantization import AFFINE


def block(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The block, {} where there is none."""
    found: Mapping[str, Any] = config.get("quantization") or {}
    return found


def modes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The mode that each table of the block gives, by module; the block's own under "quantization"."""
    tables = {"quantization": block(config), **block(config)}
    return {where: table.get("mode", AFFINE) for where, table in tables.items() if is_table(table)}


def mode(config: Mapping[str, Any], module: str) -> Any:
    """The mode of one module."""
    own = block(config).get(module)
    table = own if is_table(own) else block(config)
    return table.get("mode", AFFINE)
