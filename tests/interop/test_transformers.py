"""What `partita convert` wrote, judged by transformers: a 4-bit folder made dense gives our logits and best tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.open import open_checkpoint
from partita.model.load import load_decoder
from partita_convert.convert import convert
from partita_convert.planning import Request

from .. import bounds, tiny_models


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged-by-transformers")


def our_logits(path: Path, tokens: list[int]) -> np.ndarray:
    ops = partita_backends.load("numpy")
    model = load_decoder(ops, open_checkpoint(path))
    cache = Cache(ops, plan(model.config, KVFormat.parse("auto", dense_bits=32), context=None, chunk=len(tokens)))
    return ops.to_numpy(model(ops, ops.array(np.array([tokens], np.int32)), cache, every=True))[0]


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_a_packed_folder_made_dense_is_the_same_model(name: str, folder: Path, tmp_path: Path) -> None:
    source = tiny_models.write(name, folder)
    convert(open_checkpoint(source), tmp_path / "packed", Request(quantize="4:32"))
    convert(open_checkpoint(tmp_path / "packed"), tmp_path / "dense", Request(to="huggingface"))
    tokens = tiny_models.tokens(source)
    ours, theirs = our_logits(tmp_path / "packed", tokens), tiny_models.reference_logits(tmp_path / "dense", tokens)
    error = bounds.logits(source)
    bounds.assert_near(ours, theirs, error)
    margin = np.diff(np.sort(theirs, -1)[:, -2:], axis=-1)[:, 0]
    clear = margin > 2 * error * np.abs(theirs).max()
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])


@pytest.mark.parametrize("name", ["olmo_hybrid", "olmo_hybrid-still"])
def test_a_folder_that_transformers_saved_again_is_read_as_the_published_one(
    name: str, folder: Path, tmp_path: Path
) -> None:
    """It saves the convolutions of queries, keys and values in equal thirds, and calls norms otherwise."""
    from transformers import AutoModelForCausalLM

    published = tiny_models.write(name, folder)
    AutoModelForCausalLM.from_pretrained(published).save_pretrained(tmp_path)
    first, again = open_checkpoint(published), open_checkpoint(tmp_path)
    assert sorted(again.names()) == sorted(first.names())
    for tensor in first.names():
        assert again.shape(tensor) == first.shape(tensor)
        np.testing.assert_array_equal(again.read(tensor), first.read(tensor))
