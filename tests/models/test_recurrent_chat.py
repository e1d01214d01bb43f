"""Conversations with a model whose layers keep a state: what is read again, drafts, and rows of an engine."""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

import partita
import partita_backends
from partita.cache.prefix_cache import PrefixCache
from partita.draft_model import ModelDraft
from partita.inference.decode import prefill
from partita.inference.sampling import Sampling
from partita.inference.speculative import Drafter, PromptLookup
from partita.language_model import LanguageModel, Piece, Session

from ..runtime.engine.driver import Driver, alone, engine

RANDOM = np.random.default_rng(11)
FAMILIES = ("qwen3_5", "lfm2", "lfm2_moe", "lfm3")
CACHE = {"kv": "32", "chunk": 64}


@pytest.fixture(params=[*itertools.product(FAMILIES, partita_backends.names())], ids="-".join, scope="module")
def model(request: pytest.FixtureRequest, tiny_family: Callable[[str], Path]) -> LanguageModel:
    """Most of its layers keep a state."""
    name, backend = request.param
    return partita.load(tiny_family(name), backend=partita_backends.load(backend, dtype="float32"))


@pytest.fixture(autouse=True)
def own_words(request: pytest.FixtureRequest) -> None:
    """Each test's own, in whatever order they run: what one model has read is kept from test to test."""
    RANDOM.bit_generator.state = np.random.default_rng(zlib.crc32(request.node.name.encode())).bit_generator.state


def words(count: int) -> list[int]:
    return RANDOM.integers(0, 290, count).tolist()


def said(session: Session, prompt: Sequence[int], count: int = 6, draft: Drafter | None = None) -> list[int]:
    pieces = session.generate(prompt, max_tokens=count, draft=draft, sampling=Sampling())
    found = [piece.token.id for piece in pieces if piece.token is not None]
    assert session.cache.offsets == [len(session.tokens)]
    return found


class Known(Drafter):
    """Proposes what it knows will be said, but for a wrong token now and then. wrong: of how many the last is."""

    def __init__(self, reply: Sequence[int], wrong: int):
        super().__init__()
        self.reply, self.wrong, self._at, self._turn = list(reply), wrong, 0, 0

    def _propose(self, limit: int) -> Sequence[int]:
        self._turn += 1
        right = self.reply[self._at : self._at + limit]
        if not right or self._turn % self.wrong:
            return right
        return [*right[:-1], (right[-1] + 1) % 290]

    def _observe(self, emitted: Sequence[int], accepted: int, proposed: int) -> None:
        self._at += len(emitted)


@pytest.mark.parametrize("wrong", [1, 2, 1000])
def test_greedy_with_drafts_is_greedy(model: LanguageModel, wrong: int) -> None:
    prompt = words(40)
    plain = said(model.session(**CACHE), prompt, 40)
    draft, session = Known(plain, wrong), model.session(**CACHE)
    assert said(session, prompt, 40, draft) == plain
    assert draft.acceptance.proposed > 20
    assert (draft.acceptance.accepted < draft.acceptance.proposed) == (wrong < 1000)
    assert session.tokens == (prompt + plain)[: len(session.tokens)]
    more = [*session.tokens, *words(5)]
    assert said(session, more, 10) == said(model.session(prefixes=None, **CACHE), more, 10)


def test_lookup_in_a_text_that_repeats(model: LanguageModel) -> None:
    prompt = [*words(6), *[40, 41, 42, 43, 44] * 8]
    assert said(model.session(**CACHE), prompt, 20, PromptLookup()) == said(model.session(**CACHE), prompt, 20)


def test_a_reply_that_is_left_in_the_middle_of_a_draft(model: LanguageModel) -> None:
    prompt = words(40)
    plain, session = said(model.session(**CACHE), prompt, 30), model.session(**CACHE)
    pieces = cast(Generator[Piece], session.generate(prompt, max_tokens=30, draft=Known(plain, 1000)))
    with contextlib.closing(pieces):
        read = [next(pieces) for _ in range(4)]
    assert len(prompt) < len(session.tokens) <= len(prompt) + len(read)
    assert session.tokens == (prompt + plain)[: len(session.tokens)]
    more = [*session.tokens, *words(5)]
    assert said(session, more, 6) == said(model.session(prefixes=None, **CACHE), more, 6)
    assert session.reused == len(more) - 5


def test_a_model_drafts_for_itself_and_for_another(model: LanguageModel) -> None:
    prompt = words(20)
    plain, draft = said(model.session(**CACHE), prompt, 30), ModelDraft(model, model, **CACHE)
    assert said(model.session(**CACHE), prompt, 30, draft) == plain
    assert draft.acceptance.rate > 0.8

    class Wrong(ModelDraft):
        """The third token of a proposal is another one than the model's."""

        def _propose(self, limit: int) -> Sequence[int]:
            found = super()._propose(limit)
            ids = list(found) if isinstance(found, Sequence) else self.model.ops.to_numpy(found).tolist()
            return [*ids[:2], (ids[2] + 1) % 290, *ids[3:]] if len(ids) > 2 else ids

    assert said(model.session(**CACHE), prompt, 30, Wrong(model, model, **CACHE)) == plain


def test_a_long_chat_reads_no_turn_again(model: LanguageModel) -> None:
    """30 turns, of whose replies the template keeps the last words alone, as of those that thought first."""
    (end,) = list(model.tokenizer.stop_ids)[:1]
    session, history = model.session(**CACHE), words(30)
    for turn in range(30):
        asked = [*words(9), end]
        prompt = [*history, *asked, 3, 4]
        before = len(history)
        reply = said(session, prompt, 8)
        kept = reply[-3:]
        new = len(prompt) - session.reused
        # the question, what opens the reply, and what the template has made of the last reply
        assert new <= len(asked) + 2 + (0 if turn == 0 else 2 + 3 + 1) + (before if turn == 0 else 0)
        history = [*history, *asked, 3, 4, *kept, end]
    assert len(session.cache.state().checkpoints_of(0)) <= session.cache.spec.checkpoints


def test_a_chat_that_goes_on_as_it_was_reads_what_is_new(model: LanguageModel) -> None:
    session, text = model.session(**CACHE), words(20)
    for _ in range(6):
        text = [*text, *said(session, text, 5), *words(7)]
        held = len(session.tokens)
        said(session, text, 1)
        assert session.reused == held


def test_the_same_prompt_again_is_hardly_read(model: LanguageModel) -> None:
    session, prompt = model.session(**CACHE), words(120)
    first = said(session, prompt, 5)
    assert said(session, prompt, 5) == first
    assert session.reused == len(prompt) - 1


def test_a_long_prompt_has_checkpoints_on_its_way(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from partita.cache import prefix_reuse

    monkeypatch.setattr(prefix_reuse, "EVERY", 64)
    session, prompt = model.session(**CACHE), words(400)
    said(session, prompt, 1)
    other = [*prompt[:300], *words(30)]
    expected = said(model.session(prefixes=None, **CACHE), other, 5)
    assert said(session, other, 5) == expected
    slides = any(layer.window is not None for layer in model.config.layers)  # and has let go of what is seen there
    assert session.reused == (0 if slides else 256)


def test_conversations_share_a_beginning(model: LanguageModel) -> None:
    """The second with a system prompt shows where it ends; from the third on it is not read again."""
    prefixes, system = PrefixCache(1 << 28), words(100)
    reused: list[int] = []
    for _ in range(4):
        session = model.session(prefixes=prefixes, **CACHE)
        prompt = [*system, *words(40)]
        assert said(session, prompt, 4) == said(model.session(prefixes=None, **CACHE), prompt, 4)
        reused.append(session.reused)
    assert reused[0] == 0
    assert reused[2:] == [100, 100]


def test_prefill_pauses(model: LanguageModel) -> None:
    session, prompt, ends = model.session(**CACHE), words(150), list[int]()
    prefill(session.runner, prompt, pauses=[3, 100, 150, 0], on_progress=lambda done, total: ends.append(done))
    assert ends == [3, 67, 100, 150]


def test_rows_of_an_engine_are_rows_alone(model: LanguageModel) -> None:
    driver = Driver(engine(model))
    prompts = {id: words(count) for id, count in enumerate((5, 30, 17, 40))}
    for id, prompt in prompts.items():
        driver.submit(id, prompt, 10)
        driver.step()
    driver.run()
    for id, prompt in prompts.items():
        assert driver.tokens(id) == [generated.id for generated in alone(model, prompt, 10)]


def test_an_engine_goes_on_behind_the_last_message(model: LanguageModel) -> None:
    """Of a reply whose first words the template leaves out, the question is not read again."""
    (end,) = list(model.tokenizer.stop_ids)[:1]
    driver = Driver(engine(model, prefixes=PrefixCache(1 << 28), cache={"kv": "32", "chunk": 16}))
    question = [*words(90), end]
    driver.submit(0, [*question, 3, 4], 12)
    driver.run()
    again = [*question, 3, *driver.tokens(0)[6:], end, *words(20), end, 3, 4]
    driver.submit(1, again, 8)
    driver.run()
    assert driver.engine.statistics()["reused"] == len(question)
    spec = {"kv": "32", "chunk": 16}
    assert driver.tokens(1) == [generated.id for generated in alone(model, again, 8, cache=spec)]
