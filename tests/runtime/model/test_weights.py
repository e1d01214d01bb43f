"""The description of a decoder's weights beside what checkpoints of every family hold, and what loading makes of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from partita.checkpoint import experts
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.checkpoint.overlay import Derived
from partita.errors import CheckpointError
from partita.model.families.parse import family
from partita.model.load import check_whole, load_decoder, read_config
from partita.model.tree import walk
from partita.model.weights import Names, WeightSpec, layer_weights, weights
from partita_backends.numpy import NumpyBackend

from ... import tiny_models


def described(checkpoint: Checkpoint) -> list[WeightSpec]:
    return list(weights(read_config(checkpoint), family(checkpoint.config).names))


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_it_is_what_a_checkpoint_holds(name: str, tiny_family: Callable[[str], Path]) -> None:
    """Every tensor, and no other; experts, which files keep in several forms, by their number of values."""
    checkpoint = open_checkpoint(tiny_family(name))
    specs = described(checkpoint)
    assert len({spec.name for spec in specs}) == len(specs)
    plain = {spec.name: spec.shape for spec in specs if not spec.kind.startswith("experts")}
    stored = experts.find(checkpoint)
    of_experts = tuple(f"{found.module}." for found in stored.values())
    rest = {tensor: checkpoint.shape(tensor) for tensor in checkpoint.names()}
    apart = {tensor for tensor in rest if tensor.startswith(of_experts or ("-",)) and tensor not in plain}
    held = [rest[tensor] for tensor in apart]
    assert plain == {tensor: shape for tensor, shape in rest.items() if tensor not in apart}
    assert sum(map(math.prod, held)) == sum(math.prod(spec.shape) for spec in specs if spec.name not in plain)


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_a_layer_has_one_of_a_kind(name: str, tiny_family: Callable[[str], Path]) -> None:
    config = read_config(open_checkpoint(tiny_family(name)))
    for i in range(config.num_layers):
        specs = list(layer_weights(config, Names(), i))
        kinds = Counter(spec.kind for spec in specs if not spec.kind.endswith("bias"))
        assert set(kinds.values()) == {1}
        assert {spec.layer for spec in specs} == {i}
        modules = {spec.module for spec in specs if not spec.kind.endswith("bias")}
        assert {spec.module for spec in specs if spec.kind.endswith("bias")} <= modules


@pytest.mark.parametrize(("name", "stack"), [("llama", True), ("llama", False), ("phi3", True), ("gemma3", True)])
def test_a_decoder_holds_each_matrix_once(name: str, stack: bool, tiny_family: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(tiny_family(name))
    decoder = load_decoder(NumpyBackend(), checkpoint, stack=stack)
    held = Counter(node.name for _, node in walk(decoder) if isinstance(node, WeightSpec))
    matrices = {spec.name for spec in described(checkpoint) if len(spec.shape) == 2}
    # an embedding that is not the head is a prepared weight without a layer
    assert set(held) == (matrices if decoder.config.tie_embeddings else matrices - {"model.embed_tokens.weight"})
    assert set(held.values()) == {1}


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "gpt_oss", "qwen3_moe"])
def test_each_missing_tensor_is_named_before_anything_is_read(name: str, tiny_family: Callable[[str], Path]) -> None:
    class Without(Derived):
        lost: str = ""

        def shape(self, name: str) -> tuple[int, ...]:
            if name == Without.lost:
                raise self.missing(name)
            return super().shape(name)

        def read(self, name: str):
            raise AssertionError("nothing is read")

    checkpoint = Without.of(open_checkpoint(tiny_family(name)))
    check_whole(checkpoint)
    for tensor in checkpoint.names():
        Without.lost = tensor
        with pytest.raises(CheckpointError) as caught:
            check_whole(checkpoint)
        assert repr(tensor) in str(caught.value)
