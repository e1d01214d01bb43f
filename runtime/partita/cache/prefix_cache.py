"""Snapshots of caches by the tokens they hold, so that a prompt is fed only from where it parts from one of them.

Not here: which moments are worth a snapshot (`Session`), batching. Invariants: what is found holds a beginning of the
prompt that leaves at least one token to feed (logits follow a token, and feeding the last one twice would be wrong); a
snapshot is taken back only where its ring allows; bytes never exceed the bound, and what was used least recently goes
first.

Beginnings are kept in a radix tree for each model and cache layout: an edge is a run of tokens, a node may have a
snapshot. A snapshot serves every beginning that it can be trimmed to, not its own alone. One that a longer one can be
trimmed to says nothing new and is dropped. For one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..arrays import Array
from ..errors import DataError
from .snapshot import Snapshot
from .spec import CacheSpec

TOKEN_BYTES = 4  # int32


@dataclass(frozen=True)
class Statistics:
    """hits, misses: of `longest`. tokens: that hits need not be fed again. dropped: snapshots, to make room."""

    hits: int = 0
    misses: int = 0
    tokens: int = 0
    dropped: int = 0


@dataclass(eq=False)
class _Node:
    """edge: tokens from the parent, int32 (n,); empty at the root only. depth: tokens from the root."""

    edge: np.ndarray
    depth: int
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict[int, "_Node"])
    snapshot: Snapshot | None = None


class PrefixCache:
    """max_bytes: of snapshots and their tokens, 4 bytes a token (an upper bound: shared beginnings are kept once)."""

    def __init__(self, max_bytes: int):
        if max_bytes < 0:
            raise DataError(f"max_bytes of a prefix cache must be >= 0, got {max_bytes}")
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.statistics = Statistics()
        self._roots: dict[Hashable, _Node] = {}
        self._used: OrderedDict[_Node, int] = OrderedDict()
        """Nodes with a snapshot and their bytes, least recently used first."""

    def __len__(self) -> int:
        """Snapshots held."""
        return len(self._used)

    def clear(self) -> None:
        self._roots, self._used, self.nbytes = {}, OrderedDict(), 0

    def put(
        self,
        tokens: Sequence[int],
        snapshot: Snapshot,
        *,
        model: str = "",
        copy: Callable[[Array], Array] | None = None,
    ) -> bool:
        """Keep a snapshot of one row that holds `tokens`. False if it is larger than everything together may be.

        model: whose keys and values they are, adapter included. The snapshot must never change; copy: given for a
        cache's state in place, makes its arrays' memory their own, once there is room and if they are kept at all.
        """
        ids = np.asarray(tokens, np.int32)
        if snapshot.offsets != (len(ids),) or not len(ids):
            raise DataError(f"a snapshot of {snapshot.offsets} tokens cannot be kept under {len(ids)}")
        root = self._roots.get((model, snapshot.spec))
        found = _best(root, ids) if root is not None else None
        if found is not None and found[0] == len(ids):
            self._used.move_to_end(found[1])
            return True
        nbytes = snapshot.nbytes + TOKEN_BYTES * len(ids)
        if nbytes > self.max_bytes:
            return False
        for node in list(self._covered(ids, snapshot, model)):
            self._remove(node)
        self.shrink(self.max_bytes - nbytes)
        node = self._insert(self._roots.setdefault((model, snapshot.spec), _root()), ids)
        node.snapshot = snapshot if copy is None else replace(snapshot, arrays=[copy(x) for x in snapshot.arrays])
        self._used[node] = nbytes
        self.nbytes += nbytes
        return True

    def shrink(self, nbytes: int) -> None:
        """Forget what was used least recently until no more than so many bytes are held."""
        while self._used and self.nbytes > nbytes:
            self._remove(next(iter(self._used)))
            self._count(dropped=1)

    def longest(self, tokens: Sequence[int], spec: CacheSpec, *, model: str = "") -> tuple[int, Snapshot] | None:
        """(count, snapshot): what serves the longest beginning tokens[:count], count < len(tokens).

        The snapshot may hold more; restored into a cache, `trim(offsets[0] - count)` will succeed.
        """
        root = self._roots.get((model, spec))
        found = _best(root, np.asarray(tokens[:-1], np.int32)) if root is not None else None
        if found is None:
            self._count(misses=1)
            return None
        count, node = found
        self._used.move_to_end(node)
        self._count(hits=1, tokens=count)
        assert node.snapshot is not None
        return count, node.snapshot

    def covered(self, tokens: Sequence[int], spec: CacheSpec, *, model: str = "") -> int:
        """How many first tokens `longest` would serve. Counts as no use."""
        root = self._roots.get((model, spec))
        found = _best(root, np.asarray(tokens, np.int32)) if root is not None else None
        return 0 if found is None else found[0]

    def shared(self, tokens: Sequence[int], spec: CacheSpec, *, model: str = "") -> int:
        """How many first tokens some snapshot holds too, whether or not it can be trimmed to them."""
        root = self._roots.get((model, spec))
        return 0 if root is None else _walk(root, np.asarray(tokens, np.int32))[-1][0]

    def _covered(self, ids: np.ndarray, snapshot: Snapshot, model: str) -> Iterator[_Node]:
        """Nodes on the way to `ids` that a snapshot of them can be trimmed to."""
        root = self._roots.get((model, snapshot.spec))
        for depth, node in [] if root is None else _walk(root, ids):
            if node.snapshot is not None and depth == node.depth and snapshot.can_trim(len(ids) - depth):
                yield node

    def _insert(self, root: _Node, ids: np.ndarray) -> _Node:
        depth, node = _walk(root, ids)[-1]
        if depth < node.depth:
            node = _split(node, depth)
        if depth == len(ids):
            return node
        child = _Node(ids[depth:].copy(), len(ids), node)
        node.children[int(ids[depth])] = child
        return child

    def _remove(self, node: _Node) -> None:
        """Forget a snapshot, and the edges that led to nothing else."""
        self.nbytes -= self._used.pop(node)
        node.snapshot = None
        while node.parent is not None and node.snapshot is None and len(node.children) < 2:
            parent = node.parent
            first = int(node.edge[0])
            if node.children:
                (child,) = node.children.values()
                child.edge, child.parent = np.concatenate([node.edge, child.edge]), parent
                parent.children[first] = child
                return
            del parent.children[first]
            node = parent
        if node.parent is None and not node.children:
            self._roots = {key: root for key, root in self._roots.items() if root is not node}

    def _count(self, hits: int = 0, misses: int = 0, tokens: int = 0, dropped: int = 0) -> None:
        s = self.statistics
        self.statistics = Statistics(s.hits + hits, s.misses + misses, s.tokens + tokens, s.dropped + dropped)


def nearest(snapshot: Snapshot, tokens: int) -> int:
    """The longest beginning, of at most `tokens`, that a snapshot of one row can be trimmed to; 0: none.

    A ring can be taken back a little, and always into its sinks, which nothing overwrites; recurrent layers to their
    checkpoints.
    """
    (held,) = snapshot.offsets
    known = {*(span.sinks for span in snapshot.spec.spans), *snapshot.checkpoints_of(0)}
    ends = (min(tokens, held), *sorted((end for end in known if end < min(tokens, held)), reverse=True))
    return next((end for end in ends if snapshot.can_trim(held - end)), 0)


def _root() -> _Node:
    return _Node(np.empty(0, np.int32), 0, None)


def _walk(root: _Node, ids: np.ndarray) -> list[tuple[int, _Node]]:
    """Nodes whose tokens begin like ids, and how many tokens each shares with them: all its own, except in the last."""
    path, node = [(0, root)], root
    while (depth := node.depth) < len(ids) and (child := node.children.get(int(ids[depth]))) is not None:
        edge = child.edge[: len(ids) - depth]
        differ = np.flatnonzero(edge != ids[depth : depth + len(edge)])
        shared = depth + (int(differ[0]) if len(differ) else len(edge))
        path.append((shared, child))
        if shared < child.depth:
            break
        node = child
    return path


def _best(root: _Node, ids: np.ndarray) -> tuple[int, _Node] | None:
    """The longest beginning of ids that a snapshot holds or can be trimmed to."""
    count, best = 0, None
    for depth, node in reversed(_walk(root, ids)):
        if depth <= count:
            break
        for candidate in _below(node):
            assert candidate.snapshot is not None
            usable = nearest(candidate.snapshot, depth)
            if usable > count:
                count, best = usable, candidate
    return None if best is None else (count, best)


def _below(node: _Node) -> Iterator[_Node]:
    """The node and all under it that have a snapshot."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.snapshot is not None:
            yield node
        waiting.extend(node.children.values())


def _split(node: _Node, depth: int) -> _Node:
    """A node in the middle of an edge, `depth` tokens from the root."""
    assert node.parent is not None
    at = depth - node.parent.depth
    middle = _Node(node.edge[:at].copy(), depth, node.parent)
    node.parent.children[int(node.edge[0])] = middle
    node.edge, node.parent = node.edge[at:].copy(), middle
    middle.children[int(node.edge[0])] = node
    return middle
