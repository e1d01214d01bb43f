"""Launches of a decode step on MLX, counted in its graph without running it: the same on every machine.

MLX is lazy, so what a step would compute can be written down. On a CPU `mx.fast` functions fall apart into elementary
operations, on Metal each is a kernel: here each counts as one. Views launch nothing. A `slice_update` with an index on
the device is one launch here and two kernels on Metal, which computes where to write in a kernel of its own.

The source of this module is also what mlx-lm's program begins with, so it imports nothing of ours.
"""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

VIEWS = frozenset(
    [
        *(
            "AsStrided",
            "Broadcast",
            "Depends",
            "ExpandDims",
            "Flatten",
            "NumberOfElements",
            "Reshape",
            "Slice",
            "Split",
        ),
        *("Squeeze", "Transpose", "Unflatten", "View"),
    ]
)
FAST = "layer_norm", "rms_norm", "rope", "scaled_dot_product_attention"


def counted(step: Callable[[], Sequence[Any]]) -> dict[str, int]:
    """Primitives of what a step gives, arrays that have not been computed, by name; views left out."""
    fast: Any = mx.fast
    real, called = {name: getattr(fast, name) for name in FAST}, collections.Counter[str]()
    for name in FAST:
        setattr(fast, name, _one(name, called))
    try:
        arrays = step()
    finally:
        for name, function in real.items():
            setattr(fast, name, function)
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, *arrays)
        text = file.read()
    found = collections.Counter(re.findall(r'label ?="([A-Za-z]\w+)", shape=rectangle', text))
    if found.pop("ErfInv", 0) != sum(called.values()):
        raise RuntimeError("what mx.fast computes is not all in the graph, or is twice in it")
    return {name: count for name, count in (found + called).items() if name not in VIEWS}


def _one(name: str, called: collections.Counter[str]) -> Callable[..., Any]:
    """A function of the right shape that is one primitive, which nothing else here uses, and needs what it is given."""

    def call(x: Any, *rest: Any, **named: Any) -> Any:
        called[name] += 1
        given = [y for y in (*rest, *named.values()) if isinstance(y, mx.array)]
        if name == "scaled_dot_product_attention" and rest[1].shape[-1] != x.shape[-1]:
            raise ValueError("values of another size than keys are not counted")
        return mx.depends(mx.erfinv(x), given) if given else mx.erfinv(x)

    return call
