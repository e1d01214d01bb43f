"""Drafts for speculative decoding by a smaller model of the same vocabulary.

Not here: how drafts are judged, and those out of the text itself (`inference.speculative`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .arrays import Array
from .errors import DataError
from .inference.decode import prefill
from .inference.speculative import DEFAULT_COUNT, Drafter, PromptLookup
from .language_model import LanguageModel
from .text.tokenizer import Tokenizer

COMPARED = 400
"""Tokens whose texts are compared to tell whether two vocabularies are the same."""


class ModelDraft(Drafter):
    """A smaller model of the same vocabulary drafts greedily, in a session and cache of its own.

    target: the model that it drafts for, with an adapter or without. cache: as for `LanguageModel.session`. Its tokens
    stay on the device when both models were loaded on one backend instance. Raises DataError where the vocabularies
    differ.
    """

    def __init__(self, target: LanguageModel, model: LanguageModel, count: int = DEFAULT_COUNT, **cache: Any):
        super().__init__(count)
        check_same_vocabulary(target.tokenizer, model.tokenizer)
        self.model, self.session = model, model.session(prefixes=None, **cache)
        self.check(self.session.cache)
        self._runner = self.session.runner  # one for all steps: it keeps what was compiled
        self._stays_on_device = target.ops is model.ops
        # either may have more rows than the other, for ids that no text has
        self._vocabulary = min(target.config.vocab_size, model.config.vocab_size)
        self._rest: list[int] = []  # emitted or prompted, and not yet fed here
        self._knows = True

    def _begin(self, prompt: Sequence[int]) -> None:
        self._knows = max(prompt) < self._vocabulary
        self._rest = self.session.align(prompt)

    def _propose(self, limit: int) -> Sequence[int] | Array:
        if not self._knows:
            return ()
        ops, rest, self._rest = self.model.ops, self._rest, []
        logits = prefill(self._runner, rest, on_fed=self.session.tokens.extend)
        self.session.cache.mark(inputs=False)
        drafts: list[Array] = []
        for i in range(limit):
            drafts.append(ops.argmax(logits[:, : self._vocabulary], -1))
            if i + 1 < limit:
                logits = self._runner.decode(drafts[-1])
        proposal = ops.concat(drafts, 0)
        return proposal if self._stays_on_device else ops.to_numpy(proposal).tolist()

    def _observe(self, emitted: Sequence[int], accepted: int, proposed: int) -> None:
        fed = max(proposed - 1, 0)  # the last of a proposal was never fed
        kept, cache = min(accepted, fed), self.session.cache
        if fed > kept:
            kept = kept if cache.can_trim(fed - kept) else 0  # recurrent layers: back to the mark, and read again
            cache.trim(fed - kept)
        self.session.tokens.extend(emitted[:kept])
        self._rest.extend(emitted[kept:])
        self._knows = self._knows and max(emitted) < self._vocabulary


def drafter(
    target: LanguageModel,
    *,
    draft: LanguageModel | None = None,
    lookup: bool = False,
    count: int = DEFAULT_COUNT,
    **cache: Any,
) -> Drafter | None:
    """The drafter that a user asked for: a draft model, or the text itself, or none. cache: the draft model's.

    Raises DataError for both at once, and for a draft model whose vocabulary is not the target's.
    """
    if draft is None:
        return PromptLookup(count=count) if lookup else None
    if lookup:
        raise DataError("`draft` and `lookup` exclude each other: choose one of them", field="lookup")
    return ModelDraft(target, draft, count, **cache)


def check_same_vocabulary(target: Tokenizer, draft: Tokenizer) -> None:
    """Raise DataError unless both give the same ids the same meaning: their sizes, and texts all over the range."""
    if target is draft:
        return
    if target.vocab_size != draft.vocab_size:
        raise DataError(
            f"the draft model has a vocabulary of {draft.vocab_size} tokens and the model one of {target.vocab_size}: "
            "a draft needs the same tokenizer"
        )
    for token in np.linspace(0, target.vocab_size - 1, min(COMPARED, target.vocab_size), dtype=int).tolist():
        theirs, ours = draft.token_text(token), target.token_text(token)
        if theirs != ours:
            raise DataError(
                f"token {token} is {theirs!r} to the draft model and {ours!r} to the model: "
                "a draft needs the same tokenizer"
            )
