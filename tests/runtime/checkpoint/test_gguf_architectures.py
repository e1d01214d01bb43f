"""What each architecture's keys become, as llama.cpp's own converter writes them, and what is refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.checkpoint.gguf.architectures import ARCHITECTURES
from partita.checkpoint.gguf.arrangement import permuted_heads
from partita.checkpoint.gguf.extensions import usual_attention_factor
from partita.checkpoint.gguf.names import (
    config_from,
    tensor_names,
    with_rope_tensors,
)
from partita.errors import CheckpointError, PartitaError, UnsupportedModel
from partita.model.config import ConvConfig, ExpertsConfig, RopeConfig
from partita.model.families.parse import parse

FULL, SLIDING, RECURRENT, CONV = "full_attention", "sliding_attention", "linear_attention", "conv"
LAYERS, WIDTH, HEADS = 6, 64, 4
OUTER = {
    "token_embd.weight": (32, WIDTH),
    "output_norm.weight": (WIDTH,),
    **{f"blk.{i}.attn_output.weight": (WIDTH, WIDTH) for i in range(LAYERS)},
}

DELTA = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 64,
    "full_attention_interval": 4,
    "rope.dimension_count": 4,
    "attention.key_length": 16,
    "attention.value_length": 16,
}
SPARSE = {
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 48,
    "expert_shared_feed_forward_length": 32,
}
CONVOLVED = {"attention.head_count_kv": [0, 0, 2, 0, 2, 0], "shortconv.l_cache": 3}
SECTIONS = {"rope.dimension_sections": [11, 11, 10, 0]}
# keys that llama.cpp's converter writes for every model of the architecture, beyond the common ones
OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "smollm3": {},
    "granite": {"logit_scale": 8.0, "embedding_scale": 12.0, "residual_scale": 0.22, "attention.scale": 0.015625},
    "qwen2": {},
    "qwen3": {},
    "qwen3moe": {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 48},
    "gemma2": {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.sliding_window": 16},
    "gemma3": {"attention.sliding_window": 16},
    "gemma4": {
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.key_length_swa": 16,
        "attention.value_length_swa": 16,
        "attention.sliding_window": 16,
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "final_logit_softcapping": 30.0,
        "rope.dimension_count": 32,
        "rope.dimension_count_swa": 16,
    },
    "phi3": {"attention.sliding_window": 0, "rope.scaling.original_context_length": 64},
    "olmo2": {},
    "exaone4": {},
    "seed_oss": {},
    "glm4": {"rope.dimension_count": 8},
    "ernie4_5": {},
    "hunyuan-dense": {
        "rope.scaling.type": "none",
        "rope.scaling.factor": 1.0,
        "rope.scaling.original_context_length": 262144,
    },
    "mistral3": {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
        "rope.scaling.yarn_log_multiplier": 1.0,
        "attention.temperature_scale": 0.1,
    },
    "cohere2": {
        "attention.layer_norm_epsilon": np.float32(1e-6).item(),
        "logit_scale": 0.25,
        "attention.sliding_window": 16,
        "rope.dimension_count": 16,
        "rope.scaling.type": "none",
    },
    "qwen35": {**DELTA, **SECTIONS},
    "qwen35moe": {**DELTA, **SECTIONS, **SPARSE, "feed_forward_length": None},
    "qwen3next": {**DELTA, **SPARSE},
    "lfm2": CONVOLVED,
    "lfm2moe": {
        **CONVOLVED,
        "expert_count": 8,
        "expert_used_count": 2,
        "expert_feed_forward_length": 48,
        "leading_dense_block_count": 2,
        "expert_gating_func": 2,
    },
    "gpt-oss": {
        "expert_count": 8,
        "expert_used_count": 2,
        "expert_feed_forward_length": 48,
        "attention.sliding_window": 16,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 16,
    },
}


def read(architecture: str, tensors: Mapping[str, tuple[int, ...]] | None = None, **keys: Any) -> dict[str, Any]:
    common = {
        "embedding_length": WIDTH,
        "feed_forward_length": 96,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": np.float32(1e-6).item(),
        "context_length": 64,
        "rope.freq_base": 10000.0,
    }
    said = {**common, **OWN[architecture], **{key.replace("__", "."): value for key, value in keys.items()}}
    metadata = {f"{architecture}.{key}": value for key, value in said.items() if value is not None}
    return config_from({"general.architecture": architecture, **metadata}, {**OUTER, **(tensors or {})})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_config_is_one_that_families_parse(architecture: str) -> None:
    config = read(architecture)
    parsed = parse(config)
    assert (parsed.num_layers, parsed.hidden_size, parsed.head_dim, parsed.norm_eps) == (LAYERS, WIDTH, 16, 1e-6)
    assert config["model_type"] in ARCHITECTURES[architecture].written


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_config_is_one_that_transformers_takes(architecture: str) -> None:
    from transformers import AutoConfig

    config = read(architecture)
    theirs = AutoConfig.for_model(config.pop("model_type"), **config)
    assert theirs.num_hidden_layers == LAYERS
    for field in ("layer_types", "sliding_window", "tie_word_embeddings", "no_rope_layers", "query_pre_attn_scalar"):
        if field in config:
            assert getattr(theirs, field) == config[field], field


def test_layers_are_recurrent_but_for_the_last_of_a_period() -> None:
    usual = read("qwen3next", full_attention_interval=None)["layer_types"]
    assert usual == [RECURRENT, RECURRENT, RECURRENT, FULL, RECURRENT, RECURRENT]
    assert read("qwen35", full_attention_interval=2)["layer_types"] == [RECURRENT, FULL] * 3
    said = [False, True, True, False, True, True]
    listed = read("qwen35moe", attention__recurrent_layers=said)["layer_types"]
    assert listed == [RECURRENT if each else FULL for each in said]


def test_a_layer_without_key_value_heads_is_a_convolution() -> None:
    types = [CONV, CONV, FULL, CONV, FULL, CONV]
    for architecture in ("lfm2", "lfm2moe"):
        config = read(architecture)
        assert (config["layer_types"], config["num_key_value_heads"]) == (types, 2)
        parsed = parse(config)
        assert [layer.mixer for layer in parsed.layers] == [ConvConfig(WIDTH, 3) if t == CONV else None for t in types]
        assert (parsed.intermediate_size, parsed.norm_eps) == (96, 1e-6)
        for same in (0, 64):  # as long as the context: never slides
            assert read(architecture, attention__sliding_window=same) == config
        for keys, said in (
            ({"attention__sliding_window": 16}, "sliding_window"),
            ({"attention__head_count_kv": [0, 0, 2, 0, 4, 0]}, r"\[2, 4\] heads"),
            ({"attention__head_count_kv": [0] * 6}, "head_count_kv"),
        ):
            with pytest.raises(UnsupportedModel, match=said):
                read(architecture, **keys)
        for keys, said in (
            ({"shortconv__l_cache": None}, r"shortconv\.l_cache"),
            ({"shortconv__l_cache": -3}, r"shortconv\.l_cache"),
            ({"attention__head_count_kv": [0, 2]}, "2 items for 6 layers"),
        ):
            with pytest.raises(CheckpointError, match=said):
                read(architecture, **keys)


@pytest.mark.parametrize("architecture", ["gemma4", "lfm2", "lfm2moe"])
def test_heads_of_layers_that_are_not_said_are_those_of_queries(architecture: str) -> None:
    config = parse(read(architecture, attention__head_count_kv=None))
    assert [config.kv_heads_of(i) for i in range(LAYERS)] == [HEADS] * LAYERS


def test_a_router_of_lfm2_scores_each_expert_by_itself() -> None:
    config = parse(read("lfm2moe"))
    assert [layer.experts for layer in config.layers] == [False] * 2 + [True] * 4
    assert config.experts == ExpertsConfig(
        8, 2, 48, normalize=True, normalize_eps=1e-6, score="sigmoid", choice_bias=True
    )
    with pytest.raises(UnsupportedModel, match="expert_gating_func 1"):
        read("lfm2moe", expert_gating_func=1)
    for key in ("expert_gating_func", "leading_dense_block_count"):
        with pytest.raises(CheckpointError, match=key):
            read("lfm2moe", **{key: None})


def test_layers_behind_the_model_are_not_its_own() -> None:
    config = read("qwen35", nextn_predict_layers=1, attention__recurrent_layers=[True, False] * 3)
    assert config["num_hidden_layers"] == LAYERS - 1
    assert config["layer_types"] == [RECURRENT, FULL, RECURRENT, FULL, RECURRENT]
    metadata = {"general.architecture": "qwen35", "qwen35.block_count": 2, "qwen35.nextn_predict_layers": 1}
    names = ["blk.0.ssm_a", "blk.1.attn_q.weight", "blk.1.nextn.eh_proj.weight"]
    assert tensor_names(metadata, names) == {"model.layers.0.linear_attn.A_log": "blk.0.ssm_a"}
    with pytest.raises(UnsupportedModel, match=r"blk\.1\.nextn"):
        tensor_names({"general.architecture": "qwen35", "qwen35.block_count": 2}, names)


def test_sections_of_rope_are_said_where_they_are_not_the_usual_ones() -> None:
    assert "rope_parameters" not in read("qwen35")
    said = read("qwen35moe", rope__dimension_sections=[1, 1, 0, 0])["rope_parameters"]
    assert said["mrope_section"] == [1, 1, 0]
    assert said["mrope_interleaved"] is True
    assert (said["rope_theta"], said["partial_rotary_factor"], said["rope_type"]) == (10000.0, 0.25, "default")
    assert read("qwen3next", rope__dimension_count=None)["partial_rotary_factor"] == 1.0


def test_layers_slide_as_each_architecture_has_it() -> None:
    assert read("gemma2")["layer_types"] == [SLIDING, FULL] * 3
    assert read("gemma3")["layer_types"] == [SLIDING] * 5 + [FULL]
    assert read("gpt-oss")["layer_types"] == [SLIDING, FULL] * 3
    assert "layer_types" not in read("olmo2")
    third = read("olmo2", attention__sliding_window=16)
    assert (third["model_type"], third["layer_types"]) == ("olmo3", [SLIDING] * 3 + [FULL] + [SLIDING] * 2)
    said = [True, True, False, True, False, False]
    pattern = read("olmo2", attention__sliding_window=16, attention__sliding_window_pattern=said)
    assert pattern["layer_types"] == [SLIDING if slides else FULL for slides in said]
    assert read("gemma3", attention__sliding_window_pattern=3)["layer_types"] == [SLIDING, SLIDING, FULL] * 2
    assert read("gemma3", attention__sliding_window_pattern=0)["layer_types"] == [SLIDING] * 6
    for bad in (-1, "6", [True]):
        with pytest.raises(CheckpointError, match="pattern"):
            read("gemma3", attention__sliding_window_pattern=bad)


def test_windows() -> None:
    assert read("phi3")["sliding_window"] is None
    assert read("phi3", attention__sliding_window=32)["sliding_window"] == 32
    mistral = read("llama", attention__sliding_window=32)
    assert (mistral["model_type"], mistral["sliding_window"]) == ("mistral", 32)
    assert read("llama", attention__sliding_window=64)["model_type"] == "llama"  # as long as the context: never slides
    assert read("gemma2", attention__sliding_window=None)["sliding_window"] == 4096
    assert read("exaone4", attention__sliding_window=0)["sliding_window"] is None
    slides = read("exaone4", attention__sliding_window=16)  # which llama.cpp does not read in so few layers
    assert [layer.rope is None for layer in parse(slides).layers] == [False, False, False, True, False, False]
    layers = parse(read("cohere2", attention__sliding_window_pattern=3)).layers
    assert [(layer.window, layer.rope is None) for layer in layers] == [(16, False), (16, False), (None, True)] * 2


def test_exaone_4_of_64_layers_slides_whether_it_says_so_or_not() -> None:
    many = dict.fromkeys((f"blk.{i}.attn_output.weight" for i in range(64)), (WIDTH, WIDTH))
    silent = read("exaone4", many, block_count=64, context_length=8192)
    assert (silent["sliding_window"], silent["layer_types"]) == (4096, ([SLIDING] * 3 + [FULL]) * 16)
    said = read("exaone4", many, block_count=64, attention__sliding_window=16, attention__sliding_window_pattern=2)
    assert (said["sliding_window"], said["layer_types"]) == (16, [SLIDING, FULL] * 32)


def test_how_much_of_a_head_of_glm_4_rotates() -> None:
    for count, dims in ((8, 8), (4, 4), (16, 16), (None, 16)):
        rope = parse(read("glm4", rope__dimension_count=count)).layers[0].rope
        assert rope is not None
        assert (rope.dims, rope.neighbours) == (dims, True)
    assert read("glm4", rope__dimension_sections=[0, 0, 0, 0])["partial_rotary_factor"] == 0.5


def test_mistral_3_with_and_without_what_is_its_own() -> None:
    rope = parse(read("mistral3")).layers[0].rope
    assert rope is not None
    assert (rope.query_growth, rope.original_max_positions, rope.attention_factor) == (0.1, 16, 1.0)
    usual = parse(read("mistral3", rope__scaling__yarn_log_multiplier=None)).layers[0].rope
    assert usual is not None
    assert usual.attention_factor == usual_attention_factor(4.0)
    both = (
        parse(read("mistral3", rope__scaling__yarn_log_multiplier=0.5, rope__scaling__attn_factor=1.5)).layers[0].rope
    )
    assert both is not None
    assert both.attention_factor == pytest.approx(1.5 * (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1))
    plain = read("mistral3", rope__scaling__type=None, attention__temperature_scale=None)
    assert (plain["model_type"], parse(plain).layers[0].rope) == ("mistral", RopeConfig(10000.0, 16))
    with pytest.raises(CheckpointError, match="temperature_scale"):
        read("mistral3", rope__scaling__type=None)


def test_olmo3_scales_the_rope_of_global_layers_only() -> None:
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 8.0, "rope__scaling__original_context_length": 16}
    config = read("olmo2", attention__sliding_window=16, **yarn)
    layers = parse(config).layers
    assert [layer.rope.scaling for layer in layers if layer.rope] == ["default"] * 3 + ["yarn"] + ["default"] * 2


def test_granites_numbers() -> None:
    config = read("granite")
    assert config["logits_scaling"] == 8.0
    assert config["embedding_multiplier"] == 12.0
    assert config["residual_multiplier"] == 0.22
    assert config["attention_multiplier"] == 0.015625
    bare = read("granite", embedding_scale=None, residual_scale=None, attention__scale=None)
    assert (bare["embedding_multiplier"], bare["residual_multiplier"]) == (1.0, 1.0)
    assert bare["attention_multiplier"] == 0.25
    with pytest.raises(CheckpointError, match=r"granite\.logit_scale"):
        read("granite", logit_scale=None)


def test_queries_of_gemma_are_scaled_by_the_size_of_the_model() -> None:
    assert read("gemma2")["query_pre_attn_scalar"] == 16
    wide = read("gemma2", attention__key_length=32, attention__value_length=32)
    assert wide["query_pre_attn_scalar"] == 32
    many = dict.fromkeys((f"blk.{i}.attn_norm.weight" for i in range(46)), (WIDTH,))
    large = read("gemma2", many, block_count=46, attention__key_length=32, attention__value_length=32)
    assert large["query_pre_attn_scalar"] == 16


def test_smollm3_does_not_rotate_every_fourth_layer() -> None:
    assert read("smollm3")["no_rope_layers"] == [1, 1, 1, 0, 1, 1]


def test_gpt_oss_keeps_yarns_bounds_as_they_are() -> None:
    scaling = read("gpt-oss")["rope_scaling"]
    assert scaling["rope_type"] == "yarn"
    assert scaling["truncate"] is False
    assert read("gpt-oss")["num_local_experts"] == 8


def test_longrope_factors_come_from_their_tensors() -> None:
    factors = {"rope_factors_long.weight": (6,), "rope_factors_short.weight": (6,)}
    config = read("phi3", factors, rope__scaling__attn_factor=1.25, rope__dimension_count=12)
    values = {"rope_factors_long.weight": np.full(6, 4.7, np.float32), "rope_factors_short.weight": np.ones(6, "f4")}
    config = with_rope_tensors(config, values.__getitem__)
    assert config["partial_rotary_factor"] == 0.75
    assert config["original_max_position_embeddings"] == 64
    rope = parse(config).layers[0].rope
    assert rope is not None
    assert (rope.dims, rope.attention_factor, rope.scaling) == (12, 1.25, "longrope")
    assert rope.long_factors == (4.7,) * 6
    assert rope.factors == (1.0,) * 6
    assert "rope_factors_long.weight" not in tensor_names({"general.architecture": "phi3"}, [*OUTER, *factors]).values()
    with pytest.raises(CheckpointError, match="rope_factors_short"):
        read("phi3", {"rope_factors_long.weight": (6,)})
    with pytest.raises(CheckpointError, match="rope_factors_short"):
        with_rope_tensors(read("phi3", factors), lambda name: np.zeros(6, np.float32))


def test_yarns_attention_factor() -> None:
    scaling = {
        "rope__scaling__type": "yarn",
        "rope__scaling__factor": 4.0,
        "rope__scaling__original_context_length": 16,
    }
    plain = parse(read("qwen2", **scaling)).layers[0].rope
    more = parse(read("qwen2", **scaling, rope__scaling__attn_factor=1.5)).layers[0].rope
    assert plain is not None
    assert more is not None
    assert plain.attention_factor == usual_attention_factor(4.0) == pytest.approx(0.1 * math.log(4) + 1)
    assert more.attention_factor == pytest.approx(1.5 * plain.attention_factor)


@pytest.mark.parametrize(
    ("architecture", "name", "expected"),
    [
        ("gpt-oss", "blk.3.attn_sinks.weight", "model.layers.3.self_attn.sinks"),
        ("gpt-oss", "blk.3.ffn_gate_inp.bias", "model.layers.3.mlp.router.bias"),
        ("gpt-oss", "blk.3.post_attention_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ("gpt-oss", "blk.3.ffn_up_exps.bias", "model.layers.3.mlp.switch_mlp.up_proj.bias"),
        ("qwen3moe", "blk.3.ffn_gate_inp.weight", "model.layers.3.mlp.gate.weight"),
        ("qwen3moe", "blk.3.ffn_down_exps.weight", "model.layers.3.mlp.switch_mlp.down_proj.weight"),
        ("phi3", "blk.3.attn_qkv.weight", "model.layers.3.self_attn.qkv_proj.weight"),
        ("phi3", "blk.3.ffn_up.weight", "model.layers.3.mlp.gate_up_proj.weight"),
        ("lfm2", "token_embd_norm.weight", "model.embedding_norm.weight"),
        ("lfm2", "blk.3.shortconv.conv.weight", "model.layers.3.conv.conv.weight"),
        ("lfm2", "blk.3.shortconv.in_proj.weight", "model.layers.3.conv.in_proj.weight"),
        ("lfm2", "blk.3.attn_output.weight", "model.layers.3.self_attn.out_proj.weight"),
        ("lfm2", "blk.3.ffn_up.weight", "model.layers.3.feed_forward.w3.weight"),
        ("lfm2moe", "blk.3.exp_probs_b.bias", "model.layers.3.feed_forward.expert_bias"),
        ("lfm2moe", "blk.3.ffn_gate_inp.weight", "model.layers.3.feed_forward.gate.weight"),
        ("lfm2moe", "blk.3.ffn_up_exps.weight", "model.layers.3.feed_forward.switch_mlp.up_proj.weight"),
        ("olmo2", "blk.3.post_ffw_norm.weight", "model.layers.3.post_feedforward_layernorm.weight"),
        ("qwen2", "blk.3.attn_q.bias", "model.layers.3.self_attn.q_proj.bias"),
        ("exaone4", "blk.3.post_ffw_norm.weight", "model.layers.3.post_feedforward_layernorm.weight"),
        ("seed_oss", "blk.3.post_attention_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ("glm4", "blk.3.post_attention_norm.weight", "model.layers.3.post_self_attn_layernorm.weight"),
        ("glm4", "blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ("hunyuan-dense", "blk.3.attn_k_norm.weight", "model.layers.3.self_attn.key_layernorm.weight"),
        ("gemma2", "blk.3.ffn_norm.weight", "model.layers.3.pre_feedforward_layernorm.weight"),
    ],
)
def test_names(architecture: str, name: str, expected: str) -> None:
    assert tensor_names({"general.architecture": architecture}, [name]) == {expected: name}


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("qwen3", "blk.0.attn_q.bias"),
        ("gemma2", "blk.0.attn_q_norm.weight"),
        ("phi3", "blk.0.ffn_gate.weight"),
        ("glm4", "blk.0.ffn_gate.weight"),
        ("glm4", "blk.5.nextn.eh_proj.weight"),
        ("exaone4", "blk.0.attn_norm.weight"),
        ("cohere2", "blk.0.ffn_norm.weight"),
        ("ernie4_5", "blk.0.attn_q.bias"),
        ("seed_oss", "blk.0.attn_output.bias"),
        ("hunyuan-dense", "blk.0.attn_v.bias"),
    ],
)
def test_a_tensor_without_a_place(architecture: str, name: str) -> None:
    with pytest.raises(UnsupportedModel, match=name.replace(".", r"\.")):
        tensor_names({"general.architecture": architecture}, [name])


def test_which_rows_are_permuted() -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    for architecture, row in ARCHITECTURES.items():
        expected = (4, 2, 2, 0) if architecture in ("llama", "granite", "smollm3", "mistral3") else (0, 0, 0, 0)
        parts = ("attn_q.weight", "attn_k.weight", "attn_k.bias", "attn_v.weight")
        assert tuple(permuted_heads(row, config, f"blk.0.{part}") for part in parts) == expected


@pytest.mark.parametrize(
    ("architecture", "keys", "what"),
    [
        ("llama", {"expert_count": 8}, "experts"),
        ("llama", {"logit_scale": 2.0}, r"llama\.logit_scale"),
        ("qwen2", {"attention__scale": 0.5}, r"qwen2\.attention\.scale"),
        ("olmo2", {"attention__clamp_kqv": 8.0}, "clamp_kqv"),
        ("llama", {"rope__dimension_count": 8}, "rotation of 8 of 16"),
        ("llama", {"attention__key_length": 16, "attention__value_length": 32}, "values of 32"),
        ("qwen3", {"rope__scaling__type": "longrope"}, "longrope"),
        ("glm4", {"rope__dimension_sections": [2, 2, 0, 0]}, "rotation in sections"),
        ("hunyuan-dense", {"rope__scaling__alpha": 1000.0}, r"hunyuan-dense\.rope\.scaling\.alpha"),
        ("mistral3", {"rope__dimension_count": 8}, "rotation of 8 of 16"),
        ("ernie4_5", {"expert_count": 8}, "experts"),
        ("seed_oss", {"attention__temperature_scale": 0.1}, "temperature_scale"),
    ],
)
def test_what_is_refused(architecture: str, keys: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedModel, match=what):
        read(architecture, **keys)


@pytest.mark.parametrize(
    "architecture",
    [name for name, row in ARCHITECTURES.items() if row.theta is ...],
)
def test_a_missing_rope_base_is_an_error(architecture: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{architecture}\.rope\.freq_base"):
        read(architecture, rope__freq_base=None)


WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 130),
    st.sampled_from([0, 2**31 - 1, 2**31, 2**63, 1e38, -1.0, 0.0, 1e-300, math.nan, math.inf, "", "yarn", "longrope"]),
    st.lists(st.one_of(st.integers(-2, 64), st.booleans()), max_size=8),
)
KEYS = sorted(
    {key for row in ARCHITECTURES.values() for key, _, _ in row.fields.values()}
    | {"embedding_length", "block_count", "attention.head_count", "attention.head_count_kv", "attention.key_length"}
    | {"attention.value_length", "context_length", "rope.freq_base", "rope.dimension_count", "rope.scaling.type"}
    | {"rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.original_context_length"}
    | {"attention.sliding_window_pattern", "attention.layer_norm_rms_epsilon", "feed_forward_length", "logit_scale"}
    | {"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scale_linear", "rope.dimension_sections"}
)
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "blk.0.attn_q.bias")


@settings(max_examples=400)
@given(
    st.sampled_from(sorted(ARCHITECTURES)),
    st.dictionaries(st.sampled_from(KEYS), WILD, max_size=6),
    st.lists(st.sampled_from(FACTORS), max_size=3, unique=True),
    st.lists(st.floats(width=32), min_size=8, max_size=8),
)
def test_any_values_are_a_config_or_a_typed_error(
    architecture: str, keys: dict[str, Any], factors: list[str], values: list[float]
) -> None:
    with contextlib.suppress(PartitaError):
        config = read(architecture, dict.fromkeys(factors, (8,)), **keys)
        parse(with_rope_tensors(config, lambda name: np.array(values, np.float32)))
