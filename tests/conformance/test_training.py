"""What the seam adds for training, as a protocol: values against the oracle, what is kept, what is raised."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

import partita_backends
from partita.backend import MASKED, Backend
from partita.errors import BackendUnavailable, DataError
from partita.quantization import quantize_weight
from partita_backends.numpy import NumpyBackend

from .. import bounds
from .test_training_operations import EXAMPLES, TRAINERS, integers, mask, normal

Case = Callable[[Backend], list[np.ndarray]]


def attention(ops: Backend) -> list[np.ndarray]:
    found = []
    for tokens, documents in ((1, (1,)), (40, (40,)), (300, (100, 7, 193))):
        q = ops.array(normal(1, 6, tokens, 16))
        k, v = (ops.array(normal(1, 2, tokens, 16, seed=seed)) for seed in (1, 2))
        for seen in (None, ops.array(mask(tokens, None, documents)), ops.array(mask(tokens, 32, documents))):
            for softcap in (None, 2.0):
                for logits in (None, ops.array(normal(6, seed=3))):
                    y = ops.attention(q, k, v, seen, scale=0.2, softcap=softcap, sink_logits=logits)
                    found.append(ops.to_numpy(y))
    return found


def value(ops: Backend) -> list[np.ndarray]:
    def loss(ops: Backend, trained: dict[str, Any], x: Any) -> Any:
        return ops.sum(ops.linear(x, trained["w"]).reshape(-1), 0), (x * 2,)

    total, (double,) = ops.value(loss)({"w": ops.array(normal(4, 8))}, ops.array(normal(3, 8, seed=1)))
    return [ops.to_numpy(total), ops.to_numpy(double)]


def of_example(name: str) -> Case:
    """An operation's value as its example has it."""

    def case(ops: Backend) -> list[np.ndarray]:
        example = EXAMPLES[name]
        arrays = {key: ops.array(x) for key, x in example.inputs.items()}
        return [ops.to_numpy(example.function(ops, arrays))]

    return case


def value_and_grad(ops: Backend) -> list[np.ndarray]:
    if ops.name == "numpy":
        with pytest.raises(BackendUnavailable, match="use `backend` torch or mlx"):
            ops.value_and_grad(lambda ops, trained: (0.0, ()))
        return [np.array(7, np.float32), np.array([1, 3, 3], np.float32), np.full(3, 2, np.float32), np.zeros(2)]

    def loss(ops: Backend, trained: dict[str, Any], x: Any) -> Any:
        return ops.sum(trained["a"] * x * 2, 0) - ops.sum(ops.stop_gradient(trained["a"] * x), 0), (x,)

    trained = {"a": ops.array(np.ones(3, np.float32)), "unused": ops.array(np.ones(2, np.float32))}
    (total, (aux,)), found = ops.value_and_grad(loss)(trained, ops.array(np.array([1, 3, 3], np.float32)))
    assert list(found) == ["a", "unused"]
    return [ops.to_numpy(x) for x in (total, aux, found["a"] / aux, found["unused"])]


def elementwise(ops: Backend) -> list[np.ndarray]:
    """Numbers may be others in each call."""

    def function(x: Any, y: Any, share: Any, root: Any) -> Any:
        return x + (y - x) * share, (y * y) ** root

    run = ops.elementwise(function)
    x, y = (ops.array(normal(3, 4, seed=seed)) for seed in range(2))
    return [ops.to_numpy(z) for share in (0.25, 0.5) for z in run(x, y, share, 0.5)]


CASES: dict[str, Case] = {
    "attention": attention,
    "value": value,
    "value_and_grad": value_and_grad,
    "unflatten": of_example("unflatten"),
    "elementwise": elementwise,
    "checkpoint": of_example("checkpoint"),
    "chunked_sum": of_example("chunked_sum"),
    "stop_gradient": lambda ops: [ops.to_numpy(ops.stop_gradient(ops.array(normal(3))))],
    "pick": of_example("pick"),
    "cross_entropy": of_example("cross_entropy"),
}


@pytest.fixture(params=TRAINERS)
def trainer(request: pytest.FixtureRequest) -> Backend:
    return partita_backends.load(request.param, dtype="float32")


def gradients(ops: Backend, function: Callable[..., Any], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of the sum of squares of function(the loss's ops, inputs)."""

    def loss(ops: Backend, a: dict[str, Any]) -> Any:
        y = ops.cast(function(ops, a), "float32").reshape(-1)
        return ops.sum(y * y, 0), ()

    (total, _), found = ops.value_and_grad(loss)({name: ops.array(x) for name, x in inputs.items()})
    ops.launch(total, *found.values())
    ops.sync()
    return {name: ops.to_numpy(x) for name, x in found.items()} | {"total": ops.to_numpy(total)}


def routed(ops: Backend, a: dict[str, Any], x: Any) -> Any:
    """A layer of experts as the model has it, its index computed from what is trained."""
    values, index = ops.topk(ops.linear(x, a["router"]), 2)
    y = ops.moe_linear(x[:, :, None], a["experts"], index)
    return x + ops.sum(y * ops.softmax(values, -1)[..., None], 2)


@pytest.mark.parametrize("tokens", [1, 9])
def test_recomputing_changes_no_bit(trainer: Backend, tokens: int) -> None:
    ops = trainer
    packed = ops.prepare(quantize_weight(normal(32, 32, scale=0.3), 4, 32))
    inputs = {"x": normal(1, tokens, 32), "w": normal(32, seed=1), "router": normal(4, 32, seed=2)}
    inputs["experts"] = normal(4, 32, 32, seed=3, scale=0.2)

    def block(ops: Backend, a: dict[str, Any], x: Any) -> Any:
        y = ops.linear(ops.rms_norm(x, a["w"], 1e-5), packed)
        heads = y.reshape(1, tokens, 4, 8).swapaxes(1, 2)
        y = ops.attention(heads, heads[:, :2], heads[:, 2:], None, scale=0.3, softcap=None)
        y = ops.attention(y, heads[:, :2], heads[:, 2:], None, scale=0.3, softcap=5.0)
        return routed(ops, a, x + ops.glu(y.swapaxes(1, 2).reshape(1, tokens, 32), x, "silu"))

    def through(again: bool) -> dict[str, np.ndarray]:
        def both(ops: Backend, a: dict[str, Any]) -> Any:
            step = partial(block, ops)
            step = ops.checkpoint(step) if again else step
            return step(a, step(a, a["x"]))

        return gradients(ops, both, inputs)

    kept, again, twice = through(False), through(True), through(True)
    for name, x in kept.items():
        assert np.abs(x).max() > 0, name
        np.testing.assert_array_equal(again[name], x)
        np.testing.assert_array_equal(again[name], twice[name])


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("tokens", [256, 300])
def test_long_attention_between_backends(
    softcap: float | None, logits: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tile by tile, and in one piece."""
    inputs = {
        "q": normal(2, 6, tokens, 16),
        "k": normal(2, 2, tokens, 16, seed=1),
        "v": normal(2, 2, tokens, 16, seed=2),
    }
    if logits:
        inputs["logits"] = normal(6, seed=3)
    seen = np.concatenate([mask(tokens, 64, (100, tokens - 100)), mask(tokens, None, (7, tokens - 7))])
    found = []
    for name in TRAINERS:
        ops = partita_backends.load(name, dtype="float32")
        module = "mlx_training" if name == "mlx" else "torch.training_attention"
        for tile in (2**14, 2**30):
            monkeypatch.setattr(f"partita_backends.{module}.TILE", tile)
            both = ops.array(seen)

            def attend(ops: Backend, a: dict[str, Any], both: Any = both) -> Any:
                extra = a.get("logits")
                return ops.attention(a["q"], a["k"], a["v"], both, scale=0.25, softcap=softcap, sink_logits=extra)

            found.append(gradients(ops, attend, inputs))
    for name, x in found[0].items():
        for other in found:  # there and back on both sides: over the keys, 16 dims, and the functions of a softmax
            bounds.assert_near(other[name], x, bounds.drift(4 * (tokens + 16 + 16)))


def test_a_row_that_sees_nothing_gives_numbers(trainer: Backend) -> None:
    """Padding may be hidden from itself; softmax of nothing but MASKED."""
    ops, inputs = trainer, {"q": normal(1, 2, 4, 8), "k": normal(1, 1, 4, 8, seed=1)}
    seen = mask(4, None, (4,))
    seen[0, 2:] = MASKED

    def attend(ops: Backend, a: dict[str, Any]) -> Any:
        return ops.attention(a["q"], a["k"], a["k"], ops.array(seen), scale=0.3)[:, :, :2]

    assert all(np.isfinite(x).all() for x in gradients(ops, attend, inputs).values())


@pytest.mark.parametrize("name", TRAINERS)
def test_one_row_of_a_packed_weight_is_as_exact_as_many(name: str) -> None:
    """With dtypes of its own choice a backend decodes in bfloat16 on a CPU; in training it must not."""
    packed = quantize_weight(normal(48, 64), 4, 32)
    results = []
    for dtype in ("auto", "float32"):
        ops = partita_backends.load(name, device="cpu", dtype=dtype)
        weight = ops.prepare(packed)
        for _ in range(2):  # the kernel's operands are made for the second product
            ops.linear(ops.array(normal(1, 1, 64)), weight)
        results.append(
            gradients(ops, lambda ops, a, weight=weight: ops.linear(a["x"], weight), {"x": normal(1, 1, 64)})
        )
        ours = ops.value(lambda ops, x, weight=weight: (ops.sum(ops.linear(x, weight).reshape(-1), 0), ()))
        results[-1]["value"] = ops.to_numpy(ours(ops.array(normal(1, 1, 64)))[0])
    for key, x in results[0].items():
        bounds.assert_near(x, results[1][key], bounds.drift(2 * 64))


def test_a_loss_that_raises_leaves_the_backend_as_it_was() -> None:
    ops = partita_backends.load("torch", device="cpu")  # few rows in bfloat16, which tells the two apart
    weight, x = ops.prepare(quantize_weight(normal(48, 64), 4, 32)), ops.array(normal(1, 1, 64))
    for _ in range(2):
        ops.linear(x, weight)
    rounded = ops.to_numpy(ops.linear(x, weight))
    for run in (ops.value, ops.value_and_grad):
        with pytest.raises(ZeroDivisionError):
            run(lambda ops, trained: (1 / 0, ()))({})
        np.testing.assert_array_equal(ops.to_numpy(ops.linear(x, weight)), rounded)


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("run", ["value", "value_and_grad"])
def test_decoding_during_a_loss_is_decoding(name: str, run: str) -> None:
    """Another thread computes with the instance while a loss is being computed: what it gets is what it gets alone."""
    ops = partita_backends.load(name, device="cpu")
    packed, experts = quantize_weight(normal(48, 64), 4, 32), quantize_weight(normal(4, 48, 64), 4, 32)
    weight, stack, inputs = ops.prepare(packed), ops.prepare_experts(experts), (normal(1, 1, 64), integers(4, 1, 1, 2))

    def decoded(ops: Backend) -> list[np.ndarray]:
        x, index = map(ops.array, inputs)
        y = ops.linear(x, weight)
        return [ops.to_numpy(part) for part in (y, ops.moe_linear(x[:, :, None], stack, index), ops.glu(y, y, "silu"))]

    decoded(ops)  # the kernel's operands are made for the second product
    alone, during, within = decoded(ops), [], []

    def loss(own: Backend, trained: dict[str, Any]) -> tuple[Any, tuple[()]]:
        with ThreadPoolExecutor(1) as pool:
            during.extend(pool.submit(decoded, ops).result())
        within.extend(decoded(own))
        during.extend(decoded(ops))
        return own.sum(own.linear(trained["x"], weight).reshape(-1), 0), ()

    getattr(ops, run)(loss)({"x": ops.array(inputs[0])})
    for found in (during[:3], during[3:], decoded(ops)):
        for x, expected in zip(found, alone, strict=True):
            np.testing.assert_array_equal(x, expected)
    if name == "torch":  # whose rounding tells the two apart
        assert not np.array_equal(within[0], alone[0])


@pytest.mark.parametrize("name", TRAINERS)
def test_float32_trainables_in_a_bfloat16_stream(name: str) -> None:
    inputs = {"a": normal(4, 32, scale=0.2), "b": normal(32, 4, seed=1, scale=0.2), "norm": normal(32, seed=2)}
    inputs |= {"bias": normal(32, seed=3), "embedding": normal(9, 32, seed=4)}
    tokens = integers(9, 1, 6)
    found = []
    for dtype in ("float32", "bfloat16"):
        ops = partita_backends.load(name, device="cpu", dtype=dtype)
        packed, dense = ops.prepare(quantize_weight(normal(32, 32), 4, 32)), ops.prepare(normal(32, 32, seed=5))

        def layer(ops: Backend, a: dict[str, Any], packed: Any = packed, dense: Any = dense) -> Any:
            x = ops.embed(a["embedding"], ops.array(tokens))
            y = ops.rms_norm(x, a["norm"], 1e-5)
            y = ops.linear(y, packed, a["bias"]) + ops.linear(ops.linear(y, a["a"]) * 2.0, a["b"])
            q = ops.linear(y, dense).reshape(1, 6, 4, 8).swapaxes(1, 2)
            seen = ops.array(mask(6, 3, (6,)))
            y = ops.attention(q, q[:, :2], q[:, 2:], seen, scale=0.3, sink_logits=a["bias"][:4])
            y = y.swapaxes(1, 2).reshape(1, 6, 32)
            assert str(y.dtype).endswith(ops.dtype)
            return ops.glu(y, x, "gelu_tanh")

        found.append(gradients(ops, layer, inputs))
    for key, x in found[0].items():
        assert found[1][key].dtype == np.float32
        bounds.assert_near(found[1][key], x, bounds.drift(12, "bfloat16"))  # each of six steps rounds, there and back


def test_a_chunk_is_computed_once(trainer: Backend) -> None:
    """Its gradients come with its value; nothing is computed again."""
    ops, calls = trainer, []

    def run(ops: Backend, w: Any, x: Any) -> Any:
        def part(trained: dict[str, Any], x: Any) -> Any:
            calls.append(x.shape[0])
            return ops.sum((x * trained["w"]).reshape(-1), 0)

        return ops.chunked_sum(part, 4)({"w": w}, x)

    inputs = {"x": normal(10, 3), "w": normal(3)}
    found = gradients(ops, lambda ops, a: run(ops, a["w"], a["x"]).reshape(1), inputs)
    assert calls == [4, 4, 2]
    x, w = (inputs[name].astype(np.float64) for name in ("x", "w"))
    total, error, size = (x * w).sum(), bounds.drift(30 + 10), np.abs(x * w).sum()
    bounds.assert_near(found["x"], np.broadcast_to(2 * total * w, (10, 3)), error, 2 * size * np.abs(w).max())
    bounds.assert_near(found["w"], 2 * total * x.sum(0), error, 2 * size * np.abs(x).sum(0).max())
    calls.clear()
    alone = ops.value(lambda ops, w, x: (run(ops, w, x), ()))(*(ops.array(inputs[name]) for name in ("w", "x")))[0]
    bounds.assert_near(ops.to_numpy(alone), total, error, size)
    assert calls == [4, 4, 2]


def test_a_frozen_head_in_chunks(trainer: Backend) -> None:
    """What fine-tuning an adapter does: the head is closed over and gets no gradient."""
    ops = trainer
    head, index = ops.prepare(normal(9, 4)), ops.array(integers(9, 10))

    def part(ops: Backend, trained: dict[str, Any], x: Any, index: Any) -> Any:
        logits = ops.linear(x, head)
        return ops.sum(ops.logsumexp(logits, -1) - ops.pick(logits, index), 0)

    def whole(ops: Backend, a: dict[str, Any]) -> Any:
        return part(ops, {}, a["x"], index).reshape(1)

    def in_chunks(ops: Backend, a: dict[str, Any]) -> Any:
        return ops.chunked_sum(partial(part, ops), 3)({}, a["x"], index).reshape(1)

    inputs = {"x": normal(10, 4, seed=1)}
    chunked = gradients(ops, in_chunks, inputs)
    for name, x in gradients(ops, whole, inputs).items():
        bounds.assert_near(chunked[name], x, bounds.drift(4 * (10 + 9 + 4 + 16)))  # rows, vocabulary, width, functions


def test_no_rows_sum_to_nothing(trainer: Backend) -> None:
    def nothing(ops: Backend, a: dict[str, Any]) -> Any:
        run = ops.chunked_sum(lambda trained, x: ops.sum((x * trained["w"]).reshape(-1), 0), 4)
        return run({"w": a["w"]}, a["x"][:0]).reshape(1)

    found = gradients(trainer, nothing, {"w": normal(3), "x": normal(2, 3)})
    assert all((x == 0).all() for x in found.values())


@pytest.mark.parametrize("shape", [(100_003,), (3, 5000), (5000, 3)])
def test_long_sums_are_exact_to_float32(ops: Backend, shape: tuple[int, ...]) -> None:
    """A norm of all gradients sums millions of numbers: a large one among many, each of which alone would be lost
    beside it. Terms may be added in blocks of 512 and then the blocks; the oracle adds rows as they come."""
    x = np.random.default_rng(0).uniform(0.5, 0.9, shape).astype(np.float32)
    x.reshape(-1, shape[-1])[0, :1] = 2**24
    for axis, length in enumerate(shape):
        terms = length if ops.name == "numpy" and axis < len(shape) - 1 else min(length, 512) + length // 512
        exact = x.sum(axis, dtype=np.float64)
        np.testing.assert_allclose(ops.to_numpy(ops.sum(ops.array(x), axis)), exact, rtol=bounds.gamma(terms))


def test_the_oracle_in_float64() -> None:
    ops = NumpyBackend(dtype="float64")
    x = ops.cast(ops.array(normal(3, 32)), "float16")
    assert x.dtype == ops.zeros((1,), "bfloat16").dtype == np.float64
    assert ops.array(integers(3, 4)).dtype == np.int32
    packed = ops.prepare(quantize_weight(normal(4, 32), 4, 32))
    y = ops.where(x > 0, ops.rms_norm(x, ops.prepare_vector(normal(32)), 1e-5), 0.0)
    assert ops.softmax(ops.glu(ops.linear(y, packed), ops.linear(y, packed), "silu"), -1).dtype == np.float64
    with pytest.raises(DataError, match="float32 only"):
        NumpyBackend(dtype="bfloat16")
