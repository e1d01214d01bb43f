"""Rows that come and go at any step, with settings of their own: each says what it says alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import partita
from partita.backend import Backend
from partita.cache.state import Cache
from partita.errors import DataError
from partita.inference.decode import DecodeOptions, decode
from partita.inference.runner import Generated, ModelRunner, choose
from partita.inference.sampling import Sampler, Sampling
from partita.language_model import LanguageModel

CACHE = {"context": 24, "sinks": 2, "kv": "32", "chunk": 8}  # rings turn before a reply of 30 ends
ROWS = (  # prompt, sampling, tokens to generate, the turn in which it comes
    ([11, 40, 7, 99, 40, 7, 123, 5, 40, 7], Sampling(), 30, 0),
    ([5], Sampling(temperature=1.2, seed=5), 12, 0),
    (list(range(20, 50)), Sampling(temperature=0.9, top_k=30, top_p=0.9, seed=6), 25, 3),
    ([9, 9, 8], Sampling(repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.4), 1, 5),
    ([44, 3, 17, 2], Sampling(temperature=1.0, min_p=0.02, repetition_penalty=1.2, seed=7), 30, 8),
    ([60, 61], Sampling(temperature=1.0, top_k=4, seed=8), 10, 22),
)


@pytest.fixture(scope="module")
def model(ops: Backend, tiny_model: Path) -> LanguageModel:
    return partita.load(tiny_model, backend=ops)


def sampler(model: LanguageModel, row: int) -> Sampler:
    prompt, sampling, _, _ = ROWS[row]
    return Sampler(model.ops, sampling, model.config.vocab_size, prompt)


def runner(model: LanguageModel, batch: int = 1) -> ModelRunner:
    return ModelRunner(model.ops, model.decoder, Cache(model.ops, model.cache_spec(**CACHE), batch))


def alone(model: LanguageModel, row: int) -> list[Generated]:
    prompt, _, count, _ = ROWS[row]
    return list(decode(runner(model), prompt, sampler(model, row), DecodeOptions(count, alternatives=2)))


class Batch:
    """As little as batches rows: what they said by row, and the rows that are decoded now."""

    def __init__(self, model: LanguageModel):
        self.model, self.said = model, {row: [] for row in range(len(ROWS))}
        self.members: list[int] = []
        self.runner: ModelRunner | None = None
        self.sampler: Sampler | None = None

    def add(self, row: int) -> None:
        """Feed the prompt in a cache of its own, a chunk at a time, and take the row in with its first token."""
        ops, prompt = self.model.ops, np.asarray([ROWS[row][0]], np.int32)
        new, chooser = runner(self.model), sampler(self.model, row)
        *chunks, last = (prompt[:, start : start + 8] for start in range(0, prompt.shape[1], 8))
        for chunk in chunks:
            new.feed(chunk)
        choice = choose(ops, new.logits(last), chooser, 2)
        self.said[row].append(choice.read().generated(0, 0.0))
        if self.runner is None or self.sampler is None:
            self.runner, self.sampler, self.tokens = new, chooser, choice.tokens
        else:
            self.runner.cache.extend(new.cache)
            self.sampler.extend(chooser)
            self.tokens = ops.concat([self.tokens, choice.tokens], 0)
        self.members.append(row)
        self.leave()

    def step(self) -> None:
        assert self.runner is not None
        assert self.sampler is not None
        choice = choose(self.model.ops, self.runner.decode(self.tokens), self.sampler, 2)
        self.tokens, chosen = choice.tokens, choice.read()
        assert chosen.finite == [True] * len(self.members)
        for place, row in enumerate(self.members):
            self.said[row].append(chosen.generated(place, 0.0))
        self.leave()

    def leave(self) -> None:
        """Rows that have said everything."""
        staying = [place for place, row in enumerate(self.members) if len(self.said[row]) < ROWS[row][2]]
        if len(staying) == len(self.members):
            return
        assert self.runner is not None
        assert self.sampler is not None
        self.members = [self.members[place] for place in staying]
        if not staying:
            self.runner = self.sampler = None
            return
        self.runner.cache.filter(staying)
        self.sampler.filter(staying)
        self.tokens = self.model.ops.take(self.tokens, self.model.ops.array(np.asarray(staying, np.int32)), 0)


def test_rows_come_and_go_at_any_step(model: LanguageModel) -> None:
    batch, most = Batch(model), 0
    for turn in range(60):
        for row, (_, _, _, comes) in enumerate(ROWS):
            if comes == turn:
                batch.add(row)
        most = max(most, len(batch.members))
        if batch.members:
            batch.step()
    assert most == 4
    for row, said in batch.said.items():
        expected = alone(model, row)
        assert [each.id for each in said] == [each.id for each in expected]
        for ours, theirs in zip(said, expected, strict=True):
            assert [i for i, _ in ours.alternatives] == [i for i, _ in theirs.alternatives]
            assert ours.probability == pytest.approx(theirs.probability, rel=1e-3)


def test_prompts_of_any_length_are_fed_together(model: LanguageModel) -> None:
    """In chunks, from which a row is left out once its prompt has ended, all but its last token; then they decode."""
    rows = (0, 2, 4)
    prompts = [ROWS[row][0] for row in rows]
    batch, chooser = runner(model, len(rows)), sampler(model, rows[0])
    for row in rows[1:]:
        chooser.extend(sampler(model, row))
    for start in range(0, max(map(len, prompts)) - 1, 8):
        parts = [prompt[start : min(start + 8, len(prompt) - 1)] for prompt in prompts]
        lengths = [len(part) for part in parts]
        padded = np.zeros((len(rows), max(lengths)), np.int32)
        for place, part in enumerate(parts):
            padded[place, : len(part)] = part
        batch.feed(padded, lengths=lengths)
    tokens = model.ops.array(np.asarray([prompt[-1] for prompt in prompts], np.int32))
    found = []
    for _ in range(25):
        choice = choose(model.ops, batch.decode(tokens), chooser)
        tokens = choice.tokens
        found.append(choice.read().ids)
    for place, row in enumerate(rows):
        assert [ids[place] for ids in found] == [each.id for each in alone(model, row)][:25]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what is damaged
def test_a_row_without_numbers_is_known(ops: Backend) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    expected = logits.argmax(-1).tolist()
    logits[1, 5] = np.nan
    chosen = choose(ops, ops.array(logits), Sampler(ops, Sampling(), 40, batch=3)).read()
    assert chosen.finite == [True, False, True]
    assert chosen.ids[::2] == expected[::2]


def test_a_read_a_token(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, fetch = [], model.ops.fetch
    monkeypatch.setattr(model.ops, "fetch", lambda x: reads.append(x.shape) or fetch(x))
    row = 4
    assert len(list(decode(runner(model), ROWS[row][0], sampler(model, row), DecodeOptions(9)))) == 9
    assert reads == [(2,)] * 9


def test_options_that_generate_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="at least 1, not 0"):
        DecodeOptions(0)
