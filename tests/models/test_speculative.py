"""Prompt lookup and a draft model on real weights: fewer passes, the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from partita.draft_model import ModelDraft
from partita.inference.sampling import Sampling
from partita.inference.speculative import Drafter, PromptLookup
from partita.language_model import LanguageModel

Load = Callable[..., LanguageModel]
PARAGRAPH = (
    "The lighthouse keeper climbed the narrow stairs each evening, trimmed the wick, and wrote the weather in a heavy "
    "green book. Nobody read the book, but he kept it with care.\n\n"
)


class Spoiled(PromptLookup):
    """Its last token is always wrong, or nearly: something is taken back at every step."""

    def _propose(self, limit: int) -> Sequence[int]:
        found = super()._propose(limit)
        return [*found[:-1], 5] if found else found


def tokens(model: LanguageModel, ids: list[int], draft: Drafter | None, count: int, **sampling: float) -> list[int]:
    session = model.session(slack=8)
    pieces = session.generate(ids, max_tokens=count, draft=draft, sampling=Sampling(**sampling))  # pyright: ignore
    found = [piece.token.id for piece in pieces if piece.token is not None]
    assert session.cache.offsets == [len(session.tokens)]
    assert session.tokens == (ids + found)[: len(session.tokens)]
    return found


def test_lookup_in_a_text_that_repeats(load: Load) -> None:
    model = load("smollm2", "torch")
    ids = model.encode(PARAGRAPH * 3, raw=True)
    for sampling in ({}, {"temperature": 0.6, "seed": 4, "frequency_penalty": 0.1}):
        lookup = PromptLookup()
        plain = tokens(model, ids, None, 24, **sampling)
        assert tokens(model, ids, lookup, 24, **sampling) == plain
        if not sampling:
            assert lookup.acceptance.rate > 0.5
            assert lookup.acceptance.steps < 15


def test_a_model_drafts_for_itself(load: Load) -> None:
    model = load("smollm2", "torch", layers=range(6))
    ids, assistant = model.encode("Write a short story about a dragon."), ModelDraft(model, model)
    assert tokens(model, ids, assistant, 25) == tokens(model, ids, None, 25)
    assert assistant.acceptance.rate == 1
    assert assistant.acceptance.steps == 4


def test_lookup_beyond_sliding_windows(load: Load, speeches: str) -> None:
    """Gemma's sliding layers keep 512 tokens: drafts are taken back from rings that have turned."""
    model = load("gemma3", "torch")
    ids = model.encode(speeches[:1500] + speeches[:1500] + speeches[:700], raw=True)
    assert len(ids) > 600
    lookup = Spoiled(min_ngram=1)
    assert tokens(model, ids, lookup, 24) == tokens(model, ids, None, 24)
    assert 0 < lookup.acceptance.accepted < lookup.acceptance.proposed
