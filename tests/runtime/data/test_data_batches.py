"""Batches: nothing lost and nothing twice, rows as documents alone, going on exactly, shares of several processes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.data.batches import OPEN_ROWS, WIDTH_STEP, Batch, Batches, first_fit
from partita.data.dataset import Dataset, DatasetBuilder, Statistics
from partita.errors import DataError

MAX_LENGTH = 40


def dataset_of(lengths: list[int], max_length: int = MAX_LENGTH) -> Dataset:
    """Documents whose tokens are all different, of which about half are trained, the last always."""
    builder, token = DatasetBuilder(max_length), 1
    random = np.random.default_rng(0)
    for n in lengths:
        flags = [*(random.random(n - 1) < 0.5).tolist(), True]
        builder.add_record([(list(range(token, token + n)), flags)])
        token += n
    return builder.build()


def rows_of(batch: Batch) -> list[list[tuple[list[int], list[float]]]]:
    """Each row's documents, (all tokens, weights of the predicted ones), after checking the row's layout."""
    found = []
    for r in range(len(batch.tokens)):
        row, segments = [], batch.segments[r]
        padding = segments < 0
        assert not padding[: int((~padding).sum())].any()  # padding is at the end
        assert not batch.weights[r][padding].any()
        assert not batch.tokens[r][padding].any()
        for segment in range(int(segments.max()) + 1):
            here = np.flatnonzero(segments == segment)
            assert np.array_equal(here, np.arange(here[0], here[-1] + 1))
            assert np.array_equal(batch.positions[r][here], np.arange(len(here)))
            tokens, targets = batch.tokens[r][here], batch.targets[r][here]
            assert np.array_equal(tokens[1:], targets[:-1])
            row.append(([*tokens.tolist(), int(targets[-1])], batch.weights[r][here].tolist()))
        found.append(row)
    return found


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


lengths = st.lists(st.integers(2, MAX_LENGTH), min_size=1, max_size=60)


@given(lengths=lengths, size=st.integers(1, 5), packing=st.booleans(), seed=st.integers(0, 3), epoch=st.integers(0, 2))
@settings(max_examples=120)
def test_every_document_once_an_epoch(lengths, size, packing, seed, epoch):
    data = dataset_of(lengths)
    seen: Counter[tuple[tuple[int, ...], tuple[float, ...]]] = Counter()
    for batch in Batches(data, size, MAX_LENGTH, packing, seed).one_epoch(epoch):
        shapes = {(value.shape, value.dtype.name) for name, value in vars(batch).items() if name != "weights"}
        assert shapes == {(batch.tokens.shape, "int32")}
        assert (batch.weights.shape, batch.weights.dtype) == (batch.tokens.shape, np.float32)
        width = batch.tokens.shape[1]
        assert width % WIDTH_STEP == 0 or width == MAX_LENGTH
        assert 1 <= len(batch.tokens) <= size
        rows = rows_of(batch)
        assert all(len(row) == 1 for row in rows) or packing
        assert batch.filled == sum(len(weights) for row in rows for _, weights in row)
        assert batch.trained == sum(sum(weights) for row in rows for _, weights in row)
        seen.update((tuple(tokens), tuple(weights)) for row in rows for tokens, weights in row)
    expected = (data.document(i) for i in range(len(data)))
    assert seen == Counter((tuple(t.tolist()), tuple(f[1:].astype(float).tolist())) for t, f in expected)


@given(lengths=lengths, size=st.integers(1, 4), packing=st.booleans())
@settings(max_examples=20)
def test_going_on_from_every_step_gives_the_same_batches(lengths, size, packing):
    data = dataset_of(lengths)
    stream = Batches(data, size, MAX_LENGTH, packing, 7)
    count = 2 * stream.batches_in(0) + 3
    states, batches = [], []
    for _ in range(count):
        states.append(json.loads(json.dumps(stream.state())))
        batches.append(next(stream))
    assert stream.epoch >= 1
    for at in range(0, count, 1 + count // 12):
        again = Batches(data, size, MAX_LENGTH, packing, 7)
        again.restore(states[at])
        assert again.state() == states[at]
        assert all(same(next(again), batch) for batch in batches[at : at + 4])


@given(lengths=lengths, size=st.integers(1, 3), world_size=st.integers(2, 3), packing=st.booleans())
@settings(max_examples=40)
def test_processes_see_together_what_one_with_a_larger_batch_sees(lengths, size, world_size, packing):
    data = dataset_of(lengths)
    one = Batches(data, size * world_size, MAX_LENGTH, packing, 3)
    shares = [Batches(data, size, MAX_LENGTH, packing, 3).shard(rank, world_size) for rank in range(world_size)]
    for _ in range(one.batches_in(0) + 2):
        state = one.state()
        assert all(share.state() == state for share in shares)
        whole, parts = next(one), [next(share) for share in shares]
        assert len({part.tokens.shape for part in parts}) == 1
        assert parts[0].tokens.shape[1] == whole.tokens.shape[1]
        assert len(parts[0].tokens) <= size
        for name, value in vars(whole).items():
            mixed = np.stack([getattr(part, name) for part in parts], 1).reshape(-1, value.shape[1])
            assert np.array_equal(mixed[: len(value)], value)
        assert sum(part.trained for part in parts) == whole.trained


def test_a_share_takes_up_a_state_of_the_whole():
    data = dataset_of([5, 9, 30, 12, 8, 40, 2])
    one = Batches(data, 4, MAX_LENGTH, False, 0)
    next(one)
    share = Batches(data, 2, MAX_LENGTH, False, 0).shard(1, 2)
    share.restore(one.state())
    assert np.array_equal(next(share).tokens[:1], next(one).tokens[1::2])
    with pytest.raises(DataError, match="share 0 of 2"):
        share.shard(0, 2)
    with pytest.raises(DataError, match="share 2 of 2"):
        one.shard(2, 2)


def test_epochs_and_seeds_have_orders_of_their_own():
    data = dataset_of([20] * 30)

    def order(seed, epoch, packing):
        batches = Batches(data, 4, MAX_LENGTH, packing, seed).one_epoch(epoch)
        return [tokens[0] for batch in batches for row in rows_of(batch) for tokens, _ in row]

    for packing in (True, False):
        orders = [order(0, 0, packing), order(0, 1, packing), order(1, 0, packing)]
        assert len({tuple(found) for found in orders}) == 3
        assert order(0, 1, packing) == orders[1]


def test_one_epoch_leaves_the_stream_where_it_is():
    stream = Batches(dataset_of([5, 9, 30, 12]), 2, MAX_LENGTH, True, 0)
    next(stream)
    before = stream.state()
    assert len(list(stream.one_epoch())) == stream.batches_in(0)
    assert stream.state() == before


def test_length_buckets_waste_little():
    random = np.random.default_rng(5)
    data = dataset_of(random.integers(2, 500, 600).tolist(), 512)
    batches = list(Batches(data, 8, 512, False, 0).one_epoch())
    assert sum(b.filled for b in batches) / sum(b.tokens.size for b in batches) > 0.85
    widths = [b.tokens.shape[1] for b in batches]
    assert widths != sorted(widths)


def test_packed_rows_are_full():
    random = np.random.default_rng(5)
    data = dataset_of(random.integers(2, 500, 2000).tolist(), 512)
    batches = list(Batches(data, 8, 512, True, 0).one_epoch())
    assert sum(b.filled for b in batches) / sum(b.tokens.size for b in batches) > 0.95


@given(sizes=st.lists(st.integers(1, 10), min_size=1, max_size=80))
@settings(max_examples=60)
def test_first_fit_is_first_fit(sizes):
    free: list[int] = []
    expected = []
    for size in sizes:
        at = next((i for i, room in enumerate(free) if room >= size), len(free))
        if at == len(free):
            free.append(10)
        free[at] -= size
        expected.append(at)
    row_of, count = first_fit(np.array(sizes), 10)
    assert (row_of.tolist(), count) == (expected, len(free))


def test_rows_stay_within_their_capacity_when_some_are_closed():
    sizes = np.random.default_rng(1).integers(400, 512, 4 * OPEN_ROWS)
    row_of, count = first_fit(sizes, 511)
    used = np.bincount(row_of, sizes, minlength=count)
    assert used.max() <= 511
    assert used.min() > 0


def test_what_cannot_be_is_one_line():
    data = dataset_of([30, 5])
    for arguments, words in [
        ((data, 0, 40, True, 0), "`batch_size` must be >= 1"),
        ((data, 1, 29, True, 0), "a document of 30 tokens does not fit `max_length` 29"),
        ((data, 1, 40, True, -1), "`seed` must be >= 0"),
        ((DatasetBuilder(40).build(), 1, 40, True, 0), "no documents"),
    ]:
        with pytest.raises(DataError, match=words):
            Batches(*arguments)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", 1, "`seed` was 1 then and is 0 now"),
        ("batch_size", 3, "the number of rows a step"),
        ("max_length", 41, "`max_length` was 41"),
        ("packing", False, "`packing` was False then and is True now"),
        ("data", "x", "the data's fingerprint"),
        ("index", -1, "is damaged"),
        ("index", 99, "epoch 0, batch 99; the state is damaged"),
        ("epoch", None, "epoch None"),
        ("epoch", True, "epoch True"),
    ],
)
def test_a_state_of_other_data_or_flags_is_refused(key, value, words):
    stream = Batches(dataset_of([5, 9]), 1, MAX_LENGTH, True, 0)
    with pytest.raises(DataError, match=words):
        stream.restore({**stream.state(), key: value})


def test_the_fingerprint_knows_tokens_flags_and_documents():
    def built(*documents):
        builder = DatasetBuilder(8)
        for ids, flags in documents:
            builder.add_record([(ids, flags)])
        return builder.build()

    base = built(([1, 2, 3, 4], [False, True, False, True]))
    assert (
        base.fingerprint == built(([1, 2, 3, 4], [True, True, False, True])).fingerprint
    )  # the first is never trained
    others = [
        built(([1, 2, 3, 5], [False, True, False, True])),
        built(([1, 2, 3, 4], [False, True, True, True])),
        built(([1, 2], [False, True]), ([3, 4], [False, True])),
    ]
    assert len({data.fingerprint for data in [base, *others]}) == 4


def test_truncation_and_documents_without_anything_to_train_are_counted():
    builder = DatasetBuilder(4)
    builder.add_record([([1, 2, 3, 4, 5, 6], [False, True, True, True, True, True])])  # cut
    builder.add_record([([1, 2, 3, 4, 5], [False] * 4 + [True])])  # its prompt fills the limit
    builder.add_record([([9], [True])])  # nothing to predict
    builder.add_record([([], [])])
    builder.add_record([([1, 2], [False, True]), ([3, 4, 5, 6], [False, False, False, True])], unopened=2)
    data = builder.build()
    assert data.statistics == Statistics(
        records=5, documents=3, tokens=10, trained=5, truncated=1, lost=2, skipped=3, split=1, unopened=2
    )
    assert data.tokens.tolist() == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6]
    assert (data.tokens.dtype, data.trained.dtype, data.offsets.tolist()) == (np.int32, np.bool_, [0, 4, 6, 10])
    with pytest.raises(DataError, match="`max_length` must be"):
        DatasetBuilder(1)
