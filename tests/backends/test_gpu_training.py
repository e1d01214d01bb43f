"""A training step as a GPU gets it, followed on tensors without numbers: how many operations it is, which kernels it
has, and that no packed weight is ever dense. How long it takes, no test here says."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from .. import fake_gpu
from ..fake_gpu import LAYERS, FourBits

TOKENS, RANK = 16, 8
PRODUCTS = 7 * LAYERS
LAYER = 83
"""Operations of a layer: eight of each of its seven projections and its adapter; norms, gates and rotations one forward
and one back, and once more each time that a projection's gradient wants its input; the rest attention and sums."""
STEP = 60
"""Those that no layer has: tokens, angles, the head and its loss, clipping, the optimizer."""


@pytest.fixture(scope="module")
def checkpoint(triton_device: str) -> Any:
    from partita.training.initialize import initialise

    assert triton_device
    return FourBits.of(initialise(fake_gpu.CONFIG))  # type: ignore[arg-type]


def followed(checkpoint: Any, *, dtype: str = "bfloat16", again: bool = False) -> Any:
    from partita_apps.bench.meta_gpu import followed

    return followed(checkpoint, [list(range(TOKENS + 1))], RANK, dtype, again)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_step_is_few_operations(checkpoint: Any, dtype: str) -> None:
    calls = followed(checkpoint, dtype=dtype).calls
    assert len(calls) <= LAYERS * LAYER + STEP, Counter(call.name for call in calls)
    own = Counter(call.name.removeprefix("partita::") for call in calls if call.name.startswith("partita"))
    assert own == {
        "packed_rows": 1,
        "packed_product": PRODUCTS + 1,
        "packed_product_back": PRODUCTS + 1 - 3,  # nothing is trained below the first layer's first three
        "rms_norm": 7 * LAYERS + 1,  # each of five projections makes its input again
        "rms_norm_back": 2 * LAYERS,
        "rotate": 2 * LAYERS,
        "glu": 2 * LAYERS,
        "glu_back": LAYERS,
    }


def test_what_is_sent_and_read(checkpoint: Any) -> None:
    """A loss is sent its tokens, its targets and their weights. A host read of a tensor without numbers raises by
    itself, but for the one read of losses and norm, which is not followed."""
    calls = followed(checkpoint).calls
    sent = [x for call in calls for x in call.given if x.device.type == "cpu"]
    assert [tuple(x.shape) for x in sent] == [(1, TOKENS), (TOKENS,), (TOKENS,)]
    assert {x.device.type for call in calls for x in call.results} == {"meta"}


@pytest.mark.parametrize("again", [False, True])
def test_no_packed_weight_is_ever_dense(checkpoint: Any, again: bool) -> None:
    """Nothing that is computed has as many numbers as the smallest of them, but what is trained, which lies flat."""
    config = fake_gpu.CONFIG
    smallest = config["hidden_size"] * config["num_key_value_heads"] * config["head_dim"]
    largest: dict[str, int] = {}
    for call in followed(checkpoint, again=again).calls:
        for x in call.results:
            if x.ndim > 1:
                largest[call.name] = max(largest.get(call.name, 0), math.prod(x.shape))
    assert max(largest.values()) < smallest, largest


def test_a_layer_computed_again_is_its_forward_pass_twice(checkpoint: Any) -> None:
    once, twice = (Counter(call.name for call in followed(checkpoint, again=again).calls) for again in (False, True))
    assert twice["partita::packed_product"] == once["partita::packed_product"] + PRODUCTS
    assert twice["partita::packed_product_back"] == once["partita::packed_product_back"]
