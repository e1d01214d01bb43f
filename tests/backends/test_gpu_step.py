"""A decode step as a GPU gets it, followed on tensors without numbers: how many operations it is, that it can be
captured as a CUDA graph, and what it reads and writes. How long it takes, no test here says."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from partita.cache.spec import bytes_per_token
from partita.quantization import Packed
from partita.rings import sides
from partita_apps.bench import torch_graph
from partita_apps.bench.gpu_steps import Model
from partita_apps.bench.torch_graph import Call, Followed, memory

from .. import fake_gpu
from ..fake_gpu import LAYERS

KERNELS = ("rms_norm", "rotate", "store", "flash_decode", "glu")
SMALL, LARGE = 256, 1024
"""Contexts. With the former a cache is beyond its anchor when it has read 600 tokens."""


@dataclass(frozen=True)
class Traced:
    """A step: the model after it, the state before and after, and what was computed."""

    model: Model
    before: list[Any]
    after: tuple[torch.Tensor, ...]
    logits: torch.Tensor
    calls: list[Call]

    @property
    def names(self) -> Counter[str]:
        return Counter(call.name for call in self.calls)


@pytest.fixture
def make(fake_cuda: None) -> Any:
    """`fake_gpu.model`, of 4 bits if not told otherwise."""
    del fake_cuda
    return lambda kv, context, read, packed=True: fake_gpu.model(packed=packed, kv=kv, context=context, read=read)


def tokens(count: int) -> torch.Tensor:
    return torch.empty(1, count, dtype=torch.int32, device="cuda")


def traced(model: Model) -> Traced:
    """The model's next step, as it would be captured."""
    state = model.cache.arrays()
    followed, (logits, *after) = model.step()
    return Traced(model, state, tuple(after), logits, followed.calls)


@pytest.mark.parametrize(
    ("packed", "kv", "context", "most"),
    [
        (False, "16", LARGE, 410),
        (True, "16", LARGE, 410),
        (True, "k8v4", LARGE, 420),
        (True, "16", SMALL, 460),
        (True, "k8v4", SMALL, 470),
        (True, "k8v4h", SMALL, 560),
        (True, "k4v4", LARGE, 485),
    ],
)
def test_a_step_is_few_operations(make: Any, packed: bool, kv: str, context: int, most: int) -> None:
    """30 layers of 12 operations, a layer's sinks put in their slots beyond the anchor, two more where keys lose their
    centre, and what is once a step."""
    found = traced(make(kv, context, 600, packed))
    assert found.logits.shape == (1, fake_gpu.CONFIG["vocab_size"])
    assert len(found.calls) <= most, found.names
    own = {name.removeprefix("partita::"): count for name, count in found.names.items() if "partita" in name}
    beyond = context == SMALL
    expected = dict.fromkeys(KERNELS, LAYERS) | {"rms_norm": 2 * LAYERS + 1, "rotate": LAYERS + beyond}
    expected["rotate"] += kv.startswith("k4")  # the centres of all layers
    if packed:
        expected |= {"packed_product": 4 * LAYERS + 1, "packed_rows": 1}
    if kv.endswith("h"):
        expected |= {"hadamard": 3 * LAYERS}
    assert own == expected
    assert found.names["aten::mm"] == (0 if packed else 4 * LAYERS + 1)


STATES = [
    ("16", LARGE, 2),
    ("16", LARGE, 600),
    ("k8v4", LARGE, 2),
    ("k8v4", SMALL, 600),
    ("k16v4h", SMALL, 600),
    ("k4v4h", LARGE, 2),
    ("k4v4h", SMALL, 600),
]


@pytest.mark.parametrize(("kv", "context", "read"), STATES)
def test_a_step_can_be_captured(make: Any, kv: str, context: int, read: int) -> None:
    """It neither reads a number on the host nor sends one, and its state lies where it lay. A host read of a tensor
    without numbers raises by itself."""
    found = traced(make(kv, context, read))
    for call in found.calls:
        assert {x.device.type for x in call.given + call.results} == {"cuda"}, call.name
    assert [memory(x) for x in found.after] == [memory(x) for x in found.before]


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, a fake tensor can be sent to it")
def test_what_was_sent_is_seen(make: Any) -> None:
    """The test above would fail of a step that sends a number."""
    model = make("16", LARGE, 600)
    with pytest.raises(RuntimeError, match="cuda"):
        model.ops.array(np.arange(3))


@pytest.mark.parametrize("read", [2, 600])
@pytest.mark.parametrize(("count", "kernel"), [(8, True), (64, False)])
@pytest.mark.parametrize("kv", ["16", "k8v4", "k4v4"])
def test_a_draft_and_a_prompt(make: Any, kv: str, count: int, kernel: bool, read: int) -> None:
    """Several tokens go through, not captured; sinks are scored apart beyond the anchor. A prompt attends by tiles."""
    model = make(kv, SMALL, read)
    with Followed() as followed:
        logits = model.decoder(model.ops, tokens(count), model.cache, every=True)
    assert logits.shape == (1, count, fake_gpu.CONFIG["vocab_size"])
    names = Counter(call.name for call in followed.calls)
    assert names["partita::flash_decode"] == (LAYERS if kernel else 0)
    assert names["partita::store"] >= LAYERS


@pytest.mark.parametrize(("kv", "context"), [("16", LARGE), ("k8v4", LARGE), ("k8v4", SMALL), ("k16v8", LARGE)])
def test_a_step_reads_weights_and_cache_once_as_they_are_stored(make: Any, kv: str, context: int) -> None:
    found = traced(make(kv, context, 600))
    decoder, cache = found.model.decoder, found.model.cache
    given = Counter(place for call in found.calls for place in {memory(x) for x in call.given})

    matrices = [linear.weight.packed for linear in linears(decoder)]
    for matrix in matrices:
        assert [given[memory(x)] for x in tensors(matrix)] == [1, 1, 1]
    numbers = sum(spec.shape[0] * spec.shape[1] for linear in linears(decoder) for spec in linear.specs)
    bits = 4 + 2 * 8 * matrices[0].scales.element_size() / 32
    assert sum(x.nbytes for matrix in matrices for x in tensors(matrix)) == numbers * bits / 8

    rings = [x for buffers in cache._layers.values() for side in sides(buffers.kv) for x in tensors(side)]
    slots = cache._capacity[cache.spec.layers[0].span] + (cache.spec.sinks if cache.spec.kv.joint else 0)
    assert sum(x.nbytes for x in rings) == slots * bytes_per_token(cache.spec)
    beyond = context == SMALL and cache.spec.kv.joint
    assert {given[memory(x)] for x in rings} == {2 + beyond}  # written, then attended to

    stored = sum(x.nbytes for matrix in matrices for x in tensors(matrix)) + sum(x.nbytes for x in rings)
    read = sum(call.read for call in found.calls)
    assert stored <= read < 1.25 * stored  # activations, positions, norms: little, but so is this model

    ring = 2 * slots * cache.spec.layers[0].kv_heads * cache.spec.layers[0].head_dim
    smallest = min(ring, *(math.prod(matrix.shape) for matrix in matrices))
    made = [x for call in found.calls for x in call.results if not held(x, found)]
    assert max(x.numel() for x in made) < smallest  # none of them is dense anywhere


def linears(decoder: Any) -> list[Any]:
    """All that a step multiplies by."""
    blocks = decoder.blocks
    parts = [part for block in blocks for stack in (block.mixer.qkv, block.mlp.gate_up) for part in stack.parts]
    return [*parts, *(block.mixer.out for block in blocks), *(block.mlp.down for block in blocks), decoder.head]


def tensors(x: Any) -> list[torch.Tensor]:
    """All in it, of a packed array too."""
    return [x.weight, *x.grid] if isinstance(x, Packed) else torch_graph.tensors(x)


def held(x: torch.Tensor, found: Traced) -> bool:
    """Whether it is part of the state, which some operations give back."""
    return memory(x) in {memory(y) for y in found.before}
