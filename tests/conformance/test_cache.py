"""The cache on every backend against attention computed from the whole history, one visible key after another.

The reference knows nothing of slots, rings or chunks: it keeps every key and value ever written and applies the rule
`0 <= p <= q and (p > q - window or p < sinks)`, with sinks scored by a query rotated at min(q, sinks + window - 1).
Keys of 4 bits are rounded less their centre, and have it back when they are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partita.backend import Backend
from partita.cache import session_file
from partita.cache.kv_format import KVFormat
from partita.cache.spec import ALIGN, CacheSpec, LayerSpec, Span, cache_bytes
from partita.cache.state import Cache
from partita.errors import ContextError
from partita.model.config import RopeConfig
from partita.model.rope import RopeTable, inverse_frequencies
from partita.quantization import dequantize, quantize_minmax

from .. import bounds
from ..stacked import attend

D, HEADS, KV_HEADS, SCALE = 32, 4, 2, 0.3
ROPE = RopeConfig(10_000.0, D)
SINK_LOGITS = np.array([-2.0, 0.5, 1.0, 3.0], np.float32)


@dataclass(frozen=True)
class Plan:
    """One random life of a cache: what it keeps, and how its tokens come and go."""

    window: int | None
    sinks: int
    slack: int
    chunk: int
    batch: int
    kv: str
    steps: list[tuple[str, int]]
    seed: int
    sink_logits: bool = False
    rotates: bool = True


@st.composite
def plans(draw: st.DrawFn, kv: st.SearchStrategy[str]) -> Plan:
    chunk = draw(st.integers(1, 9))
    step = st.tuples(st.sampled_from(["write", "write", "write", "trim"]), st.integers(1, chunk))
    return Plan(
        window=draw(st.one_of(st.none(), st.integers(1, 20))),
        sinks=draw(st.integers(0, 5)),
        slack=draw(st.integers(0, 8)),
        chunk=chunk,
        batch=draw(st.integers(1, 3)),
        kv=draw(kv),
        steps=draw(st.lists(step, min_size=1, max_size=14)),
        seed=draw(st.integers(0, 2**16)),
        sink_logits=draw(st.booleans()),
        rotates=draw(st.booleans()),
    )


def spec_of(plan: Plan) -> CacheSpec:
    rope = ROPE if plan.rotates else None
    layer = LayerSpec(KV_HEADS, D, Span(plan.window, plan.sinks), rope, SCALE, None, plan.sink_logits)
    return CacheSpec((layer,), KVFormat.parse(plan.kv), 8192, plan.sinks, plan.chunk, plan.slack)


def rotated(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """x (H, T, D) at positions (T,), angles in float64."""
    angle = positions[:, None] * inverse_frequencies(ROPE)
    cos, sin = np.cos(angle), np.sin(angle)
    low, high = x[..., : D // 2], x[..., D // 2 :]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)


@dataclass
class Row:
    """Every rotated key and every value of one row, as they would be read back from storage."""

    keys: list[np.ndarray] = field(default_factory=list)  # each (KV_HEADS, D)
    sink_keys: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    sink_values: list[np.ndarray] = field(default_factory=list)
    unrotated: list[np.ndarray] = field(default_factory=list)

    def trim(self, count: int) -> None:
        for part in (self.keys, self.sink_keys, self.values, self.sink_values, self.unrotated):
            del part[len(part) - count :]

    def centre(self, ops: Backend, table: RopeTable, plan: Plan) -> np.ndarray | float:
        """What keys of 4 bits are rounded without, (KV_HEADS, D): the mean of all sinks but the first, before rotation,
        by the mean rotation of 2,048 positions. In the backend's own operations: its last bit may decide how a key is
        rounded."""
        sinks = self.unrotated[1 : plan.sinks]
        if not (plan.kv.startswith("k4") and plan.rotates and sinks) or plan.sink_logits:
            return 0.0
        mean = ops.sum(ops.array(np.stack(sinks, 1)[None]), 2) * (1 / len(sinks))
        turns = ops.turns(*table.mean_angles(2048), KV_HEADS, 0)
        return ops.to_numpy(ops.rotate(mean[:, None], turns))[0, 0]

    def attend(self, q: np.ndarray, position: int, plan: Plan) -> tuple[np.ndarray, float]:
        """q (HEADS, D) before rotation to (HEADS, D), in float64, and how far float32 may be from it. A sink logit is
        one more score, whose value is nothing."""
        q = q.astype(np.float64)
        own = rotated(q[:, None], np.array([position]))[:, 0] if plan.rotates else q
        anchor = position if plan.window is None else min(position, plan.sinks + plan.window - 1)
        to_sinks = rotated(q[:, None], np.array([anchor]))[:, 0] if plan.rotates else q
        scores, values = [], []
        for p in range(position + 1):
            if p < plan.sinks:
                scores.append(SCALE * np.einsum("hd,hd->h", to_sinks, grouped(self.sink_keys[p])))
                values.append(grouped(self.sink_values[p]))
            elif plan.window is None or p > position - plan.window:
                scores.append(SCALE * np.einsum("hd,hd->h", own, grouped(self.keys[p])))
                values.append(grouped(self.values[p]))
        if plan.sink_logits:
            scores.append(SINK_LOGITS)
            values.append(np.zeros((HEADS, D)))
        weights = np.exp(np.array(scores) - np.max(scores, 0))
        weights /= weights.sum(0)
        # rotations round a few times more; a packed number is the sum of two, of which one may be twice as large
        error = bounds.attention(D + 4, len(scores), score=np.abs(scores).max(), value=np.abs(values).max())
        return np.einsum("ph,phd->hd", weights, np.array(values)), error if plan.kv == "32" else 3 * error


def grouped(x: np.ndarray) -> np.ndarray:
    return np.repeat(x, HEADS // KV_HEADS, 0)


def stored(x: np.ndarray, bits: int, group_size: int) -> np.ndarray:
    if bits == 32:
        return x
    if bits == 16:
        return x.astype(np.float16).astype(np.float32)
    return dequantize(quantize_minmax(x, bits, group_size))


def live(ops: Backend, plan: Plan) -> None:
    """Run the plan on a cache and on the reference, and compare every output of every step."""
    rng, spec = np.random.default_rng(plan.seed), spec_of(plan)
    cache, rows, reached = Cache(ops, spec, plan.batch), [Row() for _ in range(plan.batch)], [0]
    table = RopeTable(ops, ROPE)
    table.reserve(1024)
    for kind, count in plan.steps:
        if kind == "trim":
            if count <= min(cache.offsets) and cache.can_trim(count):
                cache.trim(count)
                for row in rows:
                    row.trim(count)
            continue
        lengths = [count, *rng.integers(0, count + 1, plan.batch - 1).tolist()]
        q, k, v = (
            rng.standard_normal((plan.batch, h, count, D)).astype(np.float32) for h in (HEADS, KV_HEADS, KV_HEADS)
        )
        starts = list(cache.offsets)
        positions = np.array([[s + i for i in range(count)] for s in starts], np.int32)
        cache.advance(count, lengths)
        reached += cache.offsets
        logits = ops.array(SINK_LOGITS) if plan.sink_logits else None
        out = attend(cache, 0, q, k, v, logits)
        turns = ops.turns(*table.angles(ops.array(positions)), KV_HEADS, 0)
        turned = ops.to_numpy(ops.rotate(ops.array(k.swapaxes(1, 2)), turns)).swapaxes(1, 2) if plan.rotates else k
        for b, row in enumerate(rows):
            for i in range(lengths[b]):
                row.sink_keys.append(turned[b, :, i])
                row.sink_values.append(v[b, :, i])
                row.unrotated.append(k[b, :, i])
                centre = row.centre(ops, table, plan)
                row.keys.append(stored(turned[b, :, i] - centre, spec.kv.key_bits, spec.kv.group_size) + centre)
                row.values.append(stored(v[b, :, i], spec.kv.value_bits, spec.kv.group_size))
            for i in range(lengths[b]):
                expected, error = row.attend(q[b, :, i], starts[b] + i, plan)
                np.testing.assert_allclose(out[b, :, i], expected, atol=error, rtol=0)
    assert cache.offsets == [len(row.keys) for row in rows]
    assert cache.nbytes == cache_bytes(spec, max(reached), plan.batch)


RELAXED = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@RELAXED
@given(plan=plans(st.just("32")))
def test_equals_attention_over_the_whole_history(ops: Backend, plan: Plan) -> None:
    live(ops, plan)


@RELAXED
@given(plan=plans(st.sampled_from(["k8v8", "k8v4", "k4v4", "k4v8"])))
def test_equals_attention_over_the_quantized_history(ops: Backend, plan: Plan) -> None:
    live(ops, plan)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("kv", ["32", "k8v4", "k4v4"])
@pytest.mark.parametrize(("window", "sinks"), [(16, 0), (16, 4), (None, 0)])
def test_chunking_does_not_matter(ops: Backend, chunk: int, kv: str, window: int | None, sinks: int) -> None:
    """Lengths around the window and beyond the ring; sinks stay visible to chunks after it has turned."""
    for length in (15, 16, 17, 35, 150):
        steps = [("write", min(chunk, length - start)) for start in range(0, length, chunk)]
        live(ops, Plan(window, sinks, 0, chunk, 1, kv, steps, length))


def test_hadamard_leaves_dense_attention_as_it_is(ops: Backend) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, h, 6, D)).astype(np.float32) for h in (HEADS, KV_HEADS, KV_HEADS))
    found = []
    for kv in ("k32v32", "k32v32h"):
        cache = Cache(ops, spec_of(Plan(4, 2, 0, 6, 1, kv, [], 0)))
        cache.advance(6)
        found.append(attend(cache, 0, q, k, v))
    # keys, values and queries are sums over 32 dims besides
    bounds.assert_near(*found, 2 * bounds.attention(2 * D, 6, score=8, value=4), 1)


def test_trim_across_the_wrap_equals_never_having_written(ops: Backend) -> None:
    """What the ring still holds can be taken back; what it has overwritten is refused, and nothing changes then."""
    plan = Plan(8, 2, 6, 4, 1, "32", [("write", 4)] * 7 + [("trim", 3), ("write", 2), ("trim", 3), ("write", 4)], 1)
    live(ops, plan)
    cache = Cache(ops, spec_of(plan))
    for _ in range(7):
        cache.advance(4)
        attend(cache, 0, *(np.zeros((1, h, 4, D), np.float32) for h in (HEADS, KV_HEADS, KV_HEADS)))
    assert cache.can_trim(7)  # the ring holds 14: the 7 before the new end, and the 7 taken back
    assert not cache.can_trim(8)
    with pytest.raises(ContextError, match="overwritten"):
        cache.trim(8)
    assert cache.offsets == [28]
    with pytest.raises(ContextError, match="29 of 28"):
        cache.trim(29)


def test_a_chunk_longer_than_the_ring_was_made_for_is_refused(ops: Backend) -> None:
    cache = Cache(ops, spec_of(Plan(8, 0, 0, 4, 1, "32", [], 0)))
    with pytest.raises(ContextError, match="chunk of 4"):
        cache.advance(5)


@pytest.mark.parametrize("kv", ["32", "16", "k8v8", "k8v4", "k4v4"])
def test_memory_stops_growing_at_the_ring(ops: Backend, kv: str) -> None:
    """Buffers grow in blocks up to the ring and stay; nbytes is what the arrays hold."""
    cache = Cache(ops, spec_of(Plan(300, 4, 0, 64, 1, kv, [], 0)))
    sizes = []
    for _ in range(12):
        cache.advance(64)
        attend(cache, 0, *(np.zeros((1, h, 64, D), np.float32) for h in (HEADS, KV_HEADS, KV_HEADS)))
        sizes.append(cache.nbytes)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 2  # one block of 256, then the ring
    slots = -(-(300 + 63 + 1) // ALIGN) * ALIGN
    bits = {"32": 64, "16": 32, "k8v8": 18, "k8v4": 14, "k4v4": 10}[
        kv
    ]  # keys and values; a float16 pair is 1 bit a value
    dense = kv in ("32", "16")  # where sinks are slots of the ring; their keys before rotation have a spare slot
    sinks = (2 * 4 + 5 if dense else 3 * 5) * KV_HEADS * D * (2 if kv == "16" else 4)
    assert sizes[-1] == KV_HEADS * D * bits * slots // 8 + 4 * (slots + 4) + sinks + 4


def test_the_mean_rotation_is_that_of_all_positions(ops: Backend) -> None:
    table = RopeTable(ops, RopeConfig(10_000.0, D, scaling="yarn", factor=4.0, original_max_positions=64,
                                      attention_factor=1.5))  # fmt: skip
    table.reserve(300)
    every = [ops.to_numpy(x)[0] for x in table.angles(ops.array(np.arange(300, dtype=np.int32)[None]))]
    for mean, each in zip(table.mean_angles(300), every, strict=True):
        assert mean.shape == (1, 1, D // 2)
        bounds.assert_near(ops.to_numpy(mean)[0, 0], each.astype(np.float64).mean(0), 2 * bounds.gamma(6), 1.5)


def test_far_positions_are_exact(ops: Backend) -> None:
    """Angles at position 5,000,000 are as exact as near ones; float32 products would be off by 0.3 rad."""
    table = RopeTable(ops, ROPE)
    table.reserve(5_000_003)
    positions = np.array([[0, 1023, 1024, 999_999, 5_000_000]], np.int32)
    cos, sin = (ops.to_numpy(x)[0] for x in table.angles(ops.array(positions)))
    exact = positions[0][:, None].astype(np.float64) * inverse_frequencies(ROPE)
    bounds.assert_near(
        cos, np.cos(exact), bounds.gamma(6), 1
    )  # two products and their sum, of numbers that are rounded
    bounds.assert_near(sin, np.sin(exact), bounds.gamma(6), 1)


def step(cache: Cache, seed: int, tokens: int, rows: slice = slice(None)) -> np.ndarray:
    """Feed `tokens` random tokens to every row (each row its own numbers), and return what they see."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((4, h, tokens, D)).astype(np.float32) for h in (HEADS, KV_HEADS, KV_HEADS))
    cache.advance(tokens)
    return attend(cache, 0, *(x[rows] for x in (q, k, v)))


@pytest.mark.parametrize("kv", ["32", "16", "k8v4", "k4v4h"])
def test_a_snapshot_is_restored_exactly(ops: Backend, kv: str) -> None:
    """Before the wrap, across it, and into another cache; writing on does not change what was taken."""
    plan = Plan(8, 2, 3, 4, 1, kv, [], 0)
    for before in (1, 3, 9):
        cache, fresh = Cache(ops, spec_of(plan)), Cache(ops, spec_of(plan))
        for i in range(before):
            step(cache, i, 4, slice(0, 1))
        snapshot = cache.snapshot()
        assert snapshot.nbytes == cache.nbytes
        expected = [step(cache, 100 + i, 3, slice(0, 1)) for i in range(6)]
        for restored in (cache, fresh):
            restored.restore(snapshot)
            assert restored.offsets == [4 * before]
            found = [step(restored, 100 + i, 3, slice(0, 1)) for i in range(6)]
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(ContextError, match="another layout"):
        Cache(ops, spec_of(Plan(9, 2, 3, 4, 1, kv, [], 0))).restore(snapshot)


@pytest.mark.parametrize("kv", ["32", "k8v4", "k4v4"])
def test_rows_are_filtered_and_extended_at_any_step(ops: Backend, kv: str) -> None:
    """A row of a batch sees what it would see alone, whatever rows are beside it and at whatever positions. Of keys
    that differ in the last bit, one may fall to the other of two integers: a step of 8 bits moves a score by 0.006,
    one of 4 bits by 0.1."""
    error = {"32": 2 * bounds.attention(D, 12, score=8, value=4), "k8v4": 0.006, "k4v4": 0.1}[kv]
    spec = spec_of(Plan(8, 2, 3, 4, 1, kv, [], 0))
    alone = [Cache(ops, spec) for _ in range(3)]
    batch = Cache(ops, spec)
    others = [Cache(ops, spec) for _ in range(2)]
    for row, count in ((0, 7), (1, 2), (2, 5)):  # rows begin at positions 28, 8 and 20
        for i in range(count):
            for cache in (alone[row], [batch, *others][row]):
                step(cache, i, 4, slice(row, row + 1))
    for other in others:
        batch.extend(other)
    assert batch.offsets == [28, 8, 20]
    members = [0, 1, 2]
    for i in range(5):
        if i == 2:
            batch.filter([2, 0])
            members = [2, 0]
        found = []
        rng = np.random.default_rng(i)
        q, k, v = (rng.standard_normal((3, h, 2, D)).astype(np.float32) for h in (HEADS, KV_HEADS, KV_HEADS))
        batch.advance(2)
        found = attend(batch, 0, *(x[members] for x in (q, k, v)))
        for place, row in enumerate(members):
            alone[row].advance(2)
            expected = attend(alone[row], 0, *(x[row : row + 1] for x in (q, k, v)))
            bounds.assert_near(found[place], expected[0], error, 1)
        for row in {0, 1, 2} - set(members):
            alone[row].advance(2)
            attend(alone[row], 0, *(x[row : row + 1] for x in (q, k, v)))
    with pytest.raises(ContextError, match="own layout"):
        batch.extend(Cache(ops, spec_of(Plan(9, 2, 3, 4, 1, kv, [], 0))))


@pytest.mark.parametrize("kv", ["k8v4", "k4v4"])
def test_taken_back_into_the_sinks_the_rings_are_empty(ops: Backend, kv: str, tmp_path: Path) -> None:
    """As if only the sinks had been written: bytes, what can be taken back next, what is seen, and the file."""
    spec = spec_of(Plan(300, 4, 0, 4, 1, kv, [], 0))
    cache, fresh = Cache(ops, spec), Cache(ops, spec)
    for i in range(100):
        step(cache, i, 4, slice(0, 1))
    cache.trim(397)
    step(fresh, 0, 4, slice(0, 1))
    fresh.trim(1)
    assert cache.offsets == fresh.offsets == [3]
    assert cache.nbytes == fresh.nbytes == cache_bytes(spec, 3)
    session_file.save(tmp_path / "kept", cache, [1, 2, 3], session_file.Identity("tiny", "f"))
    assert session_file.load(tmp_path / "kept", cache, session_file.Identity("tiny", "f")).tokens == [1, 2, 3]
    for i in range(100):
        np.testing.assert_array_equal(step(cache, i, 3, slice(0, 1)), step(fresh, i, 3, slice(0, 1)))
    assert cache.can_trim(3)
