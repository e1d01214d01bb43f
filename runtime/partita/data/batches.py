"""Batches of a data set: packed rows or length buckets, in an order that only (seed, epoch) decides. Knows no model.

Row layout: a document of n tokens takes n - 1 slots; slot t holds token t and has token t + 1 as its target. Positions
restart with each document and segments number a row's documents, so attention confined to equal segments sees what the
document alone would. Padding is token 0, segment -1, weight 0: it is never trained.

    packed      first-fit of the shuffled documents into rows of `max_length` slots, long ones first within windows of
                the shuffled order, rows shuffled again
    otherwise   one document a row; batches of similar lengths out of windows of the shuffled order, batches shuffled

Rows of a batch are as wide as its fullest row, rounded up to WIDTH_STEP (at most `max_length`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..brief import Brief
from ..errors import DataError
from .dataset import Dataset

WIDTH_STEP = 32  # few different widths, which kernels like and a compiler must see only once
OPEN_ROWS = 512  # rows that first-fit looks at: nearly as good as all of them, and the time stays linear
WINDOW = 64  # batches whose documents are sorted by length together
PACK_WINDOW = 512  # documents that are: with short ones last, rows end fuller


@dataclass(frozen=True)
class Batch(Brief):
    """tokens, targets, positions, segments: int32 (B, T). weights: float32 (B, T), 1 where the target is trained."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    segments: np.ndarray

    @property
    def trained(self) -> int:
        """Targets with a loss."""
        return int(self.weights.sum(dtype=np.float64))

    @property
    def filled(self) -> int:
        """Slots that are no padding."""
        return int((self.segments >= 0).sum())


@dataclass(frozen=True)
class Plan:
    """An epoch. Row r holds documents[rows[r] : rows[r + 1]], in this order; batch b holds rows batches[b] … - 1."""

    documents: np.ndarray
    rows: np.ndarray
    batches: np.ndarray


class Batches:
    """An endless iterator over epochs; each is shuffled again from (seed, epoch).

    batch_size: rows of a batch, one of an epoch may have fewer. packing: several documents in a row.
    `state` after any batch, given to `restore` of an equal object, goes on with exactly the batches that would have
    followed. Raises DataError for a data set without documents, or with one that does not fit max_length.
    """

    def __init__(self, dataset: Dataset, batch_size: int, max_length: int, packing: bool, seed: int) -> None:
        if batch_size < 1:
            raise DataError(f"`batch_size` must be >= 1, got {batch_size}", field="batch_size")
        if seed < 0:
            raise DataError(f"`seed` must be >= 0, got {seed}", field="seed")
        if not len(dataset):
            raise DataError("there are no documents to make batches of")
        longest = int(dataset.lengths.max())
        if longest > max_length:
            raise DataError(
                f"a document of {longest} tokens does not fit `max_length` {max_length}", field="max_length"
            )
        self.dataset, self.max_length, self.packing, self.seed = dataset, max_length, packing, seed
        self.batch_size = batch_size  # of all processes together
        self.epoch, self.index = 0, 0  # where the next batch stands
        self.rank, self.world_size = 0, 1
        self._plan: tuple[int, Plan] | None = None

    def shard(self, rank: int, world_size: int) -> Batches:
        """The share of one of `world` processes, from the same position: rows rank, rank + world, … of batches that
        have `world` times as many rows. Where rows run out, a row of padding keeps all shares equally large."""
        if self.world_size != 1 or not 0 <= rank < world_size:
            raise DataError(f"share {rank} of {world_size} cannot be taken")
        share = Batches(self.dataset, self.batch_size * world_size, self.max_length, self.packing, self.seed)
        share.rank, share.world_size = rank, world_size
        share.epoch, share.index = self.epoch, self.index
        return share

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if self.index >= self.batches_in(self.epoch):
            self.epoch, self.index = self.epoch + 1, 0
        plan, at = self._planned(self.epoch), self.index
        self.index += 1
        return self._batch(plan, at)

    def one_epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Every document once, in that epoch's order, without moving this iterator: for evaluation."""
        plan = plan_epoch(self.dataset.lengths, self.batch_size, self.max_length, self.packing, self.seed, epoch)
        return (self._batch(plan, i) for i in range(len(plan.batches) - 1))

    def batches_in(self, epoch: int) -> int:
        """Number of batches of an epoch; with packing, epochs may differ by a few."""
        return len(self._planned(epoch).batches) - 1

    def state(self) -> dict[str, Any]:
        """Where the next batch stands, and what must be equal for it to be the same batch. For JSON."""
        return {"epoch": self.epoch, "index": self.index, **self._identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises DataError that names what differs from then."""
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise DataError(
                    f"the batches cannot go on where they stopped: {_NAMES[key]} was {state.get(key)} then and is "
                    f"{mine} now; resume with the same data and settings"
                )
        epoch, index = _count(state.get("epoch")), _count(state.get("index"))
        if epoch < 0 or not 0 <= index <= self.batches_in(epoch):
            said = f"epoch {state.get('epoch')}, batch {state.get('index')}"
            raise DataError(f"no such position in the data: {said}; the state is damaged")
        self.epoch, self.index = epoch, index

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "packing": self.packing,
            "data": self.dataset.fingerprint,
        }

    def _planned(self, epoch: int) -> Plan:
        if self._plan is None or self._plan[0] != epoch:
            lengths = self.dataset.lengths
            plan = plan_epoch(lengths, self.batch_size, self.max_length, self.packing, self.seed, epoch)
            self._plan = (epoch, plan)
        return self._plan[1]

    def _batch(self, plan: Plan, index: int) -> Batch:
        """Rows of this share. The width is that of the whole batch, and so the same in every share."""
        rows = range(int(plan.batches[index]), int(plan.batches[index + 1]))
        documents = [plan.documents[plan.rows[r] : plan.rows[r + 1]] for r in rows]
        filled = max(int((self.dataset.lengths[row] - 1).sum()) for row in documents)
        width = min(-(-filled // WIDTH_STEP) * WIDTH_STEP, self.max_length)
        mine = documents[self.rank :: self.world_size]
        return fill(self.dataset, mine, -(-len(documents) // self.world_size), width)


_NAMES = {
    "seed": "`seed`",
    "batch_size": "the number of rows a step",
    "max_length": "`max_length`",
    "packing": "`packing`",
    "data": "the data's fingerprint",
}


def fill(dataset: Dataset, rows: Sequence[np.ndarray], count: int, width: int) -> Batch:
    """A batch of `count` rows, of which the first hold the given documents one after the other."""
    shape = (count, width)
    tokens, targets, positions = (np.zeros(shape, np.int32) for _ in range(3))
    weights, segments = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
    for r, row in enumerate(rows):
        at = 0
        for segment, document in enumerate(row):
            ids, trained = dataset.document(int(document))
            part = (r, slice(at, at + len(ids) - 1))
            tokens[part], targets[part], weights[part] = ids[:-1], ids[1:], trained[1:]
            positions[part], segments[part] = np.arange(len(ids) - 1), segment
            at += len(ids) - 1
    return Batch(tokens, targets, weights, positions, segments)


# ---------------------------------------------------------------- the order of an epoch


def plan_epoch(lengths: np.ndarray, batch_size: int, max_length: int, packing: bool, seed: int, epoch: int) -> Plan:
    """Rows and batches of one epoch. lengths: tokens of each document, int64 (D,)."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    make = _packed if packing else _buckets
    return make(order, lengths - 1, batch_size, max_length, random)


def _packed(
    order: np.ndarray, slots: np.ndarray, batch_size: int, max_length: int, random: np.random.Generator
) -> Plan:
    windows = [order[i : i + PACK_WINDOW] for i in range(0, len(order), PACK_WINDOW)]
    order = np.concatenate([window[np.argsort(-slots[window], kind="stable")] for window in windows])
    row_of, count = first_fit(slots[order], max_length)
    place = random.permutation(count)  # later rows are less full: do not keep them together
    row_of = place[row_of]
    by_row = np.argsort(row_of, kind="stable")
    rows = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=count))])
    batches = np.append(np.arange(0, count, batch_size), count)
    return Plan(order[by_row].astype(np.int32), rows, batches)


def first_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """The row of each size, int64 (D,), and the number of rows: the first open row with room, else a new one.

    At most OPEN_ROWS are open; the fullest is closed for a new one.
    """
    free = np.full(OPEN_ROWS, -1, np.int64)  # -1: not used yet
    names = np.zeros(OPEN_ROWS, np.int64)
    row_of, count = np.empty(len(sizes), np.int64), 0
    for i, size in enumerate(sizes.tolist()):
        at = int((free >= size).argmax())
        if free[at] < size:  # no open row has room
            at = int(free.argmin())
            free[at], names[at] = capacity, count
            count += 1
        free[at] -= size
        row_of[i] = names[at]
    return row_of, count


def _buckets(
    order: np.ndarray, slots: np.ndarray, batch_size: int, max_length: int, random: np.random.Generator
) -> Plan:
    size = WINDOW * batch_size
    windows = [order[i : i + size] for i in range(0, len(order), size)]
    windows = [window[np.argsort(slots[window], kind="stable")] for window in windows]
    groups: list[np.ndarray] = [
        window[i : i + batch_size] for window in windows for i in range(0, len(window), batch_size)
    ]
    groups = [groups[i] for i in random.permutation(len(groups))]
    batches = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
    return Plan(np.concatenate(groups).astype(np.int32), np.arange(len(order) + 1), batches)


def _count(value: Any) -> int:
    """A count out of a file, -1 for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
