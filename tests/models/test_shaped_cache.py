"""The cache of a model whose layers differ in shape or in heads, and of which some read another's keys and values: rows
of a batch, what is taken back, snapshots, files. Texts are longer than the sliding window."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

import partita
import partita_backends
from partita.cache import session_file
from partita.cache.spec import cache_bytes
from partita.language_model import LanguageModel

from .test_recurrent_cache import IDENTITY, TEXT, cache_of, fed, near

FAMILIES = ("gemma4", "gemma4-experts", "laguna", "laguna-elements", "muse_glimmer", "muse_glimmer-odd")
SLACK = 16


@pytest.fixture(params=[*itertools.product(FAMILIES, partita_backends.names())], ids="-".join, scope="module")
def named(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A family and a backend."""
    return request.param


@pytest.fixture(scope="module")
def model(named: tuple[str, str], tiny_family: Callable[[str], Path]) -> LanguageModel:
    name, backend = named
    return partita.load(tiny_family(name), backend=partita_backends.load(backend, dtype="float32"))


def test_a_row_of_a_ragged_batch_is_the_row_alone(model: LanguageModel) -> None:
    cache, alone = cache_of(model, 3), [cache_of(model) for _ in range(3)]
    steps = ([TEXT[:5], TEXT[20:57], TEXT[40:95]], [[7], [8], [9]], [TEXT[5:49], TEXT[57:58], TEXT[95:98]])
    for rows in steps:
        together = fed(model, cache, *rows)
        for place, row in enumerate(rows):
            near(model, together[place], fed(model, alone[place], row)[0])
    cache.filter([2, 0])
    near(model, fed(model, cache, [3], [4])[1], fed(model, alone[0], [4])[0])


def test_rows_come_and_go(model: LanguageModel) -> None:
    cache, own = cache_of(model, 2), cache_of(model)
    fed(model, cache, TEXT[:10], TEXT[50:60])
    fed(model, own, TEXT[100:155])
    cache.put(0, own.row(0))
    near(model, fed(model, cache, [3], [4])[0], fed(model, own, [3])[0])
    cache.drop(1)
    near(model, fed(model, cache, [5], [6])[0], fed(model, own, [5])[0])


def test_it_is_taken_back_and_goes_on(model: LanguageModel) -> None:
    cache, expected = cache_of(model, slack=SLACK), fed(model, cache_of(model), TEXT[:70] + TEXT[150:160])
    fed(model, cache, TEXT[:70])
    fed(model, cache, TEXT[70:80])
    assert cache.can_trim(10)
    cache.trim(10)
    near(model, fed(model, cache, TEXT[150:160]), expected)


def test_a_snapshot_is_restored_and_taken_back(model: LanguageModel) -> None:
    cache, other = cache_of(model, slack=SLACK), cache_of(model, slack=SLACK)
    fed(model, cache, TEXT[:60])
    taken = cache.snapshot()
    fed(model, cache, TEXT[150:170])
    other.restore(taken)
    near(model, fed(model, other, TEXT[60:63]), fed(model, cache_of(model), TEXT[:63]))
    other.restore(taken)
    other.trim(9)
    near(model, fed(model, other, TEXT[90:93]), fed(model, cache_of(model), TEXT[:51] + TEXT[90:93]))


def test_bytes_are_what_was_promised(model: LanguageModel) -> None:
    """Layers that share have none."""
    spec = model.cache_spec(kv="32")
    cache = cache_of(model, 2)
    fed(model, cache, TEXT[:10], TEXT[50:60])
    assert cache.nbytes == cache_bytes(spec, 10, 2)
    owners = [i for i, layer in enumerate(model.config.layers) if layer.shares is None]
    assert len(owners) == min(model.config.num_layers, 5 if model.config.embedding_norm else 4)
    seeing = [i for i in owners if model.config.layers[i].window is None]
    values = [model.config.kv_heads_of(i) * model.config.head_dim_of(i) for i in seeing]
    grown = [cache_bytes(spec, length, 1) for length in (256, 512)]
    expected = 256 * 2 * 4 * sum(values)  # global layers alone still grow
    assert expected <= grown[1] - grown[0] <= expected + 256 * 8  # and what is known of each place


def test_a_file_is_read_by_another_backend(
    model: LanguageModel, named: tuple[str, str], tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    cache = cache_of(model, slack=SLACK)
    fed(model, cache, TEXT[:70])
    session_file.save(tmp_path / "talk.st", cache, TEXT[:70], IDENTITY)
    oracle = partita.load(tiny_family(named[0]), backend=partita_backends.load("numpy"))
    other = cache_of(oracle, slack=SLACK)
    found = session_file.load(tmp_path / "talk.st", other, IDENTITY)
    other.restore(found.snapshot)
    near(model, fed(oracle, other, TEXT[70:73]), fed(model, cache, TEXT[70:73]))
    other.trim(8)
    near(model, fed(oracle, other, TEXT[90:93]), fed(model, cache_of(model), TEXT[:65] + TEXT[90:93]))
