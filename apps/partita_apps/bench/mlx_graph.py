"""Launches of a step on MLX, counted in its graph without running it: the same on every machine.

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
            "Copy",  # another name for the same memory
            "CustomTransforms",
            "Depends",
            "ExpandDims",
            "Flatten",
            "NumberOfElements",
            "Reshape",
            "Slice",
            "Split",
            "StopGradient",
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
    found = _primitives(arrays)
    if found.pop("ErfInv", 0) != sum(called.values()):
        raise RuntimeError("what mx.fast computes is not all in the graph, or is twice in it")
    return {name: count for name, count in (found + called).items() if name not in VIEWS}


def _primitives(arrays: Sequence[Any]) -> collections.Counter[str]:
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, *arrays)
        text = file.read()
    return collections.Counter(re.findall(r'label ?="([A-Za-z]\w+)", shape=rectangle', text))


STANDING_IN = {
    "CumMax": "rms_norm",
    "CumMin": "rms_norm, back",
    "CumProd": "rope",
    "CumLogAddExp": "rope, back",
    "Sort": "cross_entropy",
    "CumSum": "cross_entropy, back",
}
"""Primitives that a training step has no other use for, that keep shapes, and that `mx.compile` joins to nothing."""


def counted_with_gradients(step: Callable[[], Sequence[Any]]) -> dict[str, int]:
    """As `counted`, of a step of training. Norms, rotations and cross entropy are one launch forward and one back.
    Attention falls apart, as it does on Metal where gradients are wanted."""
    fast: Any = mx.fast
    instead: dict[str, Callable[..., Any]] = {
        "rms_norm": lambda x, weight, eps: _both(mx.cummax, mx.cummin, x),
        "rope": lambda x, *_, **__: _both(mx.cumprod, mx.logcumsumexp, x),
        "cross_entropy": lambda x, targets: _both(mx.sort, mx.cumsum, x)[..., 0].astype(mx.float32),
    }
    real = {name: getattr(fast, name) for name in instead}
    for name, function in instead.items():
        setattr(fast, name, function)
    try:
        found = _primitives(step())
    finally:
        for name, function in real.items():
            setattr(fast, name, function)
    return {STANDING_IN.get(name, name): count for name, count in found.items() if name not in VIEWS}


def _both(forward: Callable[..., Any], back: Callable[..., Any], x: Any) -> Any:
    """One primitive each way, of x alone."""
    function: Any = mx.custom_function(lambda x: forward(x, axis=-1))
    function.vjp(lambda primals, grad, output: back(mx.depends([grad], [primals])[0], axis=-1))
    return function(x)


def _one(name: str, called: collections.Counter[str]) -> Callable[..., Any]:
    """A function of the right shape that is one primitive, which nothing else here uses, and needs what it is given."""

    def call(x: Any, *rest: Any, **named: Any) -> Any:
        called[name] += 1
        given = [y for y in (*rest, *named.values()) if isinstance(y, mx.array)]
        if name == "scaled_dot_product_attention" and rest[1].shape[-1] != x.shape[-1]:
            raise ValueError("values of another size than keys are not counted")
        return mx.depends(mx.erfinv(x), given) if given else mx.erfinv(x)

    return call
