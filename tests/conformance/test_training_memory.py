"""What the two libraries keep between the passes: the inputs of an operation, and little else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import partita_backends
from partita.backend import Backend
from partita.quantization import dequantize, quantize_weight
from partita_backends import mlx_training
from partita_backends.torch import weights

from .. import bounds
from .test_training_operations import mask, normal


def test_torch_keeps_little_for_the_backward_pass() -> None:
    """Bytes of what the graph saves, for each operation, beside its inputs, which others hold anyway."""
    import torch

    ops = partita_backends.load("torch", device="cpu", dtype="float32")
    tokens, width = 128, 64
    packed = ops.prepare(quantize_weight(normal(width, width), 4, 32))
    inputs = {"x": ops.array(normal(1, tokens, width)), "heads": ops.array(normal(1, 4, tokens, 16))}
    inputs["a"] = ops.array(normal(4, width))
    angles, seen = ops.array(normal(1, tokens, 8)), ops.array(mask(tokens, 32, (tokens,)))
    norm, row = ops.array(normal(width)), 4 * tokens

    def attend(ops: Backend, a: dict[str, Any], softcap: float | None = None) -> Any:
        return ops.attention(a["heads"], a["heads"], a["heads"], seen, scale=1.0, softcap=softcap)

    operations: dict[str, tuple[Callable[..., Any], int]] = {
        "linear": (lambda ops, a: ops.linear(a["x"], packed), 0),
        "rms_norm": (lambda ops, a: ops.rms_norm(a["x"], norm, 1e-5), row),
        "glu": (lambda ops, a: ops.glu(a["x"], a["x"], "silu"), 0),
        "linear after rms_norm": (lambda ops, a: ops.linear(ops.rms_norm(a["x"], norm, 1e-5), a["a"]), row),
        "linear after glu": (lambda ops, a: ops.linear(ops.glu(a["x"], a["x"], "silu"), a["a"]), 0),
        "rotate": (lambda ops, a: ops.rotate(a["heads"].swapaxes(1, 2), ops.turns(angles, angles, 3, 1)), 0),
        "attention": (attend, row * (64 + 4)),  # what it gives, and a sum a row and head
        "softcap": (lambda ops, a: attend(ops, a, 9.0), 0),
    }
    held = {y.untyped_storage().data_ptr() for y in (*inputs.values(), angles, seen, norm)}
    for name, (operation, allowed) in operations.items():
        saved: dict[int, int] = {}

        def keep(y: Any, saved: dict[int, int] = saved) -> Any:
            saved[y.untyped_storage().data_ptr()] = y.untyped_storage().nbytes()
            return y

        def loss(ops: Backend, trained: dict[str, Any], operation: Any = operation, keep: Any = keep) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda y: y):
                y = operation(ops, trained)
            return y.sum(), ()

        ops.value_and_grad(loss)(inputs)
        assert sum(size for place, size in saved.items() if place not in held) <= allowed, name


def test_mlx_keeps_no_dense_copy_of_a_packed_weight() -> None:
    import mlx.core as mx

    ops = partita_backends.load("mlx", device="cpu", dtype="float32")
    width, layers = 256, 24
    packed = [ops.prepare(quantize_weight(normal(width, width, seed=i, scale=0.06), 4, 32)) for i in range(layers)]

    def loss(ops: Backend, a: dict[str, Any]) -> Any:
        x = a["x"]
        for weight in packed:
            x = ops.linear(x, weight)
        return ops.sum(x.reshape(-1), 0), ()

    inputs = {"x": ops.array(normal(1, 8, width))}
    ops.launch(*inputs.values(), *(part for w in packed for part in (w.weight, w.scales, w.biases)))
    ops.sync()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    (total, _), found = ops.value_and_grad(loss)(inputs)
    mx.eval(total, found)
    assert mx.get_peak_memory() - before < layers / 4 * width * width * 4


@pytest.mark.parametrize(("name", "block"), [("mlx", mlx_training.BLOCK), ("torch", weights.DENSE_AT_ONCE)])
def test_a_large_packed_weight_is_dense_a_part_at_a_time(name: str, block: int) -> None:
    """The products are those of the whole."""
    ops = partita_backends.load(name, device="cpu", dtype="float32")
    random = np.random.default_rng(0)
    packed = quantize_weight(random.standard_normal((2 * block // 256 + 40, 256)).astype(np.float32), 4, 32)
    x, dense = random.standard_normal((1, 16, 256)).astype(np.float32), dequantize(packed).astype(np.float64)
    weight = ops.prepare(packed)
    y = ops.linear(ops.array(x), weight)
    bounds.assert_near(ops.to_numpy(y), x @ dense.T, bounds.drift(256 + 4))

    def squares(ops: Backend, values: dict[str, Any]) -> tuple[Any, tuple[()]]:
        product = ops.linear(values["x"], weight)
        return ops.sum((product * product).reshape(-1), 0), ()

    _, grads = ops.value_and_grad(squares)({"x": ops.array(x)})
    expected = 2 * (x @ dense.T) @ dense
    bounds.assert_near(ops.to_numpy(grads["x"]), expected, bounds.drift(256 + len(dense) + 4))
