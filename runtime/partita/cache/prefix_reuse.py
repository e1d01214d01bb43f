"""What a session takes from earlier prompts, and which moments it keeps for later ones.

Not here: how snapshots are kept (`prefix_cache`). A snapshot costs a copy of the cache, so it is taken where it is
likely to save more than that:

- After a prompt, while the reply is under way, when it adds enough to what is held. Where the session's own cache can
  be taken back to the prompt after the reply (full attention before its ring turns), it serves other conversations
  only, and is taken when a quarter of the prompt is new. Where it cannot (sliding layers, a ring that turns), it is the
  only way back for a template that changes earlier turns, and is taken every turn. A ring can always be taken back by
  a chunk, so one snapshot serves the end of the prompt and the end of its last message.
- In the middle of a prompt, where it parts from one that is held but cannot be taken back so far: the second
  conversation with a system prompt shows that it is shared, and from the third on it is not fed again.

Recurrent layers cannot be taken back, but to checkpoints (`states`). Reading pauses for one where a later prompt is
likely to part from this one: behind the last message, since templates say earlier replies in other words than they were
given in (without their thoughts); at a branch; and now and then in a long prompt. A snapshot holds its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..backend import Backend
from .prefix_cache import PrefixCache, nearest
from .snapshot import Snapshot
from .state import Cache

LEAST = 64  # tokens; fewer are fed in less time than they are worth the memory
SHARE = 4  # of a prompt, one part in so many must be new
MOST_BYTES = 512 << 20
MOST_OF_FREE = 8  # one part in so many of free memory
EVERY = 1024  # tokens between checkpoints in a long prompt, at least


def default_bytes(ops: Backend) -> int:
    """The bound of a model's own prefix cache: 512 MiB, or an eighth of free memory where that is less."""
    return min(MOST_BYTES, ops.memory().free // MOST_OF_FREE)


@dataclass
class Reuse:
    """One session's dealings with a prefix cache (None: nothing is kept or found). model: whose weights, by name. ends:
    tokens that end a message."""

    prefixes: PrefixCache | None
    model: str
    ends: frozenset[int] = frozenset()
    pauses: tuple[int, ...] = ()
    """Numbers of tokens of the prompt after which reading is to pause, rising."""
    branch: int = 0
    """Where this prompt parts from another that could not be taken back so far; 0 once seen to, or if there is none."""

    def align(self, cache: Cache, held: Sequence[int], prompt: Sequence[int]) -> int:
        """Make the cache, which holds `held`, hold a beginning of prompt that is not all of it; its length."""
        self.branch = 0
        same = _common(held, prompt[:-1])
        own = nearest(cache.state(), same)
        found = None if self.prefixes is None else self._find(self.prefixes, cache, prompt, own)
        if found is not None:
            own, snapshot = found
            cache.restore(snapshot)
        if own == 0:
            cache.reset()
        elif cache.offsets[0] > own:
            cache.trim(cache.offsets[0] - own)
        self.pauses = self._pauses(cache, prompt, own) if cache.spec.recurrent else ()
        return own

    def _pauses(self, cache: Cache, prompt: Sequence[int], own: int) -> tuple[int, ...]:
        """Behind the last message, or what leaves a token to feed where there is none; at the branch; and so often that
        half of the checkpoints are left for messages."""
        ended = next((i + 1 for i in reversed(range(len(prompt) - 1)) if prompt[i] in self.ends), len(prompt) - 1)
        step = max(EVERY, -(-2 * len(prompt) // cache.spec.checkpoints // cache.spec.chunk) * cache.spec.chunk)
        wanted = {ended, self.branch, *range(step, len(prompt), step)}
        return tuple(sorted(pause for pause in wanted if own < pause < len(prompt)))

    def _find(
        self, prefixes: PrefixCache, cache: Cache, prompt: Sequence[int], own: int
    ) -> tuple[int, Snapshot] | None:
        found, spec = None, cache.spec
        if own < len(prompt) - 1 and len(prefixes):
            found = prefixes.longest(prompt, spec, model=self.model)
        found = found if found is not None and found[0] > own else None
        count = own if found is None else found[0]
        shared = prefixes.shared(prompt[:-1], spec, model=self.model)
        if shared >= count + LEAST:
            self.branch = shared
        return found

    def fed(self, cache: Cache, tokens: Sequence[int]) -> None:
        """Called after every chunk of the prompt."""
        if len(tokens) in self.pauses:
            cache.checkpoint()
        if self.prefixes is None or not self.branch or len(tokens) < self.branch:
            return
        self.branch = 0
        self._keep(self.prefixes, cache, tokens)

    def read(self, cache: Cache, tokens: Sequence[int], more: int) -> None:
        """Called once the prompt has been read and its first token is out. more: tokens that may still come."""
        self.branch = 0
        prefixes = self.prefixes
        if prefixes is None or len(tokens) < LEAST:
            return
        new = len(tokens) - prefixes.covered(tokens, cache.spec, model=self.model)
        if new >= LEAST and (new * SHARE >= len(tokens) or not _way_back(cache, more)):
            self._keep(prefixes, cache, tokens)

    def _keep(self, prefixes: PrefixCache, cache: Cache, tokens: Sequence[int]) -> None:
        if cache.offsets == [len(tokens)]:
            prefixes.put(tokens, cache.row(0), model=self.model, copy=cache.ops.copy)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _way_back(cache: Cache, more: int) -> bool:
    """Whether the cache could be taken back to where it is now after `more` tokens, or to a checkpoint near it."""
    now = cache.state()
    later = replace(now, offsets=(now.offsets[0] + more,), reached=(now.reached[0] + more,), arrays=[])
    return nearest(later, now.offsets[0]) > now.offsets[0] - LEAST
