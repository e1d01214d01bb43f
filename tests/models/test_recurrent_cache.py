"""The cache of a model with recurrent layers: rows of a batch, what is taken back, snapshots, files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import partita
import partita_backends
from partita.cache import session_file
from partita.cache.session_file import Identity
from partita.cache.spec import cache_bytes
from partita.cache.state import Cache
from partita.errors import ContextError
from partita.language_model import LanguageModel

from .. import bounds, tiny_models

TEXT = np.random.default_rng(5).integers(0, 290, 200).tolist()
FAMILIES = ("qwen3_5", "qwen3_5-recurrent", "lfm2", "lfm2_moe", "lfm3")
IDENTITY = Identity("tiny", "print")


@pytest.fixture(params=[*itertools.product(FAMILIES, partita_backends.names())], ids="-".join, scope="module")
def model(request: pytest.FixtureRequest, tiny_family: Callable[[str], Path]) -> LanguageModel:
    """Most of its layers keep a state, or all."""
    name, backend = request.param
    return partita.load(tiny_family(name), backend=partita_backends.load(backend, dtype="float32"))


def cache_of(model: LanguageModel, batch: int = 1, **options: Any) -> Cache:
    return Cache(model.ops, model.cache_spec(kv="32", **options), batch)


def fed(model: LanguageModel, cache: Cache, *rows: Sequence[int]) -> np.ndarray:
    """Logits (B, V) behind each row's last token; rows of other lengths are padded."""
    lengths = [len(row) for row in rows]
    tokens = np.zeros((len(rows), max(lengths)), np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    given = None if min(lengths) == max(lengths) else lengths
    return model.ops.to_numpy(model.decoder(model.ops, model.ops.array(tokens), cache, lengths=given))


def near(model: LanguageModel, found: np.ndarray, exact: np.ndarray) -> None:
    bounds.assert_near(found, exact, bounds.logits(model.config))


def test_a_row_of_a_ragged_batch_is_the_row_alone(model: LanguageModel) -> None:
    cache, alone = cache_of(model, 3), [cache_of(model) for _ in range(3)]
    steps = ([TEXT[:5], TEXT[20:37], TEXT[40:80]], [[7], [8], [9]], [TEXT[5:9], TEXT[37:38], TEXT[80:83]])
    for rows in steps:
        together = fed(model, cache, *rows)
        for place, row in enumerate(rows):
            near(model, together[place], fed(model, alone[place], row)[0])
    cache.filter([2, 0])
    near(model, fed(model, cache, [3], [4])[1], fed(model, alone[0], [4])[0])


def test_rows_come_and_go(model: LanguageModel) -> None:
    """Put into a batch from a cache of its own, and added behind another one's rows."""
    cache, own = cache_of(model, 2), cache_of(model)
    fed(model, cache, TEXT[:10], TEXT[50:60])
    fed(model, own, TEXT[100:115])
    cache.put(0, own.row(0))
    expected = fed(model, own, [3])[0]
    near(model, fed(model, cache, [3], [4])[0], expected)
    other = cache_of(model)
    fed(model, other, TEXT[30:44])
    taken = other.snapshot()
    cache.extend(other)
    later = cache_of(model)
    later.restore(taken)
    near(model, fed(model, cache, [5], [6], [7])[2], fed(model, later, [7])[0])


def test_a_dropped_row_is_empty(model: LanguageModel) -> None:
    cache = cache_of(model, 2, sinks=0)
    fed(model, cache, TEXT[:10], TEXT[50:60])
    cache.drop(1)
    near(model, fed(model, cache, [3, 4], [5, 6])[1], fed(model, cache_of(model, sinks=0), [5, 6])[0])


def test_it_is_taken_back_to_a_checkpoint_and_to_nothing_else(model: LanguageModel) -> None:
    cache, expected = cache_of(model), fed(model, cache_of(model), TEXT[:30] + TEXT[60:70])
    fed(model, cache, TEXT[:30])
    cache.checkpoint()
    fed(model, cache, TEXT[30:50])
    assert [cache.can_trim(count) for count in (0, 1, 19, 20, 21, 50)] == [True, False, False, True, False, True]
    with pytest.raises(ContextError, match="cannot take back 5 tokens: recurrent layers have no checkpoint there"):
        cache.trim(5)
    cache.trim(20)
    near(model, fed(model, cache, TEXT[60:70]), expected)
    cache.trim(40)
    near(model, fed(model, cache, TEXT[:30] + TEXT[60:70]), expected)


def test_what_may_be_taken_back_at_once_is_made_again_from_its_inputs(model: LanguageModel) -> None:
    cache = cache_of(model)
    fed(model, cache, TEXT[:12])
    cache.mark(inputs=True)
    fed(model, cache, TEXT[12:17])
    fed(model, cache, TEXT[17:18])
    assert cache.can_trim(6)
    assert not cache.can_trim(7)
    cache.trim(3)
    cache.trim(1)
    near(model, fed(model, cache, TEXT[90:93]), fed(model, cache_of(model), TEXT[:14] + TEXT[90:93]))
    cache.trim(5)
    near(model, fed(model, cache, TEXT[95:98]), fed(model, cache_of(model), TEXT[:12] + TEXT[95:98]))
    cache.unmark()
    assert not cache.can_trim(2)


def test_a_mark_without_inputs(model: LanguageModel) -> None:
    cache = cache_of(model)
    fed(model, cache, TEXT[:12])
    cache.mark(inputs=False)
    for token in TEXT[12:15]:
        fed(model, cache, [token])
    assert [cache.can_trim(count) for count in range(5)] == [True, False, False, True, False]
    for _ in range(2):  # the mark stays
        cache.trim(3)
        near(model, fed(model, cache, TEXT[90:93]), fed(model, cache_of(model), TEXT[:12] + TEXT[90:93]))


def test_a_snapshot_holds_its_checkpoints(model: LanguageModel) -> None:
    cache, other = cache_of(model), cache_of(model)
    fed(model, cache, TEXT[:20])
    cache.checkpoint()
    fed(model, cache, TEXT[20:30])
    taken = cache.snapshot()
    fed(model, cache, TEXT[150:160])
    assert taken.can_trim(10)
    assert not taken.can_trim(9)
    other.restore(taken)
    near(model, fed(model, other, TEXT[30:33]), fed(model, cache_of(model), TEXT[:33]))
    other.restore(taken)
    other.trim(10)
    near(model, fed(model, other, TEXT[90:93]), fed(model, cache_of(model), TEXT[:20] + TEXT[90:93]))


def test_bytes_are_what_was_promised(model: LanguageModel) -> None:
    spec = model.cache_spec(kv="32")
    cache = Cache(model.ops, spec, 2)
    fed(model, cache, TEXT[:10], TEXT[50:60])
    assert cache.nbytes == cache_bytes(spec, 10, 2)
    # 3 or 4 layers of 2 key heads of 16 and 4 value heads of 24, behind 4 taps; 2 of 128 channels, 3 taps, or of 64,
    # 7 taps
    promised = {
        "qwen3_5": 3 * 4 * (3 * (2 * 2 * 16 + 4 * 24) + 4 * 24 * 16),
        "qwen3_5-recurrent": 4 * 4 * (3 * (2 * 2 * 16 + 4 * 24) + 4 * 24 * 16),
        "lfm2": 2 * 4 * 2 * 128,
        "lfm2_moe": 2 * 4 * 2 * 128,
        "lfm3": 2 * 4 * 6 * 64,
    }
    assert spec.state_bytes == promised[model.path.name]
    for start in range(0, 3 * spec.checkpoints, 3):
        cache.checkpoint()
        fed(model, cache, TEXT[start : start + 3], TEXT[start : start + 3])
    assert cache.nbytes == cache_bytes(spec, cache.offsets[0], 2) + 2 * spec.checkpoints * spec.state_bytes


def test_of_many_checkpoints_the_latest_stay_and_some_of_the_others(model: LanguageModel) -> None:
    cache = cache_of(model)
    most = cache.spec.checkpoints
    for start in range(3 * most):
        fed(model, cache, TEXT[start : start + 1])
        cache.checkpoint()
    kept = sorted(cache.state().checkpoints_of(0))
    assert len(kept) == most
    assert kept[-3:] == [3 * most - 2, 3 * most - 1, 3 * most]
    assert kept[0] < most


def test_a_file_holds_states_and_the_latest_checkpoint(model: LanguageModel, tmp_path: Path) -> None:
    cache = cache_of(model)
    fed(model, cache, TEXT[:10])
    cache.checkpoint()
    fed(model, cache, TEXT[10:20])
    cache.checkpoint()
    fed(model, cache, TEXT[20:25])
    session_file.save(tmp_path / "talk.st", cache, TEXT[:25], IDENTITY)
    oracle = partita.load(model.path, backend=partita_backends.load("numpy"))
    other = cache_of(oracle)
    found = session_file.load(tmp_path / "talk.st", other, IDENTITY)
    assert found.tokens == TEXT[:25]
    other.restore(found.snapshot)
    assert [other.can_trim(count) for count in (4, 5, 15)] == [False, True, False]
    near(model, fed(oracle, other, TEXT[25:28]), fed(model, cache, TEXT[25:28]))
    other.trim(8)
    near(model, fed(oracle, other, TEXT[90:93]), fed(model, cache_of(model), TEXT[:20] + TEXT[90:93]))


def test_a_cache_of_other_layers_is_another(model: LanguageModel) -> None:
    cache = cache_of(model)
    layers = tuple(
        replace(layer, tail=(5, 160)) if i in cache.spec.recurrent else layer
        for i, layer in enumerate(cache.spec.layers)
    )
    with pytest.raises(ContextError, match="another layout"):
        cache.restore(replace(cache.snapshot(), spec=replace(cache.spec, layers=layers)))


@pytest.mark.parametrize(
    "name", ["qwen3_5-alike", "qwen3_next", "olmo_hybrid", "lfm2", "lfm2-biased", "lfm2_moe-plain", "lfm3-biased"]
)
def test_other_families_are_taken_back_too(tiny_family: Callable[[str], Path], name: str) -> None:
    family = partita.load(tiny_family(name), backend=partita_backends.load("torch", dtype="float32"))
    text, cache = tiny_models.tokens(tiny_family(name)), cache_of(family)
    fed(family, cache, text[:20])
    cache.checkpoint()
    cache.mark(inputs=True)
    fed(family, cache, text[20:26])
    cache.trim(2)
    near(family, fed(family, cache, text[30:32]), fed(family, cache_of(family), text[:24] + text[30:32]))
    cache.unmark()
    cache.trim(6)
    near(family, fed(family, cache, text[30:32]), fed(family, cache_of(family), text[:20] + text[30:32]))
