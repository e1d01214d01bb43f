"""Drafts change the speed of a reply and nothing else: tokens, probabilities and cache are those of plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import partita
import partita_backends
from partita.draft_model import ModelDraft, drafter
from partita.errors import ContextError, DataError
from partita.inference.runner import Generated
from partita.inference.sampling import Sampling
from partita.inference.speculative import Acceptance, Drafter, PromptLookup
from partita.language_model import LanguageModel, Piece
from partita.model.config import LayerConfig

from ... import bounds

PROMPT = [11, 40, 7, 99, 40, 7, 123, 5, 40, 7]
TINY: dict[str, Any] = {"context": 24, "sinks": 2, "chunk": 8}  # the ring is turning long before a reply of 40 ends
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=1.2, seed=5),
    Sampling(temperature=0.9, top_k=30, top_p=0.9, seed=6),
    Sampling(repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.4),
    Sampling(temperature=1.0, min_p=0.02, repetition_penalty=1.2, frequency_penalty=0.3, seed=7),
]


class Scripted(Drafter):
    """Knows the reply, and proposes it with some tokens spoiled: those for which right(index in the reply) is false."""

    def __init__(self, reply: Sequence[int], right: Callable[[int], bool], count: int = 5):
        super().__init__(count)
        self.reply, self.right, self.said = list(reply), right, 0
        self.proposals: list[int] = []

    def _begin(self, prompt: Sequence[int]) -> None:
        self.said = 0

    def _propose(self, limit: int) -> list[int]:
        ahead = enumerate(self.reply[self.said : self.said + limit], self.said)
        found = [token if self.right(i) else (token + 1) % 200 for i, token in ahead]
        self.proposals.append(len(found))
        return found

    def _observe(self, emitted: Sequence[int], accepted: int, proposed: int) -> None:
        self.said += len(emitted)


@pytest.fixture(params=partita_backends.names(), scope="module")
def full(request: pytest.FixtureRequest, tiny_model: Path) -> LanguageModel:
    return partita.load(tiny_model, backend=request.param, dtype="float32")


@pytest.fixture(scope="module")
def sliding(full: LanguageModel) -> LanguageModel:
    """The same weights with a window of 6 in the first layer, as Gemma mixes its layers."""
    config = full.config
    layers = (LayerConfig(6, config.layers[0].rope), *config.layers[1:])
    return replace(full, decoder=replace(full.decoder, config=replace(config, layers=layers)))


@pytest.fixture(params=["full", "sliding"], scope="module")
def model(request: pytest.FixtureRequest, full: LanguageModel, sliding: LanguageModel) -> LanguageModel:
    return full if request.param == "full" else sliding


def reply(
    model: LanguageModel, draft: Drafter | None, cache: dict[str, Any] = TINY, count: int = 40, **options: Any
) -> list[Generated]:
    """Tokens of a reply; the cache is checked after every one of them."""
    session, found = model.session(**cache), []
    for piece in session.generate(PROMPT, max_tokens=count, draft=draft, **options):
        if piece.token is not None:
            found.append(piece.token)
            assert session.tokens == (PROMPT + ids(found))[: len(session.tokens)]
    check(model, session, PROMPT + ids(found))
    return found


def check(model: LanguageModel, session: Any, text: list[int]) -> None:
    """The cache holds session.tokens, a beginning of text, and goes on like one that was fed nothing else."""
    assert session.cache.offsets[0] == len(session.tokens)
    assert session.tokens == text[: len(session.tokens)]
    assert len(text) - len(session.tokens) <= 1
    fresh = model.session(**{**TINY, "context": session.cache.spec.context})
    for start in range(0, len(session.tokens), 8):
        model.decoder.feed(model.ops, model.ops.array(np.array([session.tokens[start : start + 8]])), fresh.cache)
    fed = model.ops.array(np.array([[3]], np.int32))
    ours, theirs = (model.ops.to_numpy(model.decoder(model.ops, fed, s.cache)) for s in (session, fresh))
    bounds.assert_near(ours, theirs, bounds.logits(model.config))
    session.cache.trim(1)


def ids(tokens: Sequence[Generated]) -> list[int]:
    return [token.id for token in tokens]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    "right",
    [lambda i: True, lambda i: False, lambda i: i % 3 > 0, lambda i: i * 7919 % 11 < 6],
    ids=["always", "never", "two of three", "now and then"],
)
def test_the_reply_is_the_plain_one(model: LanguageModel, sampling: Sampling, right: Callable[[int], bool]) -> None:
    plain = ids(reply(model, None, sampling=sampling))
    scripted = Scripted(plain, right)
    assert ids(reply(model, scripted, sampling=sampling)) == plain
    assert len(plain) == 40
    assert sum(scripted.proposals) == scripted.acceptance.proposed
    if right(0) and right(3):
        assert scripted.acceptance == Acceptance(scripted.acceptance.accepted, scripted.acceptance.accepted, 8)
        assert scripted.acceptance.rate == 1
    if not any(right(i) for i in range(40)):
        assert scripted.acceptance.accepted == 0
        assert scripted.acceptance.steps == 40


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    right=st.lists(st.booleans(), min_size=40, max_size=40),
    sampling=st.sampled_from(SAMPLINGS),
    count=st.integers(1, 7),
    most=st.integers(1, 40),
    context=st.integers(4, 40),
)
def test_any_pattern_of_drafts(
    model: LanguageModel, right: list[bool], sampling: Sampling, count: int, most: int, context: int
) -> None:
    cache = {"context": context, "sinks": 2, "chunk": 8}
    plain = ids(reply(model, None, cache, most, sampling=sampling))
    scripted = Scripted(plain, right.__getitem__, count)
    assert ids(reply(model, scripted, cache, most, sampling=sampling)) == plain
    assert max(scripted.proposals, default=0) <= count
    assert scripted.acceptance.accepted <= scripted.acceptance.proposed


def test_probabilities_are_those_of_plain_decoding(model: LanguageModel) -> None:
    sampling = Sampling(temperature=1.2, repetition_penalty=1.2, seed=5)
    plain = reply(model, None, sampling=sampling, alternatives=3)
    found = reply(model, Scripted(ids(plain), lambda i: i % 4 > 0), sampling=sampling, alternatives=3)
    assert ids(found) == ids(plain)
    for ours, theirs in zip(found, plain, strict=True):
        assert [i for i, _ in ours.alternatives] == [i for i, _ in theirs.alternatives]
        np.testing.assert_allclose([p for _, p in ours.alternatives], [p for _, p in theirs.alternatives], rtol=1e-3)
        assert ours.probability == pytest.approx(theirs.probability, rel=1e-3)
        assert ours.seconds >= 0


@pytest.mark.parametrize("place", range(1, 9))
def test_a_stop_id_inside_an_accepted_run(model: LanguageModel, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is emitted, nothing after it is, and the cache holds nothing after it either."""
    plain = ids(reply(model, None))
    stop = plain[place]
    monkeypatch.setattr(model.tokenizer, "stop_ids", frozenset({stop}))
    expected = plain[: plain.index(stop) + 1]
    session, found = model.session(**TINY), []
    pieces = list(session.generate(PROMPT, draft=Scripted(plain, lambda i: True)))
    found = [piece.token.id for piece in pieces if piece.token is not None]
    assert found == expected
    assert pieces[-1].finish_reason == "stop"
    check(model, session, PROMPT + expected)


@pytest.mark.parametrize("most", range(1, 10))
def test_the_limit_inside_an_accepted_run(model: LanguageModel, most: int) -> None:
    plain = ids(reply(model, None))
    assert ids(reply(model, Scripted(plain, lambda i: True), count=most)) == plain[:most]
    longer = Scripted(plain, lambda i: True)
    longer.propose = lambda limit: longer._propose(5)  # one that does not heed the limit
    assert ids(reply(model, longer, count=most)) == plain[:most]


@pytest.mark.parametrize("place", range(1, 9))
def test_closed_inside_an_accepted_run(model: LanguageModel, place: int) -> None:
    """By the caller or by a stop string: the cache holds what was said, and the conversation goes on from there."""
    plain = ids(reply(model, None))
    session, found = model.session(**TINY), []
    pieces = session.generate(PROMPT, draft=Scripted(plain, lambda i: True))
    for piece in pieces:
        assert piece.token is not None
        found.append(piece.token.id)
        if len(found) == place:
            pieces.close()  # pyright: ignore[reportAttributeAccessIssue]  # a generator
    check(model, session, PROMPT + plain[:place])
    rest = session.generate(PROMPT + found, max_tokens=40 - place, draft=Scripted(plain[place:], lambda i: i % 3 > 0))
    assert found + [piece.token.id for piece in rest if piece.token is not None] == plain
    assert session.reused == len(PROMPT) + place - 1


def test_stop_strings(model: LanguageModel) -> None:
    plain = ids(reply(model, None))
    text = "".join(piece.text for piece in model.session(**TINY).generate(PROMPT, max_tokens=40))
    stop = text[12:15]

    def said(draft: Drafter | None) -> list[Piece]:
        session = model.session(**TINY)
        pieces = list(session.generate(PROMPT, max_tokens=40, stop=[stop], draft=draft))
        check(model, session, PROMPT + plain[: len([p for p in pieces if p.token])])
        return pieces

    expected, found = said(None), said(Scripted(plain, lambda i: i % 5 > 0))
    assert [piece.text for piece in found] == [piece.text for piece in expected]
    assert found[-1].finish_reason == "stop"


def test_a_host_read_a_step(full: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, fetch = [], full.ops.fetch
    plain = ids(reply(full, None))
    monkeypatch.setattr(full.ops, "fetch", lambda x: reads.append(x.shape) or fetch(x))
    scripted = Scripted(plain, lambda i: i % 3 > 0)
    list(full.session(**TINY).generate(PROMPT, max_tokens=40, draft=scripted, sampling=Sampling(temperature=0)))
    assert len(reads) == scripted.acceptance.steps


def test_a_draft_longer_than_the_cache_takes_back_is_refused(full: LanguageModel) -> None:
    session = full.session(**TINY)
    with pytest.raises(ContextError, match="draft 7 or fewer"):
        next(session.generate(PROMPT, draft=Scripted([], lambda i: True, count=8)))
    with pytest.raises(ContextError, match="draft 7 or fewer"):
        ModelDraft(full, full, 8, **TINY)
    with pytest.raises(DataError, match=">= 1 token"):
        PromptLookup(count=0)


# Prompt lookup


def proposal(text: list[int], limit: int = 4, **options: int) -> list[int]:
    lookup = PromptLookup(**{"count": 8, **options})
    lookup.begin(text)
    return list(lookup.propose(limit))


def test_lookup_proposes_what_followed() -> None:
    assert proposal([1, 2, 3, 4, 5, 6, 7, 1, 2, 3]) == [4, 5, 6, 7]
    assert proposal([1, 2, 3]) == []
    assert proposal([]) == []
    assert proposal([9, 1, 8, 2, 1]) == []  # one token alone is too little
    assert proposal([9, 1, 8, 2, 1], min_ngram=1) == [8, 2, 1, 8]
    assert proposal([1, 2, 5, 1, 2, 6, 1, 2]) == [6, 1, 2, 6]  # the latest
    assert proposal([0, 1, 2, 5, 9, 1, 2, 6, 0, 1, 2]) == [5, 9, 1, 2]  # the longest before the latest
    assert proposal([1, 2, 3, 1, 2], 3, max_ngram=2) == [3, 1, 2]
    assert proposal([4, 4, 4], 5) == [4] * 5  # beyond the end of the text it goes on as it began
    with pytest.raises(DataError, match="from 3 to 2"):
        PromptLookup(max_ngram=2, min_ngram=3)


@given(text=st.lists(st.integers(0, 2), max_size=40), low=st.integers(1, 3), more=st.integers(0, 3))
def test_lookup_equals_a_search(text: list[int], low: int, more: int) -> None:
    expected: list[int] = []
    for size in range(low + more, low - 1, -1):
        places = [i for i in range(size, len(text)) if text[i - size : i] == text[len(text) - size :]]
        if places:
            grown = text[places[-1] :]
            expected = [grown[i % len(grown)] for i in range(4)]
            break
    assert proposal(text, min_ngram=low, max_ngram=low + more) == expected


def test_lookup_follows_a_conversation() -> None:
    """A prompt that goes on is indexed from where it does; another one from the start."""
    lookup = PromptLookup()
    lookup.begin([1, 2, 3, 4])
    lookup.observe([7, 1], 0, 0)
    lookup.begin([1, 2, 3, 4, 7, 1, 2])
    assert lookup.propose(3) == [3, 4, 7]
    lookup.begin([5, 1, 2])
    assert lookup.propose(3) == ()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_lookup_gives_the_plain_reply(model: LanguageModel, sampling: Sampling) -> None:
    """min_ngram 1 proposes often; two replies of one conversation."""
    lookup, session, plain = PromptLookup(min_ngram=1, count=7), model.session(**TINY), model.session(**TINY)
    text = list(PROMPT)
    for _ in range(2):
        expected, found = (
            [p.token.id for p in s.generate(text, max_tokens=30, sampling=sampling, draft=d) if p.token is not None]
            for s, d in ((plain, None), (session, lookup))
        )
        assert found == expected
        assert lookup.acceptance.proposed > 0 or sampling != Sampling()
        text += [*found, 40, 7]
    assert session.reused == len(PROMPT) + 29


def test_the_length_of_proposals_adapts(full: LanguageModel) -> None:
    plain = ids(reply(full, None))
    scripted = Scripted(plain, lambda i: i not in (3, 4, 12), count=6)
    reply(full, scripted)
    # one more than was accepted after a wrong token; twice as many while all are right; at the end what is left
    assert scripted.proposals == [6, 3, 1, 2, 4, 3, 6, 6, 6, 1]


# A draft model


def test_a_draft_model_gives_the_plain_reply(model: LanguageModel, full: LanguageModel) -> None:
    """The target itself as its draft is right always; one that lacks a layer is right sometimes."""
    cut = replace(full.config, layers=full.config.layers[:1])
    small = replace(full, decoder=replace(full.decoder, config=cut, blocks=full.decoder.blocks[:1]))
    for draft in (model, small):
        assistant = ModelDraft(model, draft, 4, **TINY)
        for sampling in (SAMPLINGS[0], SAMPLINGS[4]):
            plain = ids(reply(model, None, sampling=sampling))
            assert ids(reply(model, assistant, sampling=sampling)) == plain
            assert assistant.session.cache.offsets[0] == len(assistant.session.tokens)
            assert assistant.acceptance.proposed > 0
            if draft is model and sampling == Sampling():
                assert assistant.acceptance.rate == 1
                assert assistant.acceptance.steps == 9


def test_a_draft_model_on_another_backend_instance(full: LanguageModel, tiny_model: Path) -> None:
    other = partita.load(tiny_model, backend="numpy")
    assistant = ModelDraft(full, other, 4, **TINY)
    plain = ids(reply(full, None))
    assert ids(reply(full, assistant)) == plain
    assert assistant.acceptance.rate > 0.9


def test_a_draft_model_decodes_by_compiled_steps(
    full: LanguageModel, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same few functions for every proposal, as in plain decoding."""
    other, made = partita.load(tiny_model, backend="numpy"), []
    monkeypatch.setattr(other.ops, "compiles", True)
    monkeypatch.setattr(other.ops, "compile", lambda function: made.append(function) or function)
    assistant = ModelDraft(full, other, 4, **TINY)
    assert ids(reply(full, assistant)) == ids(reply(full, None))
    assert assistant.acceptance.steps > 8
    assert 1 <= len(made) <= 3  # while the sinks fill, before the anchor, and beyond it


def test_a_draft_model_keeps_its_cache_over_a_conversation(full: LanguageModel) -> None:
    assistant, session, text = ModelDraft(full, full, 4), full.session(), list(PROMPT)
    for _ in range(3):
        pieces = list(session.generate(text, max_tokens=10, draft=assistant))
        text += [piece.token.id for piece in pieces if piece.token is not None] + [40, 7]
        assert assistant.session.cache.offsets[0] == len(assistant.session.tokens)
    assert assistant.session.reused > 20


@pytest.mark.parametrize("kind", ["scripted", "model"])
def test_a_conversation_taken_back_into_its_sinks(full: LanguageModel, kind: str) -> None:
    """What the ring held before is gone, and does not keep later drafts from being taken back."""
    assistant, session = ModelDraft(full, full, 4, **TINY), full.session(**TINY)
    for prompt in (PROMPT, [*PROMPT[:2], 77, 78]):
        pieces = full.session(**TINY).generate(prompt, max_tokens=40)
        plain = [piece.token.id for piece in pieces if piece.token is not None]
        draft = assistant if kind == "model" else Scripted(plain, lambda i: i % 3 == 0)
        pieces = session.generate(prompt, max_tokens=40, draft=draft)
        assert [piece.token.id for piece in pieces if piece.token is not None] == plain
    assert session.reused == 2


class Renamed:
    """A tokenizer with another size, or with another text for one token."""

    def __init__(self, tokenizer: Any, more: int = 0, renamed: int | None = None):
        self._tokenizer, self.vocab_size, self._renamed = tokenizer, tokenizer.vocab_size + more, renamed

    def token_text(self, token: int) -> str:
        return "elsewhere" if token == self._renamed else self._tokenizer.token_text(token)


def test_another_vocabulary_is_refused(full: LanguageModel) -> None:
    larger = replace(full, tokenizer=Renamed(full.tokenizer, more=3))  # pyright: ignore[reportArgumentType]
    renamed = replace(full, tokenizer=Renamed(full.tokenizer, renamed=65))  # pyright: ignore[reportArgumentType]
    size = full.tokenizer.vocab_size
    with pytest.raises(DataError, match=f"{size + 3} tokens .* {size}"):
        drafter(full, draft=larger)
    with pytest.raises(DataError, match="token 65 is 'elsewhere'"):
        ModelDraft(full, renamed)


def test_ids_that_the_draft_model_has_no_row_for(full: LanguageModel) -> None:
    """A smaller padded vocabulary never proposes beyond it, and stops drafting where such an id occurs."""
    cut = replace(full, decoder=replace(full.decoder, config=replace(full.config, vocab_size=100)))
    assistant, plain = ModelDraft(full, cut, 4, **TINY), ids(reply(full, None))
    assert ids(reply(full, assistant)) == plain
    assert assistant.acceptance.proposed == 0  # PROMPT has the token 123


def test_the_drafter_a_user_asked_for(full: LanguageModel) -> None:
    assert drafter(full) is None
    assert isinstance(drafter(full, lookup=True), PromptLookup)
    found = drafter(full, draft=full, count=3)
    assert isinstance(found, ModelDraft)
    assert found.count == 3
    with pytest.raises(DataError, match="exclude each other"):
        drafter(full, draft=full, lookup=True)
