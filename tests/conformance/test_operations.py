"""Every operation of the seam on every backend, against the numpy oracle.

A case is a function of the backend alone that returns host arrays; it runs on both and the results are compared. The
table is complete: a method added to the protocol without a case fails `test_the_table_is_the_protocol`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from partita.backend import MASKED, Backend
from partita.errors import UnsupportedModel
from partita.quantization import SMALL_FLOATS, Packed, quantize_minmax, quantize_weight
from partita.rings import PackedPair, Sides, sides

from .. import bounds, stacked
from ..small_floats import KINDS, small_floats
from .test_recurrent_operations import CASES as RECURRENT
from .test_recurrent_operations import TAPS
from .test_training import CASES as TRAINING

Case = Callable[[Backend], list[np.ndarray]]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def integers(high: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.int32)


def unary(name: str, x: np.ndarray) -> Case:
    return lambda ops: [ops.to_numpy(getattr(ops, name)(ops.array(x)))]


def along(name: str, x: np.ndarray) -> Case:
    return lambda ops: [ops.to_numpy(getattr(ops, name)(ops.array(x), axis)) for axis in (0, -1)]


def parts(ops: Backend, packed: Packed) -> list[np.ndarray]:
    words = ops.to_numpy(packed.weight).view(np.uint32)  # torch holds the same bits as signed words
    return [words, ops.to_numpy(packed.scales), ops.to_numpy(packed.biases)]


def array(ops: Backend) -> list[np.ndarray]:
    bfloat = normal(3, 5).astype(ml_dtypes.bfloat16)
    half, words = normal(4).astype(np.float16), integers(2**31 - 1, 4).astype(np.uint32)
    kept = [ops.to_numpy(ops.array(x)) for x in (normal(2, 3), half, integers(9, 4), words.view(np.int32))]
    return [*kept, ops.to_numpy(ops.array(bfloat)).astype(np.float32), ops.to_numpy(ops.array(half, "float32"))]


def fetch(ops: Backend) -> list[np.ndarray]:
    x = ops.array(normal(4, 4))
    waiting = [ops.fetch(x + i) for i in range(3)]
    ops.sync()
    return [np.array(wait()) for wait in waiting]


def launch(ops: Backend) -> list[np.ndarray]:
    x = ops.array(normal(4, 4)) @ ops.array(normal(4, 4, seed=1))
    ops.launch(x, x + 1)
    ops.sync()
    return [ops.to_numpy(x)]


def write(ops: Backend) -> list[np.ndarray]:
    found = []
    for batch, tokens, slots in ((1, 1, [[3]]), (1, 3, [[5, 0, 1]]), (2, 2, [[4, 5], [0, 5]])):
        for dtype in ("float32", "float16"):
            buffer = ops.cast(ops.array(normal(batch, 2, 6, 4)), dtype)
            index = ops.array(np.array(slots, np.int32))
            written = ops.write(buffer, ops.array(normal(batch, 2, tokens, 4, seed=1)), index)
            found.append(ops.to_numpy(ops.cast(written, "float32")).copy())
            written = ops.write(written, ops.array(normal(batch, 1, tokens, 4, seed=2)), index, 1)
            found.append(ops.to_numpy(ops.cast(written, "float32")))
    return found


def put_keys(ops: Backend) -> list[np.ndarray]:
    kv = ops.cast(ops.array(normal(2, 2, 3, 6, 4)), "float16")
    return [ops.to_numpy(ops.cast(ops.put_keys(kv, ops.array(normal(2, 3, 2, 4, seed=1))), "float32"))]


def assign(ops: Backend) -> list[np.ndarray]:
    buffer, x = ops.array(normal(3, 4)), ops.array(normal(3, 4, seed=1))
    now = ops.assign(buffer, x + 1)
    return [ops.to_numpy(now).copy(), ops.to_numpy(x), ops.to_numpy(ops.assign(now, now * 2))]


def place(ops: Backend) -> list[np.ndarray]:
    buffer = ops.place(ops.array(normal(3, 4, 5)), ops.array(normal(1, 3, 5, seed=1)), (2, 1, 0))
    index = ops.place(ops.full((2, 3), -1, "int32"), ops.array(integers(6, 1, 2)), (0, 0))
    return [ops.to_numpy(buffer).copy(), ops.to_numpy(index)]


def copy(ops: Backend) -> list[np.ndarray]:
    x = ops.zeros((1, 1, 4, 2), "float32")
    kept = ops.copy(x)
    written = ops.write(x, ops.array(normal(1, 1, 1, 2)), ops.array(np.array([[1]], np.int32)))
    return [ops.to_numpy(kept), ops.to_numpy(written)]


def store(ops: Backend) -> list[np.ndarray]:
    """Rings of every kind: dense, packed on both sides, and each side in its own way."""
    found = []
    for batch, tokens, slots in ((1, 1, [[3]]), (1, 3, [[5, 0, 1]]), (2, 2, [[4, 5], [0, 5]]), (1, 40, [[*range(40)]])):
        index = ops.array(np.array(slots, np.int32))
        for bits, group, size in (((8, 8), 32, 64), ((4, 4), 32, 96), ((8, 4), 64, 128), ((4, 8), 64, 64)):
            held = [quantize_minmax(normal(batch, 2, 48, size), each, group).map(ops.array) for each in bits]
            grids = [ops.concat([a[None], b[None]], 0) for a, b in zip(*(side.grid for side in held), strict=True)]
            dense = ops.array(normal(2, batch, 2, 48, size))
            x = normal(batch, tokens, 4, size, seed=1, scale=3)
            x[0, 0, 1, :group] = x[0, 0, 2, :group] = 0.25  # a constant group
            pair = PackedPair(held[0].weight, held[1].weight, *grids, bits, group)
            held = [quantize_minmax(normal(batch, 2, 48, size), each, group).map(ops.array) for each in bits]
            mixed = Sides(ops.array(normal(batch, 2, 48, size)), held[1])
            for kv in (dense, pair, mixed):
                for side in sides(ops.store(kv, ops.array(x), index)):
                    found += parts(ops, side) if isinstance(side, Packed) else [ops.to_numpy(side)]
    return found


WEIGHT = normal(32, 64, scale=0.3)


def weights() -> list[np.ndarray | Packed]:
    packed = [quantize_weight(WEIGHT, bits, group) for bits in (1, 2, 3, 4, 5, 6, 8) for group in (32, 64)]
    floats = [small_floats(mode, 32, 64, factors=factors) for mode, factors in KINDS]
    return [WEIGHT, WEIGHT.astype(np.float16), WEIGHT.astype(ml_dtypes.bfloat16), *packed, *floats]


def linear(ops: Backend) -> list[np.ndarray]:
    bias = ops.prepare_vector(normal(32, seed=2))
    found = []
    for weight in weights():
        prepared = ops.prepare(weight)
        for rows in (1, 7, 40):
            x = ops.array(normal(1, rows, 64, seed=rows))
            found += [ops.to_numpy(ops.linear(x, prepared)), ops.to_numpy(ops.linear(x, prepared, bias))]
    return found


def adapted_linear(ops: Backend) -> list[np.ndarray]:
    a, b = ops.array(normal(4, 64, seed=3, scale=0.1)), ops.array(normal(32, 4, seed=4))
    found = []
    for weight in weights():
        prepared = ops.prepare(weight)
        for rows in (1, 40):
            found.append(
                ops.to_numpy(ops.adapted_linear(ops.array(normal(1, rows, 64, seed=rows)), prepared, a, b, 0.5))
            )
    return found


def moe_linear(ops: Backend) -> list[np.ndarray]:
    dense = normal(5, 32, 64, scale=0.3)
    bias = ops.prepare_vector(normal(5, 32, seed=2))
    found = []
    packed = [quantize_weight(dense, bits, 32) for bits in (1, 4, 5, 8)]
    floats = [small_floats(mode, 5, 32, 64, factors=factors) for mode, factors in KINDS]
    for weight in (dense, dense.astype(ml_dtypes.bfloat16), *packed, *floats):
        prepared = ops.prepare_experts(weight)
        for batch, tokens, shared in ((1, 1, True), (2, 1, False), (2, 40, True), (1, 40, False)):
            x = ops.array(normal(batch, tokens, 1 if shared else 3, 64, seed=tokens))
            index = ops.array(integers(4, batch, tokens, 3, seed=tokens))  # the last expert is never chosen
            found += [ops.to_numpy(ops.moe_linear(x, prepared, index, b)) for b in (None, bias)]
    return found


def embed(ops: Backend) -> list[np.ndarray]:
    tokens = ops.array(integers(32, 2, 5))
    return [ops.to_numpy(ops.embed(ops.prepare(weight), tokens)) for weight in weights()]


def rotate(ops: Backend) -> list[np.ndarray]:
    found = []
    for half in (8, 6):  # all dims, and some that are not rotated
        angle = normal(2, 5, half, seed=1)
        cos, sin = ops.array(np.cos(angle)), ops.array(np.sin(angle))
        for plain in (0, 2):
            turns = ops.turns(cos, sin, 3, plain)
            found.append(ops.to_numpy(ops.rotate(ops.array(normal(2, 5, 3 + plain, 16)), turns)))
    return found


def glu(ops: Backend) -> list[np.ndarray]:
    gate, up = ops.array(normal(3, 9, scale=4)), ops.array(normal(3, 9, seed=1, scale=4))
    return [ops.to_numpy(ops.glu(gate, up, name)) for name in ("silu", "gelu_tanh", "swiglu_clamped")]


def cached_attention(ops: Backend) -> list[np.ndarray]:
    found = []
    for batch, tokens, slots in ((1, 1, 9), (2, 1, 40), (2, 12, 40)):
        q = ops.array(normal(batch, 6, tokens, 64))
        k, v = normal(batch, 2, slots, 64, seed=1), normal(batch, 2, slots, 64, seed=2)
        seen = np.random.default_rng(3).random((batch, tokens, slots)) < 0.6
        mask = ops.array(np.where(seen, 0, MASKED).astype(np.float32))
        first = normal(batch, 6, tokens, 64, seed=4), normal(batch, 2, 3, 64, seed=5), normal(batch, 2, 3, 64, seed=6)
        hidden = np.array([0, 0, MASKED], np.float32) * np.ones((batch, tokens, 1), np.float32)
        sinks = stacked.sinks(ops, *first, hidden, ops.to_numpy(mask))
        moved = replace(sinks, shift=ops.array(normal(batch, 6, tokens, seed=8)))
        dense = (ops.array(k), ops.array(v))
        packed = (ops.quantize(dense[0], 8, 32), ops.quantize(dense[1], 4, 64))
        for keys, values in (dense, packed, (ops.cast(dense[0], "float16"), packed[1])):
            for kept, softcap in ((None, None), (sinks, None), (sinks, 2.0), (moved, None)):
                for logits in (None, ops.array(normal(6, seed=7, scale=3))):
                    out = ops.cached_attention(
                        q, keys, values, mask, scale=0.2, sinks=kept, softcap=softcap, sink_logits=logits
                    )
                    found.append(ops.to_numpy(out))
    return found


def quantize(ops: Backend) -> list[np.ndarray]:
    x = normal(2, 3, 5, 64, scale=4)
    x[0, 0, 0, :32] = 0.5  # a constant group: scale 0
    x[0, 0, 1] *= 1e-7  # a scale below float16's normal range
    x[0, 0, 2, 0] = 300  # an outlier, as keys have
    return [
        part for bits in (4, 8) for group in (32, 64) for part in parts(ops, ops.quantize(ops.array(x), bits, group))
    ]


def dequantize(ops: Backend) -> list[np.ndarray]:
    found = []
    for bits, group in ((4, 32), (8, 64)):
        packed = quantize_minmax(normal(2, 3, 5, 64), bits, group)
        found.append(ops.to_numpy(ops.dequantize(packed.map(ops.array))))
    return found


def topk(ops: Backend) -> list[np.ndarray]:
    values, index = ops.topk(ops.array(normal(3, 50)), 7)
    return [ops.to_numpy(values), ops.to_numpy(index)]


def memory(ops: Backend) -> list[np.ndarray]:
    found = ops.memory()
    assert 0 < found.free <= found.total
    assert 0 < found.active <= found.total
    assert found.peak >= 0
    return []


def reset_peak(ops: Backend) -> list[np.ndarray]:
    ops.reset_peak()
    return memory(ops)


def compiled(ops: Backend) -> list[np.ndarray]:
    function = ops.compile(lambda x, y: (ops.softmax(x * 2 + y, -1), y))
    inputs = ops.array(normal(3, 4)), ops.array(normal(3, 4, seed=1))
    return [ops.to_numpy(x) for _ in range(2) for x in function(*inputs)]


CASES: dict[str, Case] = {
    "array": array,
    "to_numpy": lambda ops: [ops.to_numpy(ops.array(normal(2, 2)))],
    "zeros": lambda ops: [ops.to_numpy(ops.zeros((2, 3), name)) for name in ("float32", "float16", "int32")],
    "full": lambda ops: [ops.to_numpy(ops.full((2, 3), -1, name)) for name in ("float32", "int32")],
    "launch": launch,
    "fetch": fetch,
    "sync": launch,
    "memory": memory,
    "reset_peak": reset_peak,
    "cast": lambda ops: [
        ops.to_numpy(ops.cast(ops.cast(ops.array(normal(3, 4)), name), "float32"))
        for name in ("float16", "bfloat16", "float32")
    ],
    "concat": lambda ops: [
        ops.to_numpy(ops.concat([ops.array(normal(2, 3)), ops.array(normal(2, 3, seed=1))], axis)) for axis in (0, 1)
    ],
    "take": lambda ops: [
        ops.to_numpy(ops.take(ops.array(normal(6, 7)), ops.array(integers(6, 2, 3)), axis)) for axis in (0, 1, -1)
    ],
    "assign": assign,
    "place": place,
    "copy": copy,
    "where": lambda ops: [
        ops.to_numpy(ops.where(ops.array(normal(3, 4)) > 0, ops.array(normal(3, 4, seed=1)), other))
        for other in (0.0, MASKED, ops.array(normal(3, 4, seed=2)))
    ],
    "write": write,
    "prepare": lambda ops: linear(ops) + embed(ops),
    "prepare_experts": moe_linear,
    "prepare_vector": lambda ops: [
        ops.to_numpy(ops.prepare_vector(normal(8).astype(dtype))) for dtype in (np.float32, ml_dtypes.bfloat16)
    ],
    "embed": embed,
    "adapted_linear": adapted_linear,
    "linear": linear,
    "moe_linear": moe_linear,
    "rms_norm": lambda ops: [
        ops.to_numpy(ops.rms_norm(ops.array(normal(2, 5, 16, scale=s)), ops.array(normal(16, seed=1)), 1e-5))
        for s in (1e-3, 1.0, 1e3)
    ],
    "turns": rotate,  # whose result is its own affair
    "rotate": rotate,
    "glu": glu,
    "cached_attention": cached_attention,
    "quantize": quantize,
    "store": store,
    "put_keys": put_keys,
    "split": lambda ops: [ops.to_numpy(x) for x in ops.split(ops.array(normal(2, 6, 3)), (1, 3, 2), 1)],
    "dequantize": dequantize,
    "hadamard": lambda ops: [ops.to_numpy(ops.hadamard(ops.array(normal(2, 3, n)))) for n in (1, 2, 64, 256)],
    "sum": along("sum", normal(4, 5, 6)),
    "max": along("max", normal(4, 5, 6)),
    "argmax": along("argmax", normal(4, 5, 6)),
    "topk": topk,
    "softmax": along("softmax", normal(4, 5, 6, scale=30)),
    "logsumexp": along("logsumexp", normal(4, 5, 6, scale=30)),
    "cumsum": along("cumsum", normal(4, 5, 6)),
    "exp": unary("exp", normal(5, 5)),
    "log": unary("log", np.abs(normal(5, 5)) + 1e-3),
    "tanh": unary("tanh", normal(5, 5)),
    "compile": compiled,
    "scatter_add": lambda ops: [
        ops.to_numpy(
            ops.scatter_add(ops.array(normal(2, 9)), ops.array(np.array([[1, 1, 8], [0, 3, 3]], np.int32)), 0.5)
        )
    ],
    **RECURRENT,
    "sigmoid": unary("sigmoid", normal(5, 5, scale=3)),
    "softplus": unary("softplus", normal(5, 5, scale=3)),
    **TRAINING,
}
EXACT = {
    *(
        "array",
        "to_numpy",
        "zeros",
        "full",
        "cast",
        "concat",
        "take",
        "assign",
        "place",
        "copy",
        "where",
        "write",
        "argmax",
    ),
    *("quantize", "store", "put_keys", "split"),
}
# What is added up in a case, at most; a few roundings more belong to every case (`FEW`). 0: nothing beside those.
LENGTHS = (
    dict.fromkeys(("adapted_linear", "linear", "moe_linear", "prepare", "prepare_experts"), 64)
    | dict.fromkeys(("sum", "softmax", "logsumexp", "cumsum"), 6)
    | {"launch": 4, "sync": 4, "fetch": 1, "compile": 4, "rms_norm": 16, "hadamard": 256}
    | {"causal_conv": TAPS, "gated_delta": 130 * (2 * 15 + 3)}
    | {"checkpoint": 4, "chunked_sum": 14, "value": 96, "cross_entropy": 9, "unflatten": 24, "elementwise": 0}
    | dict.fromkeys(
        (
            "embed",
            "prepare_vector",
            "dequantize",
            "rotate",
            "turns",
            "glu",
            "exp",
            "log",
            "tanh",
            "max",
            "topk",
            "sigmoid",
            "softplus",
        ),
        0,
    )
    | dict.fromkeys(("scatter_add", "value_and_grad", "stop_gradient", "pick", "memory", "reset_peak"), 0)
)
# Exponentials and hyperbolic functions are good to four units; a weight is unpacked in two, a bias added in one.
FEW = 16
# The largest score and value of attention, and its depth and keys (see `bounds.attention`).
ATTENTION = {
    "cached_attention": bounds.attention(64, 43, score=8, value=4),
    "attention": bounds.attention(16, 300, score=4, value=5),
}


def allowed(name: str, exact: np.ndarray) -> float:
    """Between two backends, both of which round."""
    if name in ATTENTION:
        return 2 * ATTENTION[name]
    return 2 * bounds.drift(LENGTHS[name] + FEW) * np.abs(exact).max(initial=0)


@pytest.mark.parametrize("name", CASES)
def test_operation_equals_the_oracle(ops: Backend, oracle: Backend, name: str) -> None:
    found, expected = CASES[name](ops), CASES[name](oracle)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        if name in EXACT:
            np.testing.assert_array_equal(ours, theirs)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=allowed(name, theirs))


def test_the_table_is_the_protocol() -> None:
    methods = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    assert methods == set(CASES)


def test_every_case_is_exact_or_has_a_bound() -> None:
    assert sorted([*EXACT, *LENGTHS, *ATTENTION]) == sorted(CASES)


def test_attributes(ops: Backend) -> None:
    assert ops.name in ("mlx", "torch", "numpy")
    assert ops.device in ("metal", "cuda", "rocm", "cpu")
    assert ops.dtype == ops.decode_dtype == "float32"
    assert ops.asynchronous in (True, False)
    assert ops.compiles in (True, False)
    assert set(ops.modes) <= set(SMALL_FLOATS)
    assert not ops.captures  # on a CPU


def test_rough_products_are_off_by_no_more_than_bfloat16_is(ops: Backend) -> None:
    rough, x, weight = ops.rough, np.abs(normal(40, 96)), np.abs(normal(24, 96))
    assert (rough.name, rough.device) == (ops.name, ops.device)
    y = rough.linear(rough.array(x, rough.dtype), rough.prepare(weight))
    found = ops.to_numpy(rough.cast(y, "float32"))
    error = bounds.gamma(3, "bfloat16") + bounds.gamma(96)  # x, weight and result are rounded; sums are float32
    bounds.assert_near(found, x @ weight.T, error)
    assert ops.dtype == "float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(2, 24, 96), (1, 3, 96), (1, 24, 80)])
@pytest.mark.parametrize("threads", [1, 3])
def test_weights_that_stay_in_16_bits_give_products_in_float32(
    threads: int, dtype: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many rows and few, and rows of weights that kernels do not take, on CPUs without products of bfloat16."""
    from partita_backends import torch as module

    monkeypatch.setattr(module, "_has_bfloat16_products", lambda: False)
    rough = module.TorchBackend(device="cpu", dtype="float32", threads=threads).rough
    x, weight, bias = (
        normal(*shape),
        normal(40, shape[-1]).astype(np.dtype(getattr(ml_dtypes, dtype, dtype))),
        normal(40),
    )
    prepared = rough.prepare(weight)
    assert str(prepared.dtype) == f"torch.{dtype}"
    y = rough.linear(rough.array(x, "float32"), prepared, rough.prepare_vector(bias))
    wide = weight.astype(np.float32)
    largest = float((np.abs(x) @ np.abs(wide).T + np.abs(bias)).max())
    bounds.assert_near(rough.to_numpy(y), x @ wide.T + bias, bounds.drift(2 * shape[-1]), largest)


def test_a_packed_mode_that_is_not_computed_is_refused(ops: Backend) -> None:
    """Its integers stand for something else, so that every product with them would be wrong."""
    stacked = quantize_weight(normal(2, 32, 64), 4, 32)
    for prepare, packed in ((ops.prepare, stacked.map(lambda part: part[0])), (ops.prepare_experts, stacked)):
        with pytest.raises(UnsupportedModel, match=f"the {ops.name} backend: packed weights of mode 'nvfp5'"):
            prepare(replace(packed, mode="nvfp5", biases=None))


def test_argmax_takes_the_first_of_equals(ops: Backend) -> None:
    x = np.zeros((2, 70), np.float32)
    x[0, [5, 6, 69]] = 1
    assert ops.to_numpy(ops.argmax(ops.array(x), -1)).tolist() == [5, 0]


def test_a_row_that_sees_nothing_gives_numbers(ops: Backend) -> None:
    q, k = ops.array(normal(1, 2, 1, 32)), ops.array(normal(1, 1, 4, 32))
    mask = ops.full((1, 1, 4), MASKED, "float32")
    out = ops.to_numpy(ops.cached_attention(q, k, k, mask, scale=1.0, sinks=None, softcap=None))
    assert np.isfinite(out).all()


def test_the_caller_keeps_its_arrays(ops: Backend) -> None:
    """Only `write` may reuse memory, and only its buffer's."""
    x, w = ops.array(normal(1, 2, 4, 16)), ops.array(normal(16))
    before = ops.to_numpy(x).copy()
    ops.rms_norm(x, w, 1e-6)
    ops.rotate(x, ops.turns(ops.array(normal(1, 2, 8)), ops.array(normal(1, 2, 8)), 3, 1))
    ops.softmax(x, -1)
    ops.hadamard(x)
    ops.quantize(ops.array(normal(1, 1, 1, 32)), 4, 32)
    ops.scatter_add(x[0, 0], ops.array(np.zeros((4, 1), np.int32)), 1.0)
    np.testing.assert_array_equal(ops.to_numpy(x), before)


def test_a_vocabulary_is_summed_without_loss(ops: Backend) -> None:
    """One large logit among many small ones, each of which alone would be lost beside it: 49,154 are 1.2e-3 of it.

    Terms may be added in blocks of 512 and then the blocks, but not in one run, nor in sixteen lanes."""
    logits = normal(8, 49_155, scale=0.1)
    logits[:, 7] += 17.5
    exact = np.logaddexp.reduce(logits.astype(np.float64), 1)
    error = bounds.gamma(512 + 49_155 // 512) + bounds.gamma(4) * exact.max()  # of the sum's logarithm, and beside it
    targets = integers(49_155, 8)
    found = ops.to_numpy(ops.logsumexp(ops.array(logits), -1))
    np.testing.assert_allclose(found, exact, rtol=0, atol=error)
    losses = ops.to_numpy(ops.cross_entropy(ops.array(logits), ops.array(targets)))
    np.testing.assert_allclose(losses, exact - logits[np.arange(8), targets], rtol=0, atol=error)
