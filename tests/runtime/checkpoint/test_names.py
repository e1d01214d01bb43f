"""One name for a tensor, whatever stands before it elsewhere."""

import pytest

from partita.checkpoint.names import Index, part_beside_text, text_name, unwrapped

LAYER = "layers.3.self_attn.q_proj.weight"
PLACES = ("", "model.", "language_model.model.", "model.language_model.", "language_model.", "model.model.")


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_of_a_text_decoder_is_known_wherever_it_stands(place):
    assert text_name(place + LAYER) == f"model.{LAYER}"
    assert text_name(place + "norm.weight") == "model.norm.weight"
    assert text_name(place + "embed_tokens.weight") == "model.embed_tokens.weight"
    assert text_name(place + "lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize("name", ["vision_tower.layers.0.weight", "model.vision_tower.norm.weight", "model", "layers"])
def test_what_is_no_part_of_a_text_decoder(name):
    assert text_name(name) is None
    assert (part_beside_text(name) is not None) == ("vision" in name)


def test_names_are_looked_up_by_themselves_first():
    index = Index([f"language_model.model.{LAYER}", "model.norm.weight", "norm.weight", "vision_tower.norm.weight"])
    assert index.find(f"model.language_model.{LAYER}") == f"language_model.model.{LAYER}"
    assert index.find("norm.weight") == "norm.weight"
    assert index.find("language_model.norm.weight") == "model.norm.weight"
    assert index.find("vision_tower.norm.weight") == "vision_tower.norm.weight"
    assert index.find("model.vision_tower.norm.weight") == "vision_tower.norm.weight"
    assert index.find("vision_model.norm.weight") is None
    assert index.find("model.layers.9.weight") is None


def test_what_tools_put_around_modules_is_left_out():
    for name in (
        f"base_model.model.model.{LAYER}",
        f"module.model.{LAYER}",
        f"module.base_model.model.model.{LAYER}",
        "model._fsdp_wrapped_module.layers.3._checkpoint_wrapped_module.self_attn.q_proj.weight",
        f"_orig_mod.model.{LAYER}",
    ):
        assert unwrapped(name) == f"model.{LAYER}"
    assert unwrapped("model.module.weight") == "model.module.weight"
