"""What has been read is not read again: later turns, other conversations, other runs. And the logits stay the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from partita.cache.prefix_cache import PrefixCache
from partita.errors import ContextError
from partita.inference.decode import prefill
from partita.language_model import LanguageModel, Session

from .. import bounds

Load = Callable[..., LanguageModel]
BUDGET = 1 << 30


def reply(session: Session, prompt: list[int], count: int) -> list[int]:
    found = [piece.token.id for piece in session.generate(prompt, max_tokens=count) if piece.token is not None]
    return found if found[-1] not in session.model.tokenizer.stop_ids else found[:-1]


def logits(session: Session, prompt: list[int]) -> np.ndarray:
    """float32 (V,) after the prompt, fed from where it parts from what is known."""
    rest = session.align(prompt)
    return session.model.ops.to_numpy(prefill(session.runner, rest))[0]


@pytest.mark.parametrize(("name", "count"), [("smollm2", 1500), ("gemma3", 800)])
def test_a_second_turn_feeds_only_what_is_new(name: str, count: int, load: Load, speeches: str) -> None:
    """After a long text: the next turn, one that leaves the first reply out, and another conversation."""
    model = load(name, "torch", "auto")
    first = model.tokenizer.encode(speeches[:40_000])[:count]
    question = model.tokenizer.encode("\n\nWhat was said next?", bos=False)
    prefixes = PrefixCache(BUDGET)
    session = model.session(prefixes=prefixes)
    said = reply(session, first, 4)
    assert session.reused == 0
    assert (len(prefixes), prefixes.nbytes <= BUDGET) == (1, True)
    second = [*first, *said, *question]
    reply(session, second, 2)
    assert len(second) - session.reused <= len(question) + 1  # the reply's last token was never fed
    other = model.session(prefixes=prefixes)
    reply(other, [*first, *question], 2)
    assert other.reused == count
    assert len(prefixes) == 1  # so little is new that nothing more is kept


@pytest.mark.parametrize(
    ("name", "context", "count"), [("smollm2", None, 300), ("smollm2", 200, 300), ("gemma3", None, 600)]
)
def test_warm_logits_equal_cold_ones(name: str, context: int | None, count: int, load: Load, speeches: str) -> None:
    """A prompt held to its last token, to the one before, and to 22 before: all kept, a ring, sliding layers."""
    model = load(name, "torch", layers=range(6))
    tokens = model.tokenizer.encode(speeches[:5_000])[:count]
    prefixes = PrefixCache(BUDGET)
    reply(model.session(prefixes=prefixes, context=context), tokens, 2)
    for match in (count, count - 1, count - 22):
        prompt = [*tokens[:match], *(token + 1 for token in tokens[match:])]  # parts at once
        warm = model.session(prefixes=prefixes, context=context)
        found = logits(warm, prompt)
        assert warm.reused == min(match, count - 1)
        cold = logits(model.session(prefixes=None, context=context), prompt)
        bounds.assert_near(found, cold, bounds.logits(model.config, count))


def test_a_turn_that_leaves_the_reply_out_goes_back_before_it(load: Load, speeches: str) -> None:
    """Sliding layers cannot be taken back over a long reply: the snapshot of the prompt is the way back."""
    model = load("gemma3", "torch", layers=range(6))
    tokens = model.tokenizer.encode(speeches[:5_000])
    first, said = tokens[:600], tokens[600:700]  # given as a prompt: the model itself would take long to say it
    session = model.session(prefixes=PrefixCache(BUDGET), chunk=64)
    reply(session, first, 1)
    reply(session, [*first, *said], 1)
    assert not session.cache.can_trim(len(said))
    changed = [*tokens[:590], *said[:10]]
    found = logits(session, changed)
    assert session.reused == 590
    cold = model.session(prefixes=None, chunk=64)
    reply(cold, [*first, *said], 1)
    expected = logits(cold, changed)
    assert cold.reused == 0
    bounds.assert_near(found, expected, bounds.logits(model.config, 600))


def test_a_shared_beginning_is_kept_once_it_is_seen_to_be_shared(load: Load, speeches: str) -> None:
    """The first conversation has slid past its instructions; the second keeps them; the third begins there."""
    model = load("gemma3", "torch", "auto", layers=range(6))
    tokens = model.tokenizer.encode(speeches[:20_000])
    system, users = tokens[:100], [tokens[n * 1000 : n * 1000 + 550] for n in (1, 2, 3)]
    prefixes, reused = PrefixCache(BUDGET), []
    for user in users:
        session = model.session(prefixes=prefixes, chunk=64)
        reply(session, [*system, *user], 2)
        reused.append(session.reused)
    assert reused == [0, 0, 100]


def test_prefixes_can_be_switched_off(load: Load) -> None:
    model = load("smollm2", "torch", "auto")
    prompt = model.encode("Tell me about rivers, lakes and seas. " * 12)
    model.prefixes.clear()
    reply(model.session(prefixes=None), prompt, 2)
    assert len(model.prefixes) == 0
    reply(model.session(), prompt, 2)
    session = model.session()
    reply(session, prompt, 2)
    assert (len(model.prefixes), session.reused) == (1, len(prompt) - 1)
    model.prefixes.clear()


def test_a_session_goes_on_in_another_run(load: Load, tmp_path: Path) -> None:
    """On the same backend token for token; on another from the same file; not with another model."""
    model, file = load("smollm2", "torch"), tmp_path / "talk"
    prompt = model.encode("What is the capital of France?")
    session = model.session(kv="32")
    said = reply(session, prompt, 12)
    session.save(file, {"messages": ["..."]})
    following = [*prompt, *said, *model.tokenizer.encode(" And of Italy?", bos=False)]
    held = len(session.tokens)
    expected = logits(session, following)
    for backend in ("torch", "mlx"):
        again = load("smollm2", backend).session(kv="32", prefixes=None)
        assert again.restore(file) == {"messages": ["..."]}
        found = logits(again, following)
        assert again.reused == held
        bounds.assert_near(found, expected, 0 if backend == "torch" else bounds.logits(model.config))
    other = load("gemma3", "torch").session(kv="32")
    with pytest.raises(ContextError, match="the session was saved with the model"):
        other.restore(file)
    assert other.tokens == []
