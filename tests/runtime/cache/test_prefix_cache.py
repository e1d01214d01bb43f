"""The tree of beginnings against a plain list of them, with snapshots that are numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.cache.kv_format import KVFormat
from partita.cache.prefix_cache import TOKEN_BYTES, PrefixCache
from partita.cache.snapshot import Snapshot
from partita.cache.spec import CacheSpec, LayerSpec, Span
from partita.errors import DataError
from partita.model.config import RopeConfig


def spec_of(window: int | None, sinks: int = 0, chunk: int = 3) -> CacheSpec:
    layer = LayerSpec(1, 32, Span(window, sinks), RopeConfig(1e4, 32), 1.0, None)
    return CacheSpec((layer,), KVFormat(32, 32), None, sinks, chunk)


FULL, RING = spec_of(None), spec_of(4)


def snapshot(spec: CacheSpec, tokens: Sequence[int], nbytes: int = 40) -> Snapshot:
    return Snapshot(spec, (len(tokens),), (len(tokens),), [np.zeros(nbytes, np.uint8)])


@dataclass
class Reference:
    """The same rules over a list, least recently used first."""

    max_bytes: int
    held: list[tuple[tuple[int, ...], Snapshot]]

    def longest(self, tokens: Sequence[int], spec: CacheSpec) -> int:
        best, limit = 0, len(tokens) - 1
        for held, state in self.held:
            same = 0
            while same < min(limit, len(held)) and held[same] == tokens[same]:
                same += 1
            # what is shared, or less of it: a ring can be taken back a little or, into the sinks, by everything
            for count in range(same, 0, -1):
                if state.spec == spec and count > best and state.can_trim(len(held) - count):
                    best = count
        return best

    def cost(self, entry: tuple[tuple[int, ...], Snapshot]) -> int:
        return entry[1].nbytes + TOKEN_BYTES * len(entry[0])

    def put(self, tokens: tuple[int, ...], state: Snapshot) -> bool:
        if self.longest((*tokens, 0), state.spec) == len(tokens):
            return True
        if self.cost((tokens, state)) > self.max_bytes:
            return False
        self.held = [
            (held, other)
            for held, other in self.held
            if other.spec != state.spec or tokens[: len(held)] != held or not state.can_trim(len(tokens) - len(held))
        ]
        while sum(map(self.cost, self.held)) + self.cost((tokens, state)) > self.max_bytes:
            del self.held[0]
        self.held.append((tokens, state))
        return True

    def used(self, state: Snapshot) -> None:
        self.held.sort(key=lambda entry: entry[1] is state)


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=14).map(tuple)
SPECS = st.sampled_from([FULL, RING, spec_of(3, 2), spec_of(5, 0, 1)])
ACTIONS = st.lists(st.tuples(st.sampled_from(["put", "find"]), TOKENS, SPECS, st.integers(1, 120)), max_size=30)


@settings(max_examples=400)
@given(actions=ACTIONS, max_bytes=st.integers(0, 600))
def test_equals_a_list_of_everything_held(actions: list, max_bytes: int) -> None:
    """The longest usable beginning, the same snapshots kept, and never a byte too many."""
    cache, reference = PrefixCache(max_bytes), Reference(max_bytes, [])
    for what, tokens, spec, nbytes in actions:
        if what == "put":
            state = snapshot(spec, tokens, nbytes)
            known = cache.longest((*tokens, 0), spec)
            if known is not None:
                reference.used(known[1])
            assert cache.put(tokens, state) == reference.put(tokens, state)
        else:
            found = cache.longest(tokens, spec)
            assert (found[0] if found else 0) == reference.longest(tokens, spec)
            if found is not None:
                count, state = found
                assert 0 < count < len(tokens)
                assert state.spec == spec
                assert state.can_trim(state.offsets[0] - count)
                held = next(held for held, other in reference.held if other is state)
                assert held[:count] == tokens[:count]
                reference.used(state)
        assert len(cache) == len(reference.held)
        assert cache.nbytes == sum(map(reference.cost, reference.held)) <= max_bytes
        prefixes = [held for held, state in reference.held if state.spec == spec]
        shared = max(
            (sum(np.cumprod([a == b for a, b in zip(held, tokens, strict=False)])) for held in prefixes), default=0
        )
        assert cache.shared(tokens, spec) == shared


def test_the_last_token_is_always_left_to_feed() -> None:
    """A prompt that is held already, and one that ends inside what is held."""
    cache = PrefixCache(1000)
    assert cache.put(range(10), snapshot(FULL, range(10)))
    assert [(cache.longest(range(n), FULL) or (0,))[0] for n in (1, 2, 9, 10, 11, 30)] == [0, 1, 8, 9, 10, 10]


def test_a_ring_serves_what_it_can_be_taken_back_to() -> None:
    """A window of 4 in a ring of 6 holds 6 of 20 tokens: 3 can be taken back, since 17 sees from 14 on."""
    cache = PrefixCache(1000)
    cache.put(range(20), snapshot(RING, range(20)))
    assert [(cache.longest([*range(n), 99], RING) or (0,))[0] for n in (20, 19, 18, 17, 16, 5)] == [
        20,
        19,
        18,
        17,
        0,
        0,
    ]
    assert cache.shared([*range(5), 99], RING) == 5


def test_the_least_recently_used_goes_first() -> None:
    cost = 40 + 2 * TOKEN_BYTES
    cache = PrefixCache(3 * cost)
    for i in range(3):
        cache.put([i, i], snapshot(FULL, [i, i]))
    assert cache.longest([0, 0, 9], FULL) is not None
    cache.put([3, 3], snapshot(FULL, [3, 3]))
    cache.put([2, 2], snapshot(FULL, [2, 2]))  # known already: used, not stored twice
    cache.put([4, 4], snapshot(FULL, [4, 4]))
    assert [cache.longest([i, i, 9], FULL) is not None for i in range(5)] == [False, False, True, True, True]
    assert cache.nbytes == 3 * cost
    statistics = cache.statistics
    assert (statistics.hits, statistics.misses, statistics.tokens, statistics.dropped) == (4, 2, 8, 2)
    cache.clear()
    assert (len(cache), cache.nbytes, cache.longest([4, 4, 9], FULL)) == (0, 0, None)


def test_a_conversation_that_grows_is_kept_once_where_it_can_be_taken_back() -> None:
    """Full attention: the newest snapshot serves every earlier turn. A ring: each turn needs its own."""
    for spec, kept in ((FULL, 1), (RING, 3)):
        cache = PrefixCache(10_000)
        for length in (20, 40, 60):
            cache.put(range(length), snapshot(spec, range(length)))
        assert len(cache) == kept


def test_models_and_layouts_do_not_mix() -> None:
    cache = PrefixCache(1000)
    cache.put([1, 2, 3], snapshot(FULL, [1, 2, 3]), model="a")
    assert cache.longest([1, 2, 3, 4], FULL, model="b") is None
    assert cache.longest([1, 2, 3, 4], RING, model="a") is None
    assert cache.longest([1, 2, 3, 4], FULL, model="a") is not None


def test_what_cannot_be_kept() -> None:
    cache = PrefixCache(100)
    cache.put([1], snapshot(FULL, [1]))
    assert not cache.put([2], snapshot(FULL, [2], 97))
    assert len(cache) == 1  # nothing had to go for what does not fit
    with pytest.raises(DataError, match="cannot be kept"):
        cache.put([1, 2], snapshot(FULL, [1]))
    with pytest.raises(DataError, match=">= 0, got -1"):
        PrefixCache(-1)
