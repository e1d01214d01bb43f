"""The Triton kernels of a training step as a loss on a GPU uses them: gradients against differences of the oracle."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import partita_backends
from partita.quantization import Packed, quantize_weight
from partita_backends.torch import TorchBackend, weights
from partita_backends.torch.weights import from_numpy

from .. import bounds
from ..conformance.test_training_operations import EXAMPLES, ROUNDINGS, Example, adapted, normal

NAMES = [
    name
    for name in EXAMPLES
    if name.startswith(("linear-4-bits", "linear-6-bits", "adapted_linear-4", "rms_norm", "rotate", "glu"))
]


@pytest.fixture
def ops(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch in float32 on a GPU, which may be the interpreter on a CPU."""
    if triton_device == "cuda":
        return partita_backends.load("torch", device="cuda", dtype="float32")
    from partita_backends.torch import cuda

    class Interpreted(TorchBackend):
        def __init__(self) -> None:
            super().__init__("cpu", "float32")
            self.device, self._kernels = "cuda", None

        def prepare(self, weight: Any) -> Any:
            return cuda.Words(weight.map(from_numpy)) if isinstance(weight, Packed) else super().prepare(weight)

        def sync(self) -> None:
            pass

    monkeypatch.setattr(weights, "_found_on_gpu", lambda: (cuda, None))
    return Interpreted()


def judge(ops: Any, example: Example) -> None:
    value, slopes = example.differences()
    largest = max(np.abs(slope).max() for slope in slopes.values())
    ours, found = example.gradients(ops)
    bounds.assert_near(ours, value, bounds.drift(ROUNDINGS))
    for key, slope in slopes.items():
        bounds.assert_near(found[key], slope, bounds.drift(ROUNDINGS) + 1e-8, largest)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(ops: Any, name: str) -> None:
    judge(ops, EXAMPLES[name])


def test_gradients_of_many_rows(ops: Any) -> None:
    """More rows than a product of decoding reads a packed weight for."""
    judge(ops, adapted(37, 4))


def test_a_layer_computed_again_gives_the_same_bits(ops: Any) -> None:
    packed = ops.prepare(quantize_weight(normal(64, 32, scale=0.3), 4, 32))
    inputs = {"x": normal(1, 5, 32), "a": normal(3, 32, seed=1, scale=0.2), "b": normal(64, 3, seed=2)}
    angles, weight = ops.array(normal(1, 5, 8, seed=3)), ops.array(normal(32, seed=4))

    def layer(ops: Any, own: dict[str, Any], x: Any) -> Any:
        y = ops.adapted_linear(ops.rms_norm(x, weight, 1e-5), packed, own["a"], own["b"], 2.0)
        y = ops.rotate(y.reshape(1, 5, 4, 16), ops.turns(angles, angles, 3, 1)).reshape(1, 5, 64)
        return x + ops.glu(y[..., :32], y[..., 32:], "silu")

    def loss(ops: Any, values: dict[str, Any], again: bool) -> Any:
        own, run = {name: values[name] for name in "ab"}, partial(layer, ops)
        y = (ops.checkpoint(run) if again else run)(own, values["x"])
        return ops.sum((y * y).reshape(-1), 0), ()

    found = [
        ops.value_and_grad(partial(loss, again=again))({k: ops.array(x) for k, x in inputs.items()})
        for again in (False, True)
    ]
    for name in inputs:
        assert np.array_equal(*(ops.to_numpy(grads[name]) for _, grads in found)), name
