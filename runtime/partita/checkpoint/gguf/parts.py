"""What GGUF calls the parts of a model, in tables that architectures put together.

Not here: which architecture has which of them (`architectures`), or in which order a part's rows are (`arrangement`).
"""

from __future__ import annotations

from collections.abc import Mapping

ROPE_FACTORS = "rope_freqs.weight"
NEVER = 1e30
"""The divisor of a pair of dims that does not turn."""
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"

OUTER_NAMES: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "per_layer_token_embd.weight": "model.embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
}
ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
EXPERTS = {
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
}
PRE_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
LLAMA = {**ATTENTION, **MLP, **PRE_NORMS}
GEMMA2 = {
    **ATTENTION,
    **MLP,
    **POST_NORMS,
    "attn_norm": "input_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
}
_BESIDE = "experts.switch_glu"
GEMMA4 = {
    **GEMMA2,
    **QK_NORMS,
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "layer_output_scale.weight": "layer_scalar",
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "ffn_gate_up_exps": f"{_BESIDE}.gate_up_proj",
    "ffn_gate_exps": f"{_BESIDE}.gate_proj",
    "ffn_up_exps": f"{_BESIDE}.up_proj",
    "ffn_down_exps": f"{_BESIDE}.down_proj",
}
"""A part that is named with what stands behind it has no ".weight" in Hugging Face."""
PHI3 = {
    **PRE_NORMS,
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
GPT_OSS = {
    **ATTENTION,
    **EXPERTS,
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "attn_sinks": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
}
SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_DELTA = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_GATED = {
    **ATTENTION,
    **QK_NORMS,
    **_DELTA,
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
}
SPARSE = {**EXPERTS, "ffn_gate_inp": "mlp.gate"}
OUTER_LFM2: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "token_embd_norm.weight": "model.embedding_norm.weight",
    "output.weight": "lm_head.weight",
}
LFM2 = {
    **ATTENTION,
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "shortconv.in_proj.weight": "conv.in_proj.weight",
    "shortconv.conv.weight": "conv.conv.weight",
    "shortconv.out_proj.weight": "conv.out_proj.weight",
}
LFM2_MOE = {
    **LFM2,
    **{part: f"feed_forward.{called.removeprefix('mlp.')}" for part, called in SPARSE.items()},
    "exp_probs_b.bias": "feed_forward.expert_bias",
}
_SPARSE = {**SPARSE, **SHARED_EXPERT, "ffn_gate_up_exps": "mlp.switch_mlp.gate_up_proj"}
_BETA_AND_ALPHA = {"ssm_beta": "linear_attn.in_proj_b", "ssm_alpha": "linear_attn.in_proj_a"}
QWEN35 = {**_GATED, **_BETA_AND_ALPHA, **MLP}
QWEN35_MOE = {**_GATED, **_BETA_AND_ALPHA, **_SPARSE}
QWEN3_NEXT = {**_GATED, **_SPARSE, "ssm_ba": "linear_attn.in_proj_ba", "ssm_in": "linear_attn.in_proj_qkvz"}
BY_KEY_HEADS: Mapping[str, tuple[str, ...]] = {
    "ssm_ba": ("linear_attn.in_proj_b", "linear_attn.in_proj_a"),
    "ssm_in": ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),  # of old files, for attn_qkv and attn_gate
}
"""Parts whose rows go by key heads, and what they are read as."""
GATE_AND_UP = "ffn_gate_up_exps"
"""Stacks of experts whose rows are those of gate, then those of up."""
QKV = frozenset({"attn_q", "attn_k", "attn_v"})
LINEAR = frozenset({*ATTENTION, *MLP})
BARE_NAMES: Mapping[str, str] = {"attn_sinks": ".weight", "ssm_a": "", "ssm_dt": ".bias"}
"""Parts that Hugging Face names without ".weight", and what stands behind their names in GGUF."""
CONSTANTS = frozenset({"attn_rot_embd"})
"""Parts of old files that repeat what the keys say, which nobody reads."""


def read_as(part: str, called: str) -> tuple[str, ...]:
    """What a part is read as, that is called so in Hugging Face: itself, or those whose rows it holds."""
    if part == GATE_AND_UP:
        return called.replace("gate_up_proj", "gate_proj"), called.replace("gate_up_proj", "up_proj")
    return BY_KEY_HEADS.get(part, (called,))
