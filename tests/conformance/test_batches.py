"""Rows of a batch through the whole decoder: each row's logits are what they are alone, whoever joins or leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import partita
from partita.backend import Backend
from partita.cache import Cache


@pytest.mark.parametrize(("kv", "tolerance"), [("32", 1e-4), ("k8v8", 2e-2)])
def test_a_row_of_a_batch_equals_the_row_alone(ops: Backend, tiny_model: Path, kv: str, tolerance: float) -> None:
    """Three rows at positions of their own, one beyond the wrap of its ring; one leaves in the middle.

    Products of three rows and of one differ in the last bits, and a key at the edge between two integers may then fall
    to either side: with a quantized cache logits differ by what a step is worth (docs/experiments.md).
    """
    model = partita.load(tiny_model, backend=ops)
    spec = model.cache_spec(context=24, sinks=2, kv=kv, chunk=8)
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 200, length).astype(np.int32) for length in (40, 3, 17)]

    def read(cache: Cache, text: np.ndarray) -> None:
        for start in range(0, len(text), 8):
            model.decoder.feed(ops, ops.array(text[None, start : start + 8]), cache)

    alone = [Cache(ops, spec) for _ in texts]
    batch, *joining = (Cache(ops, spec) for _ in texts)
    for i, text in enumerate(texts):
        read(alone[i], text)
        read([batch, *joining][i], text)
    for other in joining:
        batch.join(other)
    members = [0, 1, 2]
    for turn in range(30):
        if turn == 12:
            batch.keep([0, 2])
            members = [0, 2]
        tokens = rng.integers(3, 200, 3).astype(np.int32)
        found = ops.to_numpy(model.decoder(ops, ops.array(tokens[members, None]), batch))
        for place, row in enumerate(members):
            expected = ops.to_numpy(model.decoder(ops, ops.array(tokens[row : row + 1, None]), alone[row]))[0]
            np.testing.assert_allclose(found[place], expected, atol=tolerance)
