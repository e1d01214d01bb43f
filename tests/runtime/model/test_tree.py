"""Trees of layers: walked, and rewritten without changing what they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from partita.checkpoint.open import open_checkpoint
from partita.model.decoder import Decoder
from partita.model.layers import Linear
from partita.model.load import load_decoder
from partita.model.tree import at, replace_at, walk
from partita_backends.numpy import NumpyBackend


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Decoder:
    return load_decoder(NumpyBackend(), open_checkpoint(tiny_model), stack=False)


def test_every_node_has_a_path_and_can_be_put_back(decoder: Decoder) -> None:
    nodes = dict(walk(decoder))
    assert nodes[""] is decoder
    assert nodes["blocks.1.mixer.qkv.parts.0.weight"].shape == (128, 64)
    assert nodes["norm.eps"] == 1e-5
    assert at(decoder, "blocks.1.mixer.qkv.parts.0") is nodes["blocks.1.mixer.qkv.parts.0"]
    leaves = {path: node for path, node in nodes.items() if not any(other.startswith(f"{path}.") for other in nodes)}
    del leaves[""]
    assert dict(walk(replace_at(decoder, leaves))).keys() == nodes.keys()


def test_a_node_is_replaced_and_the_rest_is_shared(decoder: Decoder) -> None:
    changed = replace_at(decoder, {"blocks.0.mlp.down.weight": "new", "head": "other"})
    assert changed.blocks[0].mlp.down.weight == "new"
    assert changed.head == "other"
    assert decoder.blocks[0].mlp.down.weight is not changed.blocks[0].mlp.down.weight
    assert changed.blocks[1] is decoder.blocks[1]
    assert changed.blocks[0].mixer is decoder.blocks[0].mixer
    assert replace_at(decoder, {}) is decoder
    assert replace_at(decoder, {"": 3}) == 3


def test_a_path_that_is_not_there_is_named(decoder: Decoder) -> None:
    with pytest.raises(KeyError, match="Attention has no 'qk'"):
        replace_at(decoder, {"blocks.0.mixer.qk.weight": 1})
    with pytest.raises(KeyError, match="tuple has no '9'"):
        replace_at(decoder, {"blocks.9.mlp": 1})


def test_linears_are_walked_in_the_models_order(decoder: Decoder) -> None:
    names = [node.name for _, node in walk(decoder) if isinstance(node, Linear)]
    assert len(names) == 2 * 7 + 1
    assert names[0] == "model.layers.0.self_attn.q_proj"
    assert names[-1] == "lm_head"
