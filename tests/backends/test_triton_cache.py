"""The Triton kernels of a cache against the oracle: a step's rotation, what it writes, and what its queries see.

A cache lives on the oracle up to a step; one on the kernels takes its arrays as they then are. Both do the step, which
must leave the same words and give the same attention.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import partita_backends
from partita import rings
from partita.backend import Rule
from partita.cache.kv_format import KVFormat
from partita.cache.spec import CacheSpec, LayerSpec, Span
from partita.cache.state import Cache
from partita.model.config import RopeConfig
from partita.model.rope import RopeTable
from partita.quantization import Packed, dequantize, quantize_minmax
from partita_backends.torch import TorchBackend

from .. import stacked

ORACLE = partita_backends.load("numpy")
WINDOW, SINKS, CHUNK = 20, 3, 8
RING = WINDOW + CHUNK - 1
ANCHOR = SINKS + WINDOW - 1


@pytest.fixture(scope="module")
def ops(triton_device: str) -> Any:
    """torch in float32, whose rotations, writes and attention are the kernels: in the interpreter, or on a GPU."""
    from partita_backends.torch import cuda

    class Interpreted(TorchBackend):
        _gpu = cuda

    found = (Interpreted if triton_device == "cpu" else TorchBackend)(triton_device, "float32")
    found._kernels = None
    return found


@pytest.fixture(scope="module")
def kernels(ops: Any) -> Any:
    from partita_backends.torch import triton_attention, triton_write

    return triton_attention, triton_write, "cpu" if ops.device == "cpu" else "cuda"


def tensor(x: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(x.view(np.int32).copy() if x.dtype == np.uint32 else x.copy()).to(device)


def side(x: Any, device: str) -> Any:
    return x.map(lambda part: tensor(part, device)) if isinstance(x, Packed) else tensor(x, device)


def array(x: torch.Tensor) -> np.ndarray:
    return x.cpu().numpy()


def layer(heads: int, d: int, window: int | None, sinks: int, softcap: float | None = None) -> LayerSpec:
    return LayerSpec(heads, d, Span(window, sinks), RopeConfig(10_000.0, d), d**-0.5, softcap)


class Life:
    """A cache of one layer on the oracle, whose rows have read so many tokens, and its double; the next step's numbers.

    logits: of sinks, float32 (heads,), or None.
    """

    def __init__(self, ops: Any, spec: CacheSpec, heads: int, lengths: list[int], tokens: int):
        self.layer, self.batch, self.heads = spec.layers[0], len(lengths), heads
        self.rng = np.random.default_rng(sum(lengths))
        self.cache, self.mine = Cache(ORACLE, spec, self.batch), Cache(ops, spec, self.batch)
        while min(self.cache.offsets) < max(lengths):
            some = [min(max(n - o, 0), CHUNK) for n, o in zip(lengths, self.cache.offsets, strict=True)]
            if not any(some):
                break
            self.mine.reserve(CHUNK, some)
            self.cache.advance(CHUNK, some)
            stacked.attend(self.cache, 0, *self.normal(CHUNK))
        self.mine.hold([ops.array(x.copy()) for x in self.cache.arrays()])
        self.step = self.normal(tokens)
        self.logits: np.ndarray | None = None

    def normal(self, tokens: int) -> list[np.ndarray]:
        heads = (self.heads, self.layer.kv_heads, self.layer.kv_heads)
        return [
            self.rng.standard_normal((self.batch, h, tokens, self.layer.head_dim)).astype(np.float32) for h in heads
        ]

    def outputs(self) -> list[np.ndarray]:
        """What a step's queries see, in both caches: the double's first."""
        found = []
        for cache in (self.mine, self.cache):
            cache.advance(self.step[0].shape[2])
            logits = None if self.logits is None else cache.ops.array(self.logits)
            found.append(stacked.attend(cache, 0, *self.step, logits))
        return found


def judge(life: Life, words: bool = True, near: float = 1e-5) -> None:
    """A step of both, compared in all that it leaves and gives. words: whether the same ones are to be expected."""
    mine, expected = life.outputs()
    exact = words and life.mine.ops.device == "cpu"
    if exact:
        for a, b in zip(held(life.mine), held(life.cache), strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(*(rings.sides(cache._layers[0].kv) for cache in (life.mine, life.cache)), strict=True):
        assert np.abs(numbers(life.mine, a) - numbers(life.cache, b)).mean() < 1e-3
    np.testing.assert_allclose(mine, expected, rtol=0, atol=near + (0 if exact else 0.02))


def held(cache: Cache) -> list[np.ndarray]:
    """Its arrays, but for the spare slots, where whatever came last may stand."""
    found: list[np.ndarray] = []

    def take(x: Any, rows: int, slots: int) -> Any:
        whole = cache.ops.to_numpy(x)
        found.append((whole.take(range(whole.shape[slots] - 1), slots) if slots else whole).view(signless(whole)))
        return x

    cache._each(take)
    return found


def signless(x: np.ndarray) -> Any:
    """torch holds words as signed integers."""
    return np.int32 if x.dtype == np.uint32 else x.dtype


def numbers(cache: Cache, x: Any) -> np.ndarray:
    """Of one side of a ring, but for the spare slot. A GPU rotates with one rounding in place of two, and where that
    decides, an integer falls the other way."""
    return cache.ops.to_numpy(cache.ops.dequantize(x) if isinstance(x, Packed) else x).astype(np.float32)[:, :, :-1]


def spec_of(one: LayerSpec, kv: str) -> CacheSpec:
    return CacheSpec((one,), KVFormat.parse(kv), 8192, one.span.sinks, CHUNK)


FORMATS = ["32", "16", "k8v8", "k8v4", "k4v4:64", "k4v16", "k32v8"]


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("read", [ANCHOR - 1, SINKS + RING + 5])
def test_every_format(ops: Any, kv: str, read: int) -> None:
    judge(Life(ops, spec_of(layer(2, 64, WINDOW, SINKS), kv), 6, [read], 1))


@pytest.mark.parametrize("tokens", [1, CHUNK])
@pytest.mark.parametrize("read", [0, 1, SINKS, ANCHOR - 1, ANCHOR, ANCHOR + 1, SINKS + RING - 1, SINKS + RING, 150])
def test_every_age(ops: Any, read: int, tokens: int) -> None:
    judge(Life(ops, spec_of(layer(1, 32, WINDOW, SINKS), "k8v4"), 4, [read], tokens))


@pytest.mark.parametrize(
    ("d", "kv"),
    [(64, "k4v8"), (80, "32"), (80, "16"), (96, "k8v4"), (128, "k8v4:64"), (128, "16"), (256, "k8v8"), (256, "32")],
)
@pytest.mark.parametrize("tokens", [1, 5])
def test_every_head(ops: Any, d: int, kv: str, tokens: int) -> None:
    judge(Life(ops, spec_of(layer(1, d, WINDOW, SINKS), kv), 2, [60], tokens))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (8, 2), (9, 1)])
@pytest.mark.parametrize("splits", [1, 3])
def test_rows_of_a_batch_have_their_own_positions(
    ops: Any, heads: int, kv_heads: int, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from partita_backends.torch import triton_attention

    monkeypatch.setattr(triton_attention, "_splits", lambda *_: splits)
    judge(Life(ops, spec_of(layer(kv_heads, 32, WINDOW, SINKS), "k8v4"), heads, [7, 61], 3))


@pytest.mark.parametrize("kv", ["k4v4", "k4v16"])
@pytest.mark.parametrize("tokens", [1, 5, CHUNK])
@pytest.mark.parametrize("read", [[1], [ANCHOR - 4, 40], [150]])
def test_keys_less_their_centre(ops: Any, kv: str, tokens: int, read: list[int]) -> None:
    """Beyond the anchor, several queries' scores of sinks are moved by what the centre makes of each."""
    life = Life(ops, spec_of(layer(2, 64, WINDOW, SINKS), kv), 6, read, tokens)
    life.step[1] += 3  # what keys have in common
    judge(life)


def test_more_queries_than_a_program_takes(ops: Any) -> None:
    judge(Life(ops, spec_of(layer(1, 64, WINDOW, SINKS), "k8v4"), 20, [50], 8))


@pytest.mark.parametrize(("window", "sinks"), [(None, 0), (None, 3), (1, 0), (WINDOW, 0), (1, 2), (30, 70)])
@pytest.mark.parametrize("kv", ["k8v4", "32"])
def test_every_kind_of_layer(
    ops: Any, window: int | None, sinks: int, kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from partita_backends.torch import triton_attention

    monkeypatch.setattr(triton_attention, "_splits", lambda *_: 3)
    judge(Life(ops, spec_of(layer(2, 32, window, sinks), kv), 4, [110], 2))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("logits", [False, True])
def test_caps_and_sink_logits(ops: Any, softcap: float | None, logits: bool) -> None:
    life = Life(ops, spec_of(layer(2, 64, WINDOW, SINKS, softcap), "k8v4"), 4, [60], 2)
    life.step[0] *= 5
    life.logits = np.array([-2.0, 0.5, 1.0, 3.0], np.float32) if logits else None
    judge(life)


@pytest.mark.parametrize("logits", [False, True])
def test_a_query_that_sees_nothing_gets_zero(kernels: Any, logits: bool) -> None:
    attention, _, device = kernels
    q, k = torch.ones(1, 2, 2, 32, device=device), torch.ones(1, 1, 40, 32, device=device)
    held = torch.arange(40, dtype=torch.int32, device=device)[None]
    ask = torch.tensor([[-1, 5]], dtype=torch.int32, device=device)
    column = torch.full((2,), -50.0, device=device) if logits else None
    rule = Rule(ask, held, 4, 0, held >= 0)
    out = array(attention.attend(q, k, k, rule, scale=0.1, sinks=None, softcap=None, sink_logits=column, splits=2))
    np.testing.assert_array_equal(out[:, :, 0], 0)
    np.testing.assert_allclose(out[:, :, 1], 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(kernels: Any, dtype: torch.dtype) -> None:
    """Products in the queries' dtype: as exact as its rounding of a query, a key, a weight and a value."""
    attention, _, device = kernels
    rng = np.random.default_rng(1)
    q, k, v = (
        torch.from_numpy(rng.standard_normal(n).astype(np.float32)) for n in ((1, 4, 2, 64), *[(1, 2, 90, 64)] * 2)
    )
    held, ask = torch.arange(90, dtype=torch.int32)[None], torch.tensor([[88, 89]], dtype=torch.int32)
    mask = np.where(held.numpy()[:, None] <= ask.numpy()[:, :, None], np.float32(0), np.float32(-1e30))
    packed = [quantize_minmax(x.numpy(), bits, 32) for x, bits in ((k, 8), (v, 4))]
    for sides in ([k.to(dtype), v.to(dtype)], [side(x, device) for x in packed]):
        exact = [dequantize(x) for x in packed] if isinstance(sides[0], Packed) else [x.float().numpy() for x in sides]
        options = {"scale": 0.125, "sinks": None, "softcap": None}
        expected = ORACLE.cached_attention(q.to(dtype).float().numpy(), *exact, mask, **options)
        sides = [x if isinstance(x, Packed) else x.to(device) for x in sides]
        rule = Rule(ask.to(device), held.to(device), None, 0, held >= 0)
        out = attention.attend(q.to(device, dtype), *sides, rule, **options, sink_logits=None, splits=2)
        assert out.dtype == dtype
        unit = torch.finfo(dtype).eps
        np.testing.assert_allclose(array(out.float()), expected, atol=4 * unit * np.abs(exact[1]).max())


def test_queries_are_read_where_they_lie(kernels: Any) -> None:
    """(B, T, H, D) as products give it, seen as (B, H, T, D)."""
    attention, _, device = kernels
    q = torch.randn(2, 3, 4, 32, generator=torch.Generator().manual_seed(0)).to(device)
    k = torch.randn(2, 2, 20, 32, generator=torch.Generator().manual_seed(1)).to(device)
    held = torch.arange(20, dtype=torch.int32, device=device).repeat(2, 1)
    ask = torch.tensor([[17, 18, 19]] * 2, dtype=torch.int32, device=device)
    rule = Rule(ask, held, None, 0, held >= 0)
    options: dict[str, Any] = {"sinks": None, "softcap": None, "sink_logits": None}
    found, expected = (
        attention.attend(x, k, k, rule, scale=0.2, **options, splits=1)
        for x in (q.transpose(1, 2), q.transpose(1, 2).contiguous())
    )
    np.testing.assert_array_equal(array(found), array(expected))


# Writing


def store(kernels: Any, kv: Any, x: np.ndarray, index: np.ndarray) -> tuple[Any, Any]:
    """A ring's sides, with x (B, T, 2 * H, D) at slots index."""
    _, writing, device = kernels
    sides = tuple(side(part, device) for part in rings.sides(kv))
    writing.store(*sides, tensor(x, device), tensor(index, device))
    return sides


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_words_of_any_numbers(kernels: Any, bits: int, group: int) -> None:
    """Of any size up to float16's, of one sign, constant, zero, and exactly between two integers."""
    rng = np.random.default_rng(bits * group)
    x = rng.standard_normal((1, 12, 2, 64)) * np.exp(rng.uniform(-16, 8, (1, 12, 2, 1)))
    x[0, 0, 0], x[0, 1, 0], x[0, 2, 0] = 0, 0.3, -7.0
    x[0, 3, 1] = 5 + rng.random(64) * 1e-6
    x[0, 4, 1] = np.arange(64) % 32 * 0.5  # scale and offset exact: halves everywhere
    x[0, 4, 1, ::32], x[0, 4, 1, 1::32] = 0, 2**bits - 1
    x = x.astype(np.float32)
    empty = quantize_minmax(np.zeros((1, 1, 12, 64), np.float32), bits, group)
    sides = store(kernels, rings.Sides(empty, empty), x, np.arange(12, dtype=np.int32)[None])
    for h, mine in enumerate(sides):
        exact = quantize_minmax(x[:, :, h : h + 1].swapaxes(1, 2), bits, group)
        np.testing.assert_array_equal(array(mine.weight).view(np.uint32), exact.weight)
        for a, b in zip(mine.grid, exact.grid, strict=True):
            np.testing.assert_array_equal(array(a), b)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dense_slots(kernels: Any, dtype: type) -> None:
    rng = np.random.default_rng(0)
    ring = rng.standard_normal((2, 2, 3, 9, 80)).astype(dtype)
    x, index = rng.standard_normal((2, 2, 6, 80)).astype(np.float32), np.array([[3, 8], [0, 1]], np.int32)
    for mine, exact in zip(store(kernels, ring, x, index), ORACLE.store(ring, x, index), strict=True):
        np.testing.assert_array_equal(array(mine), exact)


@pytest.mark.parametrize("d", [32, 128])
def test_a_hadamard_rotation(ops: Any, d: int) -> None:
    """The oracle multiplies by the matrix: sums in another order, so that an integer may fall the other way."""
    life = Life(ops, spec_of(layer(2, d, WINDOW, SINKS), "k8v8h"), 4, [60], 3)
    x = life.step[0]
    np.testing.assert_allclose(array(ops.hadamard(ops.array(x))), ORACLE.hadamard(x), rtol=0, atol=1e-5)
    judge(life, words=False)


@pytest.mark.parametrize("dims", [16, 48, 64])
@pytest.mark.parametrize("heads", [1, 5])
def test_part_of_a_head_is_rotated(ops: Any, dims: int, heads: int) -> None:
    table = RopeTable(ORACLE, RopeConfig(10_000.0, dims))
    table.reserve(70)
    cos, sin = table.angles(np.array([[5, 6, 60], [1, 2, 3]], np.int32))
    x = np.random.default_rng(dims).standard_normal((2, 3, 5, 64)).astype(np.float32)
    mine = ops.rotate(ops.array(x), ops.turns(ops.array(cos), ops.array(sin), heads, 5 - heads))
    near = {"rtol": 0, "atol": 0 if ops.device == "cpu" else 1e-6}  # see `numbers`
    np.testing.assert_allclose(array(mine), ORACLE.rotate(x, ORACLE.turns(cos, sin, heads, 5 - heads)), **near)
    back = ops._gpu.rotate(mine, ops.array(cos), ops.array(sin), heads, True)
    np.testing.assert_allclose(array(back), x, rtol=0, atol=2e-6)
