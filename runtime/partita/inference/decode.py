"""The decode loop: token ids in, token ids out, for one row. Knows no text and no array library.

A prompt is fed in chunks. Then one host read a step at most: on a device that computes asynchronously the next step is
built before the last token is read, and started as soon as it has been.

A prompt may have to pause, where what recurrent layers remember is to be kept for later prompts.

With a drafter a step may be several tokens. The model reads the last token and the proposal as one chunk and chooses
its own token after each of them with the ordinary sampler; the first that differs from the proposal ends the step, and
the cache takes the rest back. Only the model's own choices are ever emitted, so the text is the one it would have
written alone: greedy, and drawn with a seed too, since a token costs one uniform number either way (computed in
float32; in 16 bits a chunk may round otherwise than single tokens do).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Array
from ..errors import DataError
from .runner import Choice, Chosen, Generated, ModelRunner, choose, choose_behind
from .sampling import Sampler, not_finite
from .speculative import Drafter

OnProgress = Callable[[int, int], None]
"""(done, total): tokens of the prompt, after each of its chunks."""
OnFed = Callable[[Sequence[int]], None]
"""(ids): called once they are in the cache for good, so that a caller knows what it holds."""


@dataclass(frozen=True)
class DecodeOptions:
    """max_tokens: new ones, at least 1. stop_ids: end a reply, as its last token. alternatives: how many of the most
    probable tokens to report with each one that is chosen.
    """

    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    alternatives: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise DataError(f"the number of new tokens must be at least 1, not {self.max_tokens}")


def prefill(
    runner: ModelRunner,
    prompt: Sequence[int],
    *,
    pauses: Sequence[int] = (),
    on_progress: OnProgress | None = None,
    on_fed: OnFed | None = None,
) -> Array:
    """Feed the prompt in chunks; logits (1, V) after its last token. pauses: tokens after which a chunk ends.

    Interrupted between chunks, the cache holds exactly the chunks that were fed, which on_fed has reported.
    """
    if not prompt:
        raise DataError("the prompt is empty: give at least one token")
    runner.model.check(prompt)
    runner.cache.unmark()
    tokens, total = np.asarray(prompt, np.int32)[None], len(prompt)
    *chunks, (last, _) = _chunks(total, runner.cache.spec.chunk, pauses)

    def report(start: int, end: int) -> None:
        if on_fed is not None:
            on_fed(prompt[start:end])
        if on_progress is not None:
            runner.ops.sync()
            on_progress(end, total)

    for start, end in chunks:
        runner.feed(tokens[:, start:end])
        report(start, end)
    logits = runner.logits(tokens[:, last:])
    report(last, total)
    return logits


def _chunks(total: int, chunk: int, pauses: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) of pieces of at most `chunk` tokens that end at the pauses too."""
    ends = [pause for pause in sorted({*pauses}) if 0 < pause < total] + [total]
    starts = [0, *ends[:-1]]
    return [
        (start, min(start + chunk, end))
        for begin, end in zip(starts, ends, strict=True)
        for start in range(begin, end, chunk)
    ]


def decode(
    runner: ModelRunner,
    prompt: Sequence[int],
    sampler: Sampler,
    options: DecodeOptions,
    *,
    drafter: Drafter | None = None,
    pauses: Sequence[int] = (),
    on_progress: OnProgress | None = None,
    on_fed: OnFed | None = None,
) -> Iterator[Generated]:
    """Tokens after the prompt, up to and including a stop id, at most `options.max_tokens`. For one row.

    drafter: one that has begun; the tokens are the same without it. pauses: as for `prefill`. When the iterator ends
    or is closed, the cache holds exactly the ids that on_fed has reported. Raises CheckpointError where the model's
    logits are not finite, and ContextError for a drafter whose proposals are longer than the cache can take back.
    """
    if drafter is not None:
        drafter.check(runner.cache)
    begun = time.perf_counter()
    logits = prefill(runner, prompt, pauses=pauses, on_progress=on_progress, on_fed=on_fed)
    if drafter is None:
        steps: _Steps | _DraftedSteps = _Steps(runner, sampler, options.alternatives)
    else:
        steps = _DraftedSteps(runner, sampler, options.alternatives, drafter)
    choice, left = steps.choose(logits), options.max_tokens
    choice.start()  # else the first token would be read behind the step that follows it
    while True:
        following = steps.built(choice) if left > 1 else None
        run = steps.read(choice, begun)
        if following is not None:
            following.start()
        begun = time.perf_counter()
        held = len(run) if following is not None else len(run) - 1  # how many of them are in the cache already
        unreported = held
        try:
            for i, generated in enumerate(run):
                if i < held:
                    unreported -= 1
                    if on_fed is not None:
                        on_fed([generated.id])
                left -= 1
                yield generated
                if generated.id in options.stop_ids or not left:
                    return
        finally:
            if unreported and runner.cache.can_trim(unreported):
                runner.cache.trim(unreported)
            elif unreported and on_fed is not None:  # recurrent layers have read it: it is a part of the conversation
                on_fed([generated.id for generated in run[held - unreported : held]])
        if following is None:
            following = steps.after(choice, run[-1].id, left)
            if on_fed is not None:
                on_fed([run[-1].id])
        choice = following


@dataclass(frozen=True)
class _Steps:
    """One token a step, which need not be read for the next step to be built."""

    runner: ModelRunner
    sampler: Sampler
    alternatives: int

    def choose(self, logits: Array) -> Choice:
        return choose(self.runner.ops, logits, self.sampler, self.alternatives)

    def built(self, choice: Choice) -> Choice | None:
        """The step behind a choice that has not been read, where the device computes while the host builds it. On MLX
        it starts when the choice has been read: before that what reads a cache would hold it, and a write be a copy."""
        return self._behind(choice) if self.runner.ops.asynchronous else None

    def after(self, choice: Choice, token: int, left: int) -> Choice:
        """The step behind a choice of which `token` is the last, with so many tokens left to generate."""
        return self._behind(choice)

    def read(self, choice: Choice, begun: float) -> list[Generated]:
        """The tokens of a step. Raises CheckpointError where logits are not finite."""
        return _run(self.runner, choice.read(), 1, begun)

    def _behind(self, choice: Choice) -> Choice:
        return self.choose(self.runner.decode(choice.tokens))


@dataclass(frozen=True)
class _DraftedSteps:
    """As many tokens a step as the model agrees with its drafter on, and one more. Methods as in `_Steps`."""

    runner: ModelRunner
    sampler: Sampler
    alternatives: int
    drafter: Drafter

    def choose(self, logits: Array, drafts: Array | None = None) -> Choice:
        return choose_behind(self.runner.ops, logits, drafts, self.sampler, self.alternatives)

    def built(self, choice: Choice) -> None:
        """Nothing: a drafter is given what was chosen before it proposes."""

    def after(self, choice: Choice, token: int, left: int) -> Choice:
        ops = self.runner.ops
        proposal = self.drafter.propose(left - 1)
        drafts = ops.array(np.asarray(proposal, np.int32)) if isinstance(proposal, Sequence) else proposal
        last, cache = ops.array(np.asarray([token], np.int32)), self.runner.cache
        if not drafts.shape[0]:
            cache.unmark()
            return self.choose(self.runner.decode(last))
        cache.mark(inputs=True)
        return self.choose(self.runner.verify(ops.concat([last, drafts], 0)), drafts)

    def read(self, choice: Choice, begun: float) -> list[Generated]:
        chosen = choice.read()
        accepted, proposed = chosen.accepted, len(chosen.drafts)
        run = _run(self.runner, chosen, accepted + 1, begun)
        if proposed > accepted:
            self.runner.cache.trim(proposed - accepted)
        emitted = [generated.id for generated in run]
        self.sampler.accept(emitted)
        self.drafter.observe(emitted, accepted, proposed)
        return run


def _run(runner: ModelRunner, chosen: Chosen, count: int, begun: float) -> list[Generated]:
    """The first tokens of a step. All of its seconds are the first one's: the others were there at the same moment."""
    if not all(chosen.finite[:count]):
        raise not_finite(runner.ops)
    seconds = time.perf_counter() - begun
    return [chosen.generated(i, 0.0 if i else seconds) for i in range(count)]
