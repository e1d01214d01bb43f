"""Gradients of every operation that a forward pass uses: against central differences of the oracle in float64, and
between backends.

An example is a function of a backend and of named arrays that are differentiated; its loss is a fixed random weighting
of what it returns. Values are compared too. What the seam adds for training beside operations is in test_training.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import partita_backends
from partita.backend import MASKED, Backend
from partita.quantization import quantize_weight
from partita_backends.numpy import NumpyBackend

from .. import bounds
from . import test_recurrent_operations as recurrent
from .conftest import NAMES

TRAINERS = [name for name in NAMES if name != "numpy"]
STEP = 1e-5
# There and back: no example sums more than 32 terms at a time (a product; a loss), and none has more than two such sums
# on its way, besides a few roundings for each function.
ROUNDINGS = 2 * (32 + 32 + 16)


@dataclass(frozen=True)
class Example:
    """function(ops, arrays) -> array. inputs: float32, differentiated all."""

    function: Callable[[Backend, dict[str, Any]], Any]
    inputs: dict[str, np.ndarray]

    def loss(self, ops: Backend, arrays: dict[str, Any]) -> Any:
        y = ops.cast(self.function(ops, arrays), "float32").reshape(-1)
        return ops.sum(y * ops.array(normal(y.shape[0], seed=99)), 0), (y,)

    def gradients(self, ops: Backend) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What the function gives, flat, and the loss's gradients."""
        arrays = {name: ops.array(x) for name, x in self.inputs.items()}
        (value, (y,)), found = ops.value_and_grad(self.loss)(arrays)
        ops.launch(value, y, *found.values())
        ops.sync()
        return ops.to_numpy(y), {name: ops.to_numpy(x) for name, x in found.items()}

    def differences(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The same of the oracle in float64."""
        ops = NumpyBackend(dtype="float64")
        loss = ops.value(self.loss)
        arrays = {name: ops.array(x) for name, x in self.inputs.items()}
        _, (y,) = loss(arrays)
        found = {}
        for name, x in arrays.items():
            slopes = np.zeros(x.size)
            for i in range(x.size):
                ends = []
                for step in (STEP, -STEP):
                    moved = x.copy()
                    moved.reshape(-1)[i] += step
                    ends.append(loss(arrays | {name: moved})[0])
                slopes[i] = (ends[0] - ends[1]) / (2 * STEP)
            found[name] = slopes.reshape(x.shape)
        return y, found


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def integers(high: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.int32)


def of_x(function: Callable[[Backend, Any], Any], *shape: int, scale: float = 1.0) -> Example:
    return Example(lambda ops, a: function(ops, a["x"]), {"x": normal(*shape, scale=scale)})


def frozen(rows: int, bits: int | None) -> Example:
    dense = normal(16, 32, scale=0.3, seed=1)
    weight: Any = dense.astype(ml_dtypes.bfloat16) if bits is None else quantize_weight(dense, bits, 32)
    return of_x(lambda ops, x: ops.linear(x, ops.prepare(weight)), 1, rows, 32)


def adapted(rows: int, bits: int | None) -> Example:
    """Its input comes out of a norm, and is read a second time."""
    dense = normal(16, 32, scale=0.3, seed=1)
    weight: Any = dense if bits is None else quantize_weight(dense, bits, 32)
    inputs = {"x": normal(1, rows, 32), "a": normal(3, 32, seed=2, scale=0.2), "b": normal(16, 3, seed=3)}

    def function(ops: Backend, a: dict[str, Any]) -> Any:
        x = ops.rms_norm(a["x"], ops.array(normal(32, seed=5)), 1e-3)
        y = ops.adapted_linear(x, ops.prepare(weight), a["a"], a["b"], 0.5)
        return ops.concat([y, ops.linear(x, ops.array(normal(16, 32, seed=4, scale=0.3)))], 1)

    return Example(function, inputs)


def plain(rows: int) -> Example:
    inputs = {"x": normal(1, rows, 8), "w": normal(5, 8, seed=1), "b": normal(5, seed=2)}
    return Example(lambda ops, a: ops.linear(a["x"], a["w"], a["b"]), inputs)


def expert(shared: bool, tokens: int, bits: int | None) -> Example:
    x = normal(2, tokens, 1 if shared else 2, 32)
    index = integers(3, 2, tokens, 2, seed=tokens)  # the last expert is never chosen
    dense = normal(4, 6, 32, seed=1)
    if bits is None:
        inputs = {"x": x, "w": dense, "b": normal(4, 6, seed=2)}
        return Example(lambda ops, a: ops.moe_linear(a["x"], a["w"], ops.array(index), a["b"]), inputs)
    packed = quantize_weight(dense, bits, 32)
    return Example(lambda ops, a: ops.moe_linear(a["x"], ops.prepare_experts(packed), ops.array(index)), {"x": x})


def rotate(half: int) -> Example:
    angle = normal(2, 3, half, seed=1)

    def run(ops: Backend, x: Any) -> Any:
        return ops.rotate(x, ops.turns(ops.array(np.cos(angle)), ops.array(np.sin(angle)), 2, 1))

    return of_x(run, 2, 3, 3, 8)


def glu(name: str) -> Example:
    inputs = {"gate": normal(4, 6, scale=4), "up": normal(4, 6, seed=1, scale=5)}
    return Example(lambda ops, a: ops.glu(a["gate"], a["up"], name), inputs)


def mask(tokens: int, window: int | None, documents: tuple[int, ...]) -> np.ndarray:
    """float32 (1, T, T): what a token of a packed row sees."""
    query, key = np.arange(tokens)[:, None], np.arange(tokens)[None]
    segment = np.repeat(np.arange(len(documents)), documents)
    seen = (key <= query) & (segment[:, None] == segment[None])
    if window is not None:
        seen &= key > query - window
    return np.where(seen, 0, MASKED).astype(np.float32)[None]


def attention(
    seen: np.ndarray | None = None, *, tokens: int = 7, softcap: float | None = None, logits: bool = False, kv: int = 2
) -> Example:
    inputs = {
        "q": normal(2, 4, tokens, 8),
        "k": normal(2, kv, tokens, 8, seed=1),
        "v": normal(2, kv, tokens, 8, seed=2),
    }
    if logits:
        inputs["logits"] = normal(4, seed=3)

    def function(ops: Backend, a: dict[str, Any]) -> Any:
        both = None if seen is None else ops.array(np.repeat(seen, 2, 0))
        q, k, v, extra = a["q"], a["k"], a["v"], a.get("logits")
        return ops.attention(q, k, v, both, scale=0.3, softcap=softcap, sink_logits=extra)

    return Example(function, inputs)


def joined(ops: Backend, a: dict[str, Any]) -> Any:
    index = ops.array(integers(6, 2, 3))
    both = ops.concat([a["x"], a["y"] * 2], 0)  # 6 6
    rows, columns = ops.take(both, index, 0), ops.take(both, index, -1)  # 2 3 6, 6 2 3
    return rows + columns.reshape(6, 6).swapaxes(0, 1).reshape(2, 3, 6)


def chosen(ops: Backend, a: dict[str, Any]) -> Any:
    return ops.where(ops.array(normal(3, 4, seed=7)) > 0, a["x"] * 3, ops.where(a["y"] > 0, a["y"], 0.0))


def chunks(rows: int) -> Example:
    """A cross entropy over rows in chunks, with a head that is trained."""
    index, weight = integers(9, 10, seed=3), normal(10, seed=4)
    inputs = {"x": normal(10, 4), "w": normal(9, 4, seed=1)}

    def function(ops: Backend, a: dict[str, Any]) -> Any:
        def part(trained: dict[str, Any], x: Any, index: Any, weight: Any) -> Any:
            logits = ops.linear(x, trained["w"])
            return ops.sum((ops.logsumexp(logits, -1) - ops.pick(logits, index)) * weight, 0)

        run = ops.chunked_sum(part, rows)
        return (run({"w": a["w"] * 2}, a["x"], ops.array(index), ops.array(weight)) * 0.5).reshape(1)

    return Example(function, inputs)


def parts(ops: Backend, a: dict[str, Any]) -> Any:
    """The last one is not used."""
    x, w, bias, _ = ops.unflatten(a["flat"], [(2, 3), (4, 3), (4,), (1, 2)], "float32")
    return ops.linear(x, w, bias)


def recomputed(ops: Backend, a: dict[str, Any]) -> Any:
    def block(trained: dict[str, Any], x: Any, index: Any) -> tuple[Any, Any]:
        y = ops.glu(ops.linear(x, trained["w"]), x, "silu")
        return ops.take(y, index, 0), ops.tanh(x)

    first, second = ops.checkpoint(block)({"w": a["w"]}, a["x"], ops.array(integers(3, 5)))
    return ops.concat([first, second], 0)


def convolution(documents: bool) -> Example:
    arrays = recurrent.convolved(2, 5)

    def function(ops: Backend, a: dict[str, Any]) -> Any:
        places = ops.array(recurrent.places(recurrent.begins(2, 5))) if documents else None
        y, tail = ops.causal_conv(**a, positions=places)
        return ops.concat([y, tail], 1)

    return Example(function, arrays)


def rule(tokens: int, documents: bool, *, forgets: bool = False) -> Example:
    """Of two key heads and four value heads of 3 and 2 numbers. forgets: all there was, at the third token."""
    arrays = recurrent.delta(1, tokens, sizes=(3, 2))
    if forgets:
        arrays["decay"][:, 2] = -1000

    def function(ops: Backend, a: dict[str, Any]) -> Any:
        fresh = ops.array(np.arange(tokens)[None] == 4) if documents else None
        y, state = ops.gated_delta(**a, fresh=fresh)
        return ops.concat([y.reshape(-1), state.reshape(-1)], 0)

    return Example(function, arrays)


WITHOUT_GRADIENT = frozenset(
    {
        *("array", "to_numpy", "zeros", "full", "launch", "fetch", "sync", "memory", "reset_peak"),  # of the host
        *("prepare", "prepare_experts", "prepare_vector"),  # weights that stay as they are
        *(
            "copy",
            "assign",
            "place",
            "write",
            "store",
            "put_keys",
            "cached_attention",
            "quantize",
            "dequantize",
        ),  # of a cache
        *("argmax", "scatter_add", "compile"),  # of decoding
        "elementwise",  # of the optimizer
        *("value", "value_and_grad", "stop_gradient"),  # tested in test_training.py
    }
)
"""Methods of the protocol that no loss differentiates; every other one is called by an example."""

EXAMPLES: dict[str, Example] = {
    "linear": plain(5),
    "linear-1-row": plain(1),
    **{f"linear-{bits}-bits-{rows}-rows": frozen(rows, bits) for bits in (2, 3, 4, 5, 6, 8) for rows in (1, 9)},
    "linear-bfloat16": frozen(3, None),
    **{f"adapted_linear-{bits or 'dense'}-{rows}-rows": adapted(rows, bits) for bits in (None, 4) for rows in (1, 9)},
    "moe_linear": expert(True, 3, None),
    "moe_linear-many": expert(False, 7, None),
    "moe_linear-4-bits": expert(True, 1, 4),
    "moe_linear-5-bits": expert(False, 7, 5),
    "embed": Example(lambda ops, a: ops.embed(a["w"], ops.array(integers(6, 2, 9))), {"w": normal(7, 4)}),
    "rms_norm": Example(
        lambda ops, a: ops.rms_norm(a["x"], a["w"], 1e-3), {"x": normal(2, 3, 2, 8), "w": normal(8, seed=1)}
    ),
    "rotate": rotate(4),
    "rotate-part": rotate(3),
    "split": of_x(lambda ops, x: ops.split(x, (1, 3, 2), 1)[1], 2, 6, 3),
    **{f"glu-{name}": glu(name) for name in ("silu", "gelu_tanh", "swiglu_clamped")},
    "attention": attention(),
    "attention-1-token": attention(tokens=1),
    "attention-plain-heads": attention(kv=4),
    "attention-segments": attention(mask(7, None, (3, 1, 3))),
    "attention-window": attention(mask(7, 3, (7,))),
    "attention-both": attention(mask(9, 3, (5, 4)), tokens=9, kv=1),
    "attention-softcap": attention(softcap=1.5),
    "attention-softcap-window": attention(mask(7, 3, (4, 3)), softcap=1.5),
    "attention-logits": attention(logits=True),
    "attention-logits-window": attention(mask(7, 3, (4, 3)), logits=True),
    "attention-logits-softcap": attention(mask(7, 3, (4, 3)), logits=True, softcap=1.5, kv=1),
    "pick": of_x(lambda ops, x: ops.pick(x, ops.array(integers(6, 5))), 5, 6),
    "cross_entropy": of_x(lambda ops, x: ops.cross_entropy(x, ops.array(integers(9, 6))), 6, 9, scale=4),
    "joined": Example(joined, {"x": normal(3, 6), "y": normal(3, 6, seed=1)}),
    "where": Example(chosen, {"x": normal(3, 4), "y": normal(3, 4, seed=1)}),
    "sum": of_x(lambda ops, x: ops.sum(x * x, 1), 3, 4),
    "max": of_x(lambda ops, x: ops.max(x, -1), 3, 4),
    "topk": of_x(lambda ops, x: ops.topk(x, 3)[0], 4, 9),
    "softmax": of_x(lambda ops, x: ops.softmax(x, -1), 3, 5, scale=3),
    "logsumexp": of_x(lambda ops, x: ops.logsumexp(x, -1), 3, 5, scale=3),
    "cumsum": of_x(lambda ops, x: ops.cumsum(x, -1), 3, 5),
    "exp": of_x(lambda ops, x: ops.exp(x), 3, 5),
    "log": of_x(lambda ops, x: ops.log(x * x + 0.1), 3, 5),
    "tanh": of_x(lambda ops, x: ops.tanh(x), 3, 5),
    "sigmoid": of_x(lambda ops, x: ops.sigmoid(x), 3, 5, scale=3),
    "softplus": of_x(lambda ops, x: ops.softplus(x), 3, 5, scale=3),
    "causal_conv": convolution(False),
    "causal_conv-documents": convolution(True),
    **{f"gated_delta-{tokens}": rule(tokens, False) for tokens in (1, 3, 10)},
    "gated_delta-documents": rule(10, True),
    "gated_delta-forgets": rule(10, False, forgets=True),
    "hadamard": of_x(lambda ops, x: ops.hadamard(x), 3, 8),
    "root": of_x(lambda ops, x: (x * x + 0.1) ** 0.5, 3, 5),
    "unflatten": Example(parts, {"flat": normal(24)}),
    "checkpoint": Example(recomputed, {"x": normal(3, 4), "w": normal(4, 4, seed=1)}),
    "chunked_sum": chunks(4),
    "chunked_sum-whole": chunks(100),
}


class Recorded:
    """A backend that notes which of its methods are called."""

    def __init__(self, ops: Backend) -> None:
        self._ops, self.called = ops, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self._ops, name)


def test_every_differentiable_operation_has_an_example() -> None:
    methods = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    assert methods >= WITHOUT_GRADIENT
    recorded: Any = Recorded(NumpyBackend(dtype="float64"))
    for example in EXAMPLES.values():
        example.loss(recorded, {name: recorded.array(x) for name, x in example.inputs.items()})
    assert methods - WITHOUT_GRADIENT <= recorded.called


@pytest.mark.parametrize("name", EXAMPLES)
def test_gradients(name: str) -> None:
    """Of every backend against differences, which are exact to 1e-8 in float64. The size is that of the example's
    largest gradient: one that should be 0, as of the query of a single token, is what is left of terms as large."""
    value, slopes = EXAMPLES[name].differences()
    largest = max(np.abs(slope).max() for slope in slopes.values())
    for backend in TRAINERS:
        ours, found = EXAMPLES[name].gradients(partita_backends.load(backend, dtype="float32"))
        bounds.assert_near(ours, value, bounds.drift(ROUNDINGS))
        for key, slope in slopes.items():
            bounds.assert_near(found[key], slope, bounds.drift(ROUNDINGS) + 1e-8, largest)
