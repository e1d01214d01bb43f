"""Configs of Hugging Face, old and new spellings, and the values that must be refused by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.errors import CheckpointError, PartitaError, UnsupportedModel
from partita.model.config import RopeConfig
from partita.model.families.parse import FAMILIES, family, parse
from partita.model.rope import inverse_frequencies

from ... import tiny_models

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10_000.0,
}
GEMMA: dict[str, Any] = {
    **{k: v for k, v in LLAMA.items() if k != "hidden_act"},
    "model_type": "gemma3_text",
    "head_dim": 32,
    "num_hidden_layers": 7,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 128,
    "sliding_window_pattern": 6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": 128, "head_dim": 32}
SMOLLM3 = {**LLAMA, "model_type": "smollm3", "num_hidden_layers": 8, "no_rope_layer_interval": 4}
QWEN2 = {**LLAMA, "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1}
QWEN3 = {**QWEN2, "model_type": "qwen3", "head_dim": 32, "attention_bias": False}
GEMMA2 = {
    **{k: v for k, v in GEMMA.items() if k not in ("sliding_window_pattern", "rope_local_base_freq")},
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
PHI3 = {**LLAMA, "model_type": "phi3", "sliding_window": 128, "original_max_position_embeddings": 64}
LONGROPE: dict[str, Any] = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
}
OLMO2 = {**LLAMA, "model_type": "olmo2"}
OLMO3 = {**LLAMA, "model_type": "olmo3", "sliding_window": 128, "num_hidden_layers": 4}
GRANITE = {
    **LLAMA,
    "model_type": "granite",
    "attention_multiplier": 0.015625,
    "residual_multiplier": 0.22,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
}
GRANITE_SWA = {**GRANITE, "model_type": "granite_swa", "sliding_window": 128, "num_hidden_layers": 8}
EXAONE4 = {
    **QWEN3,
    "model_type": "exaone4",
    "num_hidden_layers": 6,
    "sliding_window": 128,
    "sliding_window_pattern": "LLG",
}
SEED_OSS = {**LLAMA, "model_type": "seed_oss"}
GLM4 = {**LLAMA, "model_type": "glm4"}
ERNIE = {**LLAMA, "model_type": "ernie4_5", "use_bias": False}
HUNYUAN = {**LLAMA, "model_type": "hunyuan_v1_dense", "head_dim": 16}
MELLUM = {
    **QWEN3,
    "model_type": "mellum",
    "num_hidden_layers": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
MINISTRAL3 = {**LLAMA, "model_type": "ministral3"}
COHERE2 = {
    **LLAMA,
    "model_type": "cohere2",
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.25,
    "sliding_window": 128,
    "num_hidden_layers": 5,
}
SAME_DECODER = {"ministral": "mistral"}
"""Families whose decoder is that of another, by whose models it is tested."""
EARLIER = [LLAMA, MISTRAL, SMOLLM3, QWEN2, QWEN3, GEMMA2, GEMMA, PHI3, OLMO2, OLMO3, GRANITE]
DENSE = [*EARLIER, GRANITE_SWA, EXAONE4, SEED_OSS, GLM4, ERNIE, HUNYUAN, MINISTRAL3, COHERE2]


def newer(config: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The same config in transformers 5's spelling of rope."""
    older = ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor")
    return {**{k: v for k, v in config.items() if k not in older}, "rope_parameters": parameters}


def windows(config: dict[str, Any]) -> list[int | None]:
    return [layer.window for layer in parse(config).layers]


def test_every_family_has_a_tiny_model() -> None:
    made = {values["model_type"] for values in tiny_models.FAMILIES.values()}
    assert made.isdisjoint(SAME_DECODER)
    assert made >= set(SAME_DECODER.values())
    assert made | set(SAME_DECODER) == set(FAMILIES)


def test_llama() -> None:
    config = parse(LLAMA)
    assert config.head_dim == 16
    assert config.attention_scale == 0.25
    assert config.layers[0].window is None
    assert config.layers[0].rope == RopeConfig(10_000.0, 16)
    assert not config.tie_embeddings


def test_gemma_slides_five_layers_of_six_with_their_own_base() -> None:
    config = parse(GEMMA)
    assert [layer.window for layer in config.layers] == [128] * 5 + [None, 128]
    assert [layer.rope and layer.rope.theta for layer in config.layers] == [1e4] * 5 + [1e6, 1e4]
    assert config.embedding_scale == math.sqrt(64)
    assert config.attention_scale == 1 / 16
    assert config.norm_adds_one
    assert config.tie_embeddings


def test_mistral_slides_everywhere_or_nowhere_or_where_layer_types_says() -> None:
    assert windows(MISTRAL) == [128, 128]
    assert windows({**MISTRAL, "sliding_window": None}) == [None, None]
    types = ["full_attention", "sliding_attention"]
    assert windows({**MISTRAL, "layer_types": types}) == [None, 128]
    assert windows({**MISTRAL, "model_type": "ministral", "layer_types": types}) == [None, 128]
    assert parse(MISTRAL).head_dim == 32


def test_exaone_4_rotates_where_it_slides() -> None:
    assert windows(EXAONE4) == [128, 128, None, 128, 128, None]
    assert windows({**EXAONE4, "sliding_window_pattern": 2}) == [128, None] * 3
    assert windows({**EXAONE4, "sliding_window_pattern": "GLL"}) == [None, 128, 128, None, 128, None]
    assert [layer.rope is None for layer in parse(EXAONE4).layers] == [False, False, True] * 2
    full = parse({**EXAONE4, "sliding_window": None})
    assert [(layer.window, layer.rope is None) for layer in full.layers] == [(None, False)] * 6
    with pytest.raises(CheckpointError, match="sliding_window_pattern"):
        parse({**EXAONE4, "sliding_window_pattern": "LLX"})


def test_granite_swa_has_a_base_for_each_layer() -> None:
    plain = parse(GRANITE_SWA)
    assert [layer.window for layer in plain.layers] == [None, 128, 128, 128] * 2
    assert plain.sink_logits
    bases = [0, 1e4, 2e4, 3e4] * 2
    layers = parse({**GRANITE_SWA, "layer_rope_theta": bases}).layers
    assert [0 if layer.rope is None else layer.rope.theta for layer in layers] == bases
    for wrong in ([0, 1e4], "1e4", [0, -1, 1, 1] * 2):
        with pytest.raises(CheckpointError, match="layer_rope_theta"):
            parse({**GRANITE_SWA, "layer_rope_theta": wrong})
    with pytest.raises(UnsupportedModel, match="layer_rope_theta"):
        parse({**GRANITE, "layer_rope_theta": bases})


def test_biases_are_where_the_family_has_them() -> None:
    def places(config: dict[str, Any]) -> tuple[bool, bool, bool]:
        parsed = parse(config)
        return parsed.attention_bias, parsed.attention_out_bias, parsed.mlp_bias

    assert places(SEED_OSS) == (True, False, False)
    assert places({**SEED_OSS, "attention_bias": False, "attention_out_bias": True}) == (False, True, False)
    assert places(GLM4) == (True, False, False)
    assert places({**ERNIE, "use_bias": True}) == (True, True, True)
    assert places({**HUNYUAN, "attention_bias": True}) == (True, True, False)
    with pytest.raises(UnsupportedModel, match="use_bias"):
        parse({**LLAMA, "use_bias": True})


def test_neighbours_rotate_in_glm_ernie_and_cohere() -> None:
    for config, dims in ((GLM4, 8), (ERNIE, 16), (COHERE2, 16)):
        rope = parse(config).layers[0].rope
        assert rope is not None
        assert (rope.neighbours, rope.dims) == (True, dims)
    assert [layer.rope is None for layer in parse(COHERE2).layers] == [False, False, False, True, False]


def test_hunyuans_alpha_is_a_base() -> None:
    """As transformers has it: the base times alpha to the power of dims / (dims - 2), for any length."""
    scaling = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}
    rope = parse({**HUNYUAN, "rope_scaling": scaling}).layers[0].rope
    dims = HUNYUAN["head_dim"]
    assert rope == RopeConfig(HUNYUAN["rope_theta"] * 1000 ** (dims / (dims - 2)), dims)
    with pytest.raises(UnsupportedModel, match="'dynamic'"):
        parse({**HUNYUAN, "rope_scaling": {"type": "dynamic", "factor": 2.0}})
    with pytest.raises(CheckpointError, match="head_dim"):
        parse({**HUNYUAN, "head_dim": 2, "rope_scaling": scaling})


@pytest.mark.parametrize("kinds", [3, ["dense"], [[], "sparse"], ["dense", "other"]])
def test_kinds_of_mellums_mlps(kinds: Any) -> None:
    parameters = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
    config = newer(MELLUM, parameters)
    assert [layer.experts for layer in parse({**config, "mlp_layer_types": ["dense", "sparse"]}).layers] == [
        False,
        True,
    ]
    assert [layer.experts for layer in parse(config).layers] == [True, True]
    with pytest.raises(CheckpointError, match="mlp_layer_types must say"):
        parse({**config, "mlp_layer_types": kinds})


def test_queries_of_ministral_3_grow() -> None:
    scaling = {**YARN, "llama_4_scaling_beta": 0.1}
    older = parse({**MINISTRAL3, "rope_scaling": scaling})
    newer_spelling = newer(MINISTRAL3, {**scaling, "rope_theta": MINISTRAL3["rope_theta"]})
    assert older == parse(newer_spelling)
    rope = older.layers[0].rope
    assert rope is not None
    assert (rope.query_growth, rope.original_max_positions) == (0.1, YARN["original_max_position_embeddings"])
    with pytest.raises(UnsupportedModel, match="llama_4_scaling_beta"):
        parse({**MISTRAL, "rope_scaling": scaling})


def test_a_window_as_long_as_the_trained_maximum_is_full_attention() -> None:
    assert windows({**PHI3, "sliding_window": 512}) == [None, None]
    assert windows({**PHI3, "sliding_window": 511}) == [511, 511]
    extended = {**MISTRAL, "sliding_window": 512, "rope_scaling": YARN}  # to 4 * 256 tokens
    assert parse(extended).max_positions == 1024
    assert windows(extended) == [512, 512]


def test_smollm3_leaves_layers_without_rope() -> None:
    rotating = [layer.rope is not None for layer in parse(SMOLLM3).layers]
    assert rotating == [True, True, True, False] * 2
    said = {**SMOLLM3, "no_rope_layers": [0, 1] * 4}
    assert [layer.rope is not None for layer in parse(said).layers] == [False, True] * 4
    assert windows(said) == [None] * 8
    assert windows({**said, "use_sliding_window": True, "sliding_window": 32}) == [32, None] * 4
    assert parse(SMOLLM3).tie_embeddings


def test_qwen_slides_where_it_says_and_has_biases_in_its_second_generation() -> None:
    for config in (QWEN2, QWEN3):
        assert windows(config) == [None, None]
        assert windows({**config, "use_sliding_window": True}) == [None, 64]
        types = ["sliding_attention", "full_attention"]
        assert windows({**config, "use_sliding_window": True, "layer_types": types}) == [64, None]
    second, third = parse(QWEN2), parse(QWEN3)
    assert (second.attention_bias, second.attention_out_bias, second.qk_norm) == (True, False, "none")
    assert (third.attention_bias, third.attention_out_bias, third.qk_norm) == (False, False, "head")


def test_gemma2_alternates_and_caps() -> None:
    config = parse(GEMMA2)
    assert [layer.window for layer in config.layers] == [128, None] * 3 + [128]
    assert (config.attention_softcap, config.logit_softcap) == (50.0, 30.0)
    assert (config.qk_norm, config.norm_adds_one, config.tie_embeddings) == ("none", True, True)


def test_phi_rotates_a_part_and_has_two_kinds_of_factors() -> None:
    half = {name: value[:4] if isinstance(value, list) else value for name, value in LONGROPE.items()}
    old = parse({**PHI3, "rope_scaling": half, "partial_rotary_factor": 0.5})
    new = newer(PHI3, {**half, "rope_theta": 1e4, "rope_type": "longrope", "partial_rotary_factor": 0.5})
    assert parse(new) == old
    rope = old.layers[0].rope
    assert rope is not None
    assert (rope.dims, rope.scaling) == (8, "longrope")
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(8) / math.log(64)))
    assert rope.for_context(64).factors == (1.0, 1.1, 1.2, 1.3)
    assert rope.for_context(65).factors == (1.0, 2.0, 3.0, 4.0)
    for name in ("su", "yarn"):  # what the family called it before
        assert parse({**PHI3, "rope_scaling": {**half, "type": name}, "partial_rotary_factor": 0.5}) == old


def test_longrope_is_chosen_once_by_the_caches_context() -> None:
    config, kv = parse({**PHI3, "rope_scaling": LONGROPE}), KVFormat(32, 32)
    chosen = {context: plan(config, kv, context=context).layers[0].rope for context in (None, 65, 64)}
    factors = {context: rope and rope.factors[1] for context, rope in chosen.items()}
    assert factors == {None: 2.0, 65: 2.0, 64: 1.1}


def test_olmo_slides_three_layers_of_four_and_scales_the_fourth() -> None:
    config = parse({**OLMO3, "rope_scaling": YARN, "rope_theta": 5e5})
    assert [layer.window for layer in config.layers] == [128, 128, 128, None]
    ropes = [layer.rope for layer in config.layers]
    assert [rope and (rope.theta, rope.scaling) for rope in ropes] == [(5e5, "default")] * 3 + [(5e5, "yarn")]
    local = {"rope_type": "default", "rope_theta": 5e5}
    nested = {"sliding_attention": local, "full_attention": {**YARN, "rope_theta": 5e5}}
    assert parse(newer(OLMO3, nested)) == config
    assert config.qk_norm == parse(OLMO2).qk_norm == "full"
    assert family(OLMO3).names.attention_norm is None


def test_granite_has_four_multipliers() -> None:
    config = parse(GRANITE)
    assert (config.attention_scale, config.embedding_scale) == (0.015625, 12.0)
    assert (config.residual_scale, config.logit_scale) == (0.22, 0.125)


@pytest.mark.parametrize("base", DENSE, ids=lambda config: config["model_type"])
def test_rope_is_read_from_either_place(base: dict[str, Any]) -> None:
    theta = {"rope_type": "default", "rope_theta": 5e5}
    local = {"rope_type": "default", "rope_theta": base.get("rope_local_base_freq", 5e5)}
    nested = {"full_attention": theta, "sliding_attention": local}
    parameters = nested if base in (GEMMA, OLMO3) else theta
    assert parse(newer(base, parameters)) == parse({**base, "rope_theta": 5e5})
    assert parse({**newer(base, {}), "rope_parameters": None, **base}) == parse(base)
    for missing in ({}, None, {"rope_type": "default"}, {"full_attention": {}, "sliding_attention": {}}):
        with pytest.raises(CheckpointError, match="rope"):
            parse(newer(base, missing))  # pyright: ignore[reportArgumentType]


def test_rope_scaling_touches_gemmas_global_layers_only() -> None:
    types = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    old = parse({**GEMMA, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert parse(newer(GEMMA, types)) == old
    assert [layer.rope and layer.rope.scaling for layer in old.layers[4:6]] == ["default", "linear"]


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"model_type": "mamba"}, UnsupportedModel, "mamba"),
        ({"model_type": None}, UnsupportedModel, "None"),
        ({"rope_theta": None}, CheckpointError, "rope_theta"),
        ({"rope_theta": -1}, CheckpointError, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attn_factor": 2.0}}, UnsupportedModel, "attn_factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedModel, "dynamic"),
        ({"hidden_act": "relu2"}, UnsupportedModel, "relu2"),
        ({"num_key_value_heads": 3}, CheckpointError, "3 key-value heads"),
        ({"num_hidden_layers": 0}, CheckpointError, "num_hidden_layers"),
        ({"hidden_size": "64"}, CheckpointError, "hidden_size"),
        ({"vocab_size": 0}, CheckpointError, "vocab_size"),
        ({"num_attention_heads": 0}, CheckpointError, "num_attention_heads"),
        ({"max_position_embeddings": 0}, CheckpointError, "max_position_embeddings"),
        ({"rope_theta": float("inf")}, CheckpointError, "rope_theta"),
        ({"rope_scaling": "x"}, CheckpointError, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, CheckpointError, "factor"),
        ({"partial_rotary_factor": "a"}, CheckpointError, "partial_rotary_factor"),
        ({"logits_scaling": 8.0}, UnsupportedModel, "logits_scaling"),
        ({"sliding_window": 64}, UnsupportedModel, "sliding_window"),
        ({**GEMMA, "sliding_window_pattern": 0}, CheckpointError, "sliding_window_pattern"),
        ({**GEMMA, "layer_types": 7}, CheckpointError, "layer_types"),
        ({"rms_norm_eps": None}, CheckpointError, "rms_norm_eps"),
        ({**GEMMA, "layer_types": ["full_attention"] * 3}, CheckpointError, "layer_types names 3"),
        ({**GEMMA, "layer_types": ["chunked_attention"] * 7}, UnsupportedModel, "chunked_attention"),
        ({**GEMMA, "sliding_window_pattern": None}, CheckpointError, "layer_types"),
        ({**GEMMA, "rope_local_base_freq": None}, CheckpointError, "rope_theta"),
        ({**GEMMA, "use_bidirectional_attention": True}, UnsupportedModel, "use_bidirectional_attention"),
        ({"layer_types": ["sliding_attention"] * 2}, UnsupportedModel, "layer_types"),
        ({"num_experts": 8}, UnsupportedModel, "num_experts"),
        ({"attention_bias": "yes"}, CheckpointError, "attention_bias"),
        ({"hidden_size": 3}, CheckpointError, "hidden_size"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}}, UnsupportedModel, "mrope_section"),
        ({"rope_scaling": {**YARN, "llama_4_scaling_beta": 0.1}}, UnsupportedModel, "llama_4_scaling_beta"),
        ({"rope_scaling": {**YARN, "truncate": 1}}, CheckpointError, "truncate"),
        ({"rope_scaling": {**YARN, "factor": "x"}}, CheckpointError, "factor"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, CheckpointError, "rope_theta"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, CheckpointError, "low_freq_factor"),
        ({"rope_scaling": LONGROPE | {"long_factor": [1.0]}}, CheckpointError, "long_factor"),
        ({"rope_scaling": LONGROPE | {"short_factor": [0.0] * 8}}, CheckpointError, "short_factor"),
        ({"rope_scaling": LONGROPE | {"long_mscale": 1.2}}, UnsupportedModel, "long_mscale"),
        ({"partial_rotary_factor": 0.01}, CheckpointError, "partial_rotary_factor"),
        ({**MISTRAL, "sliding_window": "x"}, CheckpointError, "sliding_window"),
        ({**MISTRAL, "query_pre_attn_scalar": 256}, UnsupportedModel, "query_pre_attn_scalar"),
        ({**SMOLLM3, "no_rope_layers": [1, 0]}, CheckpointError, "no_rope_layers"),
        ({**SMOLLM3, "no_rope_layer_interval": None}, CheckpointError, "no_rope_layer_interval"),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": None}, CheckpointError, "max_window_layers"),
        ({**QWEN2, "layer_types": ["sliding_attention"] * 2}, CheckpointError, "use_sliding_window"),
        ({**QWEN3, "head_dim": None}, CheckpointError, "head_dim"),
        ({**GEMMA2, "query_pre_attn_scalar": None}, CheckpointError, "query_pre_attn_scalar"),
        ({**PHI3, "attention_bias": True}, UnsupportedModel, "attention_bias"),
        ({**OLMO2, "sliding_window": 64}, UnsupportedModel, "sliding_window"),
        ({**OLMO3, "sliding_window": None}, CheckpointError, "sliding_window"),
        ({**GRANITE, "residual_multiplier": None}, CheckpointError, "residual_multiplier"),
    ],
)
def test_what_changes_the_mathematics_is_refused_by_name(
    change: dict[str, Any], error: type[PartitaError], named: str
) -> None:
    with pytest.raises(error, match=named):
        parse({**LLAMA, **change})


JUNK = st.sampled_from(
    [None, True, -1, 0, 0.5, float("nan"), float("inf"), 2**70, "x", "", [], [1], {}, {"rope_type": 1}]
)


@settings(max_examples=300)
@given(base=st.sampled_from(DENSE), data=st.data())
def test_any_config_is_parsed_or_refused(base: dict[str, Any], data: st.DataObject) -> None:
    keys = [*base, "rope_scaling", "rope_parameters", "layer_types", "partial_rotary_factor", "head_dim"]
    changed = data.draw(st.dictionaries(st.sampled_from(keys), JUNK, min_size=1, max_size=3))
    try:
        parsed = parse({**base, **changed})
    except PartitaError:
        return
    for rope in {layer.rope for layer in parsed.layers if layer.rope is not None}:
        assert np.isfinite(inverse_frequencies(rope.for_context(100))).all()


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FACTORS = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1 + i / 50 for i in range(32)],
    "long_factor": [1 + i / 2 for i in range(32)],
}


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3,
        YARN,
        {**YARN, "beta_fast": 8.0, "beta_slow": 0.5},
        {**YARN, "truncate": False},
        {**YARN, "attention_factor": 1.3},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1},
        {**YARN, "mscale": 0.7},
        {**YARN, "factor": 1.0},
        {**YARN, "beta_fast": 64.0, "beta_slow": 63.0, "original_max_position_embeddings": 16},
        FACTORS,
        {**FACTORS, "attention_factor": 1.2},
        {**FACTORS, "factor": 3.0},
    ],
    ids=lambda scaling: "-".join(str(x) for x in scaling.values() if not isinstance(x, list)),
)
def test_scaled_frequencies_equal_transformers(scaling: dict[str, Any], theta: float) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = {**LLAMA, "rope_theta": theta, "head_dim": 64}
    theirs = LlamaConfig(**{**config, "rope_parameters": {"rope_theta": theta, **scaling}})
    rope = parse({**config, "rope_scaling": scaling}).layers[0].rope
    assert rope is not None
    for length in (64, 65):
        expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, "cpu", seq_len=length)
        np.testing.assert_allclose(inverse_frequencies(rope.for_context(length)), expected.numpy(), rtol=1e-5)
        assert rope.attention_factor == pytest.approx(factor)
