"""The Triton kernels of a cache against the cache on numpy: what a step writes, and what its queries see.

A cache lives on the oracle up to a step; the kernels take its arrays as they then are, do the step, and must leave the
same words and give the same attention. Slots and anchored positions are worked out here from the rules of
`partita.cache.state`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import CacheSpec, LayerSpec, Span
from partita.cache.state import Cache
from partita.model.config import RopeConfig
from partita.model.rope import RopeTable
from partita.quantization import Packed, dequantize, quantize_minmax
from partita_backends.torch import weights

ORACLE = partita_backends.load("numpy")
WINDOW, SINKS, CHUNK = 20, 3, 8
RING = WINDOW + CHUNK - 1
ANCHOR = SINKS + WINDOW - 1


@pytest.fixture(scope="module")
def kernels(triton_device: str) -> Any:
    from partita_backends.torch import triton_attention, triton_write

    return triton_attention, triton_write, triton_device


def tensor(x: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(x.view(np.int32).copy() if x.dtype == np.uint32 else x.copy()).to(device)


def side(x: Any, device: str) -> Any:
    return x.map(lambda part: tensor(part, device)) if isinstance(x, Packed) else tensor(x, device)


def array(x: torch.Tensor) -> np.ndarray:
    return x.cpu().numpy()


def layer(heads: int, d: int, window: int | None, sinks: int, softcap: float | None = None) -> LayerSpec:
    return LayerSpec(heads, d, Span(window, sinks), RopeConfig(10_000.0, d), d**-0.5, softcap)


class Life:
    """A cache of one layer on the oracle, whose rows have read so many tokens, and the numbers of its next step."""

    def __init__(self, spec: CacheSpec, heads: int, lengths: list[int], tokens: int):
        self.spec, self.layer, self.batch, self.tokens = spec, spec.layers[0], len(lengths), tokens
        self.rng, self.heads = np.random.default_rng(sum(lengths)), heads
        self.cache = Cache(ORACLE, spec, self.batch)
        while min(self.cache.offsets) < max(lengths):
            some = [min(max(n - o, 0), CHUNK) for n, o in zip(lengths, self.cache.offsets, strict=True)]
            if not any(some):
                break
            self.cache.advance(CHUNK, some)
            self.cache.attend(0, *self.normal(CHUNK))
        self.q, self.k, self.v = self.normal(tokens)
        self.logits: np.ndarray | None = None

    def normal(self, tokens: int) -> list[np.ndarray]:
        heads = (self.heads, self.layer.kv_heads, self.layer.kv_heads)
        return [
            self.rng.standard_normal((self.batch, h, tokens, self.layer.head_dim)).astype(np.float32) for h in heads
        ]

    def step(self) -> np.ndarray:
        """Do it; what its queries saw."""
        self.before = [np.array(x) for x in self.cache.arrays()]
        start = self.before[0][:, None] + np.arange(self.tokens, dtype=np.int32)
        self.positions = start
        self.cache.advance(self.tokens)
        return np.asarray(self.cache.attend(0, self.q, self.k, self.v, self.logits))

    def angles(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self.layer.rope is not None
        table = RopeTable(ORACLE, self.layer.rope)
        table.reserve(int(positions.max()) + 1)
        return table.angles(positions)

    def buffers(self, arrays: list[np.ndarray], device: str) -> tuple[Any, ...]:
        """(keys, values, sink keys, sink values) in torch's memory, of the cache's arrays."""
        rest = iter(arrays[3 if self.layer.span.sinks else 2 :])
        sides = []
        for bits in (self.spec.kv.key_bits, self.spec.kv.value_bits):
            if bits < 16:
                sides.append(side(Packed(next(rest), next(rest), next(rest), bits, self.spec.kv.group_size), device))
            else:
                sides.append(tensor(next(rest), device))
        return (*sides, *(tensor(x, device) for x in rest))

    def slots(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the step's tokens go, in the ring and among the sinks; spare slots are last."""
        sinks, ring = self.layer.span.sinks, self.spec.ring(self.layer.span)
        slot = self.positions - sinks
        spare = np.asarray(self.cache.arrays()[1]).shape[1] - 1
        in_ring = np.where(slot >= 0, slot if ring is None else slot % ring, spare)
        return in_ring.astype(np.int32), np.minimum(self.positions, sinks).astype(np.int32)


def judge(life: Life, kernels: Any, splits: int = 2) -> None:
    """One step of the life by the kernels, compared in all that it leaves and gives."""
    attention, writing, device = kernels
    expected = life.step()
    span, after = life.layer.span, [np.asarray(x) for x in life.cache.arrays()]
    grown = [np.zeros_like(x) for x in after]  # the step may have lengthened the ring
    for old, new in zip(life.before, grown, strict=True):
        new[tuple(slice(n) for n in old.shape)] = old
    keys, values, *kept = life.buffers(grown, device)
    ring_slots, sink_slots = (tensor(x, device) for x in life.slots())
    anchored = None
    if span.anchor is not None and span.sinks:
        anchored = tuple(tensor(x, device) for x in life.angles(np.minimum(life.positions, span.anchor)))
    angles = tuple(tensor(x, device) for x in life.angles(life.positions))
    q, turned = writing.step(
        *(tensor(x, device) for x in (life.q, life.k, life.v)),
        angles,
        anchored,
        keys,
        values,
        ring_slots,
        (*kept, sink_slots) if kept else None,
    )
    found = (keys, values, *kept)
    for name, mine, theirs in zip(("k", "v", "sink k", "sink v"), found, life.buffers(after, "cpu"), strict=False):
        assert_same_slots(name, mine, theirs, exact=device == "cpu" or name.endswith("v"))
    positions = [tensor(x, device) for x in after[1 : 3 if span.sinks else 2]]
    out = attention.attend(
        q,
        keys,
        values,
        positions[0],
        tensor(life.positions, device),
        scale=life.layer.scale,
        window=span.window,
        sinks=(turned, *kept, positions[1]) if kept else None,
        softcap=life.layer.softcap,
        sink_logits=None if life.logits is None else tensor(life.logits, device),
        splits=splits,
    )
    flipped = 0 if device == "cpu" else 0.02
    np.testing.assert_allclose(array(out), expected, rtol=0, atol=1e-5 + flipped)


def assert_same_slots(name: str, mine: Any, theirs: Any, exact: bool) -> None:
    """All but the spare slot, where whatever came last may stand. Not exact: a GPU rotates with one rounding in place
    of two, and where that decides, an integer falls the other way."""
    if not exact:
        dense = [weights.dequantize(x, torch.float32) if isinstance(x, Packed) else x.float() for x in (mine, theirs)]
        assert np.abs(array(dense[0]) - array(dense[1]))[:, :, :-1].mean() < 1e-3, name
        return
    pairs = [(mine, theirs)]
    if isinstance(mine, Packed):
        pairs = [(mine.weight, theirs.weight), *zip(mine.grid, theirs.grid, strict=True)]
    for a, b in pairs:
        np.testing.assert_array_equal(array(a)[:, :, :-1], array(b)[:, :, :-1], err_msg=name)


def spec_of(one: LayerSpec, kv: str) -> CacheSpec:
    return CacheSpec((one,), KVFormat.parse(kv), None, one.span.sinks, CHUNK)


FORMATS = ["32", "16", "k8v8", "k8v4", "k4v4:64", "k4v16", "k32v8"]


@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("read", [ANCHOR - 1, SINKS + RING + 5])
def test_every_format(kernels: Any, kv: str, read: int) -> None:
    judge(Life(spec_of(layer(2, 64, WINDOW, SINKS), kv), 6, [read], 1), kernels)


@pytest.mark.parametrize("tokens", [1, CHUNK])
@pytest.mark.parametrize("read", [0, 1, SINKS, ANCHOR - 1, ANCHOR, ANCHOR + 1, SINKS + RING - 1, SINKS + RING, 150])
def test_every_age(kernels: Any, read: int, tokens: int) -> None:
    judge(Life(spec_of(layer(1, 32, WINDOW, SINKS), "k8v4"), 4, [read], tokens), kernels)


@pytest.mark.parametrize(
    ("d", "kv"),
    [(64, "k4v8"), (80, "32"), (80, "16"), (96, "k8v4"), (128, "k8v4:64"), (128, "16"), (256, "k8v8"), (256, "32")],
)
@pytest.mark.parametrize("tokens", [1, 5])
def test_every_head(kernels: Any, d: int, kv: str, tokens: int) -> None:
    judge(Life(spec_of(layer(1, d, WINDOW, SINKS), kv), 2, [60], tokens), kernels)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (8, 2), (9, 1)])
@pytest.mark.parametrize("splits", [1, 3])
def test_rows_of_a_batch_have_their_own_positions(kernels: Any, heads: int, kv_heads: int, splits: int) -> None:
    judge(Life(spec_of(layer(kv_heads, 32, WINDOW, SINKS), "k8v4"), heads, [7, 61], 3), kernels, splits)


def test_more_queries_than_a_program_takes(kernels: Any) -> None:
    judge(Life(spec_of(layer(1, 64, WINDOW, SINKS), "k8v4"), 20, [50], 8), kernels)


@pytest.mark.parametrize(("window", "sinks"), [(None, 0), (None, 3), (1, 0), (WINDOW, 0), (1, 2), (30, 70)])
def test_every_kind_of_layer(kernels: Any, window: int | None, sinks: int) -> None:
    judge(Life(spec_of(layer(2, 32, window, sinks), "k8v4"), 4, [110], 2), kernels, 3)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("logits", [False, True])
def test_caps_and_sink_logits(kernels: Any, softcap: float | None, logits: bool) -> None:
    life = Life(spec_of(layer(2, 64, WINDOW, SINKS, softcap), "k8v4"), 4, [60], 2)
    life.q *= 5
    life.logits = np.array([-2.0, 0.5, 1.0, 3.0], np.float32) if logits else None
    judge(life, kernels)


@pytest.mark.parametrize("logits", [False, True])
def test_a_query_that_sees_nothing_gets_zero(kernels: Any, logits: bool) -> None:
    attention, _, device = kernels
    q, k = torch.ones(1, 2, 2, 32, device=device), torch.ones(1, 1, 40, 32, device=device)
    held = torch.arange(40, dtype=torch.int32, device=device)[None]
    ask = torch.tensor([[-1, 5]], dtype=torch.int32, device=device)
    column = torch.full((2,), -50.0, device=device) if logits else None
    out = array(attention.attend(q, k, k, held, ask, scale=0.1, window=4, sink_logits=column, splits=2))
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
        out = attention.attend(q.to(device, dtype), *sides, held.to(device), ask.to(device), scale=0.125, splits=2)
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
    found, expected = (
        attention.attend(x, k, k, held, ask, scale=0.2, splits=1)
        for x in (q.transpose(1, 2), q.transpose(1, 2).contiguous())
    )
    np.testing.assert_array_equal(array(found), array(expected))


# Writing


def write(kernels: Any, buffer: Any, x: np.ndarray, index: np.ndarray) -> Any:
    _, writing, device = kernels
    mine = side(buffer, device)
    writing.write(mine, tensor(x, device), tensor(index, device))
    return mine


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_words_of_any_numbers(kernels: Any, bits: int, group: int) -> None:
    """Of any size up to float16's, of one sign, constant, zero, and exactly between two integers."""
    rng = np.random.default_rng(bits * group)
    x = rng.standard_normal((1, 2, 12, 64)) * np.exp(rng.uniform(-16, 8, (1, 2, 12, 1)))
    x[0, 0, 0], x[0, 0, 1], x[0, 0, 2] = 0, 0.3, -7.0
    x[0, 1, 3] = 5 + rng.random(64) * 1e-6
    x[0, 1, 4] = np.arange(64) % 32 * 0.5  # scale and offset exact: halves everywhere
    x[0, 1, 4, ::32], x[0, 1, 4, 1::32] = 0, 2**bits - 1
    x = x.astype(np.float32)
    buffer = quantize_minmax(np.zeros((1, 2, 12, 64), np.float32), bits, group)
    mine = write(kernels, buffer, x, np.arange(12, dtype=np.int32)[None])
    exact = quantize_minmax(x, bits, group)
    np.testing.assert_array_equal(array(mine.weight).view(np.uint32), exact.weight)
    for a, b in zip(mine.grid, exact.grid, strict=True):
        np.testing.assert_array_equal(array(a), b)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dense_slots(kernels: Any, dtype: type) -> None:
    rng = np.random.default_rng(0)
    buffer, x = rng.standard_normal((2, 3, 9, 80)).astype(dtype), rng.standard_normal((2, 3, 2, 80)).astype(np.float32)
    index = np.array([[3, 8], [0, 1]], np.int32)
    mine = write(kernels, buffer, x, index)
    np.testing.assert_array_equal(array(mine), ORACLE.write(buffer, x.astype(dtype), index))


@pytest.mark.parametrize("d", [32, 128])
def test_a_hadamard_rotation(kernels: Any, d: int) -> None:
    """The oracle multiplies by the matrix: sums in another order, so that an integer may fall the other way."""
    attention, writing, device = kernels
    life = Life(spec_of(layer(2, d, WINDOW, SINKS), "k8v8h"), 4, [60], 3)
    expected = life.step()
    keys, values, *kept = life.buffers(life.before, device)
    exact_keys, exact_values, *exact_kept = life.buffers([np.asarray(x) for x in life.cache.arrays()], "cpu")
    angles, anchored = life.angles(life.positions), life.angles(np.full_like(life.positions, ANCHOR))
    ring_slots, sink_slots = (tensor(x, device) for x in life.slots())
    q, turned = writing.step(
        *(tensor(x, device) for x in (life.q, life.k, life.v)),
        *(tuple(tensor(x, device) for x in pair) for pair in (angles, anchored)),
        keys,
        values,
        ring_slots,
        (*kept, sink_slots),
        hadamard=True,
    )
    near = {"rtol": 0, "atol": 1e-5}
    for rotated, pair in ((q, angles), (turned, anchored)):
        np.testing.assert_allclose(array(rotated), ORACLE.hadamard(ORACLE.rope(life.q, *pair)), **near)
    for mine, exact in zip(kept, exact_kept, strict=True):
        np.testing.assert_array_equal(array(mine)[:, :, :-1], array(exact)[:, :, :-1])
    for mine, exact in ((keys, exact_keys), (values, exact_values)):
        written = [array(x.weight.view(torch.uint8))[0, :, life.slots()[0][0]].astype(int) for x in (mine, exact)]
        away = np.abs(written[0] - written[1])
        assert away.max() <= 1
        assert away.mean() < 0.01
    held, kept_at = (tensor(np.asarray(x), device) for x in life.cache.arrays()[1:3])
    sinks, ask = (turned, *kept, kept_at), tensor(life.positions, device)
    out = attention.attend(q, keys, values, held, ask, scale=life.layer.scale, window=WINDOW, sinks=sinks, splits=2)
    step = 6.0 / 255  # of a group's integers: numbers reach 3 either way
    np.testing.assert_allclose(ORACLE.hadamard(array(out)), expected, rtol=0, atol=step)


@pytest.mark.parametrize("dims", [16, 48, 64])
def test_part_of_a_head_is_rotated(kernels: Any, dims: int) -> None:
    _, writing, device = kernels
    one = replace(layer(1, 64, None, 0), rope=RopeConfig(10_000.0, dims))
    life = Life(spec_of(one, "32"), 2, [5], 2)
    life.step()
    angles = life.angles(life.positions)
    keys, values = torch.zeros(1, 1, 8, 64, device=device), torch.zeros(1, 1, 8, 64, device=device)
    index = tensor(life.positions, device)
    arrays = [tensor(x, device) for x in (life.q, life.k, life.v)]
    q, _ = writing.step(*arrays, tuple(tensor(x, device) for x in angles), None, keys, values, index, None)
    near = {"rtol": 0, "atol": 0 if device == "cpu" else 1e-6}  # see `assert_same_slots`
    np.testing.assert_allclose(array(q), ORACLE.rope(life.q, *angles), **near)
    np.testing.assert_allclose(array(keys)[:, :, 5:7], ORACLE.rope(life.k, *angles), **near)
    np.testing.assert_array_equal(array(values)[:, :, 5:7], life.v)
    plain, _ = writing.step(*arrays, None, None, keys, values, index, None)
    np.testing.assert_array_equal(array(plain), life.q)
    np.testing.assert_array_equal(array(keys)[:, :, 5:7], life.k)
