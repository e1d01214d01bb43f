"""GGUF's architectures as rows of one table: what their tensors are called in a Hugging Face checkpoint, and what a
config.json says beyond the fields that all of them have. Read by `names`, and backwards by the converter.

Not here: reading files, or what a config means for the mathematics (that is `families`' work). Invariant: a field that
GGUF leaves out has a value here only where the architecture's readers fix it; these are llama.cpp's conventions:

    llama, granite, smollm3,  rows of q and k (and their biases) are permuted: rotation is of neighbouring pairs
    mistral3
    glm4, ernie4_5, cohere2   the same rotation, and rows as in Hugging Face, where it is of neighbours too
    gemma2, gemma3            norms hold 1 + w; queries are scaled by head_dim ** -0.5, but in the models of 46 and of
                              62 layers, where it is (hidden_size / heads) ** -0.5
    gemma2, gpt-oss           of each two layers the second is global; one in four is in olmo2, one in six in gemma3;
                              a pattern key says otherwise
    smollm3                   every fourth layer does not rotate
    phi3                      q, k and v are one matrix, and gate and up are
    olmo2                     OLMo 2, and with a sliding window OLMo 3, whose sliding layers' rope is never scaled
    qwen3moe, gpt-oss         experts are stacks (experts, out, in); qwen3moe divides the chosen weights by their sum
    gpt-oss                   yarn's two bounds are not rounded in the model, though llama.cpp rounds them
    seed_oss                  post_attention_norm is the norm before the MLP
    glm4                      gate and up are one matrix; with sections of rope (GLM-4V) rows are those of halves
    exaone4                   a model of 64 layers slides, by 4096 if no key says another window, and no other does;
                              there one layer in four is global and does not rotate
    cohere2                   layer norms with a key of their own; every fourth layer is global and does not rotate; its
                              head is the embedding
    exaone4, cohere2          heads together are as wide as the model
    hunyuan-dense             queries and keys are normed after rotation; the base of a "dynamic" rope holds its alpha
    mistral3                  yarn's log multiplier is Hugging Face's mscale_all_dim beside an mscale of 1; queries grow
                              by attention.temperature_scale, each original context anew; without yarn, Mistral
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import extensions
from .keys import Keys

Config = extensions.Config
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"

OUTER_NAMES: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    ROPE_FACTORS: ROPE_FACTORS,  # Hugging Face has no tensor for it: its numbers belong to the config
}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_EXPERTS = {
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
}
_PRE_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_LLAMA = {**_ATTENTION, **_MLP, **_PRE_NORMS}
_GEMMA2 = {
    **_ATTENTION,
    **_MLP,
    **_POST_NORMS,
    "attn_norm": "input_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
}
_PHI3 = {
    **_PRE_NORMS,
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT_OSS = {
    **_ATTENTION,
    **_EXPERTS,
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "attn_sinks": "self_attn.sinks",
    "ffn_gate_inp": "mlp.router",
}
_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_LINEAR = frozenset({*_ATTENTION, *_MLP})
BARE_NAMES = frozenset({"attn_sinks"})
"""Parts that Hugging Face names without ".weight"."""
CONSTANTS = frozenset({"attn_rot_embd"})
"""Parts of old files that repeat what the keys say, which nobody reads."""


@dataclass(frozen=True)
class Architecture:
    """One row.

    model_type, class_name: how config.json calls it. written: the model types that are written under it.
    layer_names: part of a GGUF layer's tensor to part of a Hugging Face one's. biased: the parts that may have a bias.
    permuted: rows of q and k.
    fields: config field to (key after "<architecture>.", type, default); ... where the key must be there.
    constants: fields that every file of the architecture means. theta: the rope base where the key is missing; ... if
    it must be there. period: of the layers, the last of each is global; None: no layer slides. slides_at: the number
    of layers of the one model that slides; None: any may. square: whether heads together must be as wide as the model.
    factors: tensors of rope factors that its readers take. own_output: whether they need `output.weight`. tied: whether
    they know none. extend: fields that take more than a key.
    """

    model_type: str
    class_name: str
    layer_names: Mapping[str, str]
    written: tuple[str, ...]
    biased: frozenset[str] = frozenset()
    permuted: bool = False
    norms_include_one: bool = False
    fields: Mapping[str, tuple[str, type, Any]] = field(default_factory=dict[str, tuple[str, type, Any]])
    constants: Mapping[str, Any] = field(default_factory=dict[str, Any])
    theta: Any = ...
    period: int | None = None
    slides_at: int | None = None
    square: bool = False
    factors: frozenset[str] = frozenset()
    own_output: bool = False
    tied: bool = False
    extend: Callable[[Keys, Config], Config] = lambda keys, config: config


_SILU = {"hidden_act": "silu"}
_QWEN = {**_SILU, "use_sliding_window": False}
_GELU = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        _LLAMA,
        written=("llama", "mistral", "ministral"),
        biased=_LINEAR,
        permuted=True,
        constants=_SILU,
        theta=10000.0,
        factors=frozenset({ROPE_FACTORS}),
        extend=extensions.llama,
    ),
    "smollm3": Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        _LLAMA,
        written=("smollm3",),
        biased=_LINEAR,
        permuted=True,
        constants=_QWEN,
        extend=extensions.smollm3,
    ),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        _LLAMA,
        written=("granite",),
        biased=_LINEAR,
        permuted=True,
        fields={
            "attention_multiplier": ("attention.scale", float, None),
            "embedding_multiplier": ("embedding_scale", float, 1.0),
            "residual_multiplier": ("residual_scale", float, 1.0),
            "logits_scaling": ("logit_scale", float, ...),
        },
        constants=_SILU,
        theta=10000.0,
        factors=frozenset({ROPE_FACTORS}),
        extend=extensions.granite,
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _LLAMA, written=("qwen2",), biased=_QKV, constants=_QWEN),
    "qwen3": Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        {**_LLAMA, **_QK_NORMS},
        written=("qwen3",),
        constants={**_QWEN, "attention_bias": False},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**_ATTENTION, **_EXPERTS, **_PRE_NORMS, **_QK_NORMS, "ffn_gate_inp": "mlp.gate"},
        written=("qwen3_moe",),
        fields={
            "num_experts": ("expert_count", int, ...),
            "num_experts_per_tok": ("expert_used_count", int, ...),
            "moe_intermediate_size": ("expert_feed_forward_length", int, ...),
        },
        constants={
            **_QWEN,
            "attention_bias": False,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA2,
        written=("gemma2",),
        norms_include_one=True,
        fields={
            "sliding_window": ("attention.sliding_window", int, 4096),
            "attn_logit_softcapping": ("attn_logit_softcapping", float, 50.0),
            "final_logit_softcapping": ("final_logit_softcapping", float, 30.0),
        },
        constants=_GELU,
        theta=10000.0,
        period=2,
        extend=extensions.gemma(46),
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**_GEMMA2, **_QK_NORMS},
        written=("gemma3_text", "gemma3"),
        norms_include_one=True,
        fields={
            "sliding_window": ("attention.sliding_window", int, ...),
            "rope_local_base_freq": ("rope.freq_base_swa", float, 10000.0),
            "attn_logit_softcapping": ("attn_logit_softcapping", float, None),
            "final_logit_softcapping": ("final_logit_softcapping", float, None),
        },
        constants=_GELU,
        period=6,
        extend=extensions.gemma(62),
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        _PHI3,
        written=("phi3",),
        fields={"sliding_window": ("attention.sliding_window", int, 0)},
        constants=_SILU,
        theta=10000.0,
        factors=frozenset({LONG_FACTORS, SHORT_FACTORS}),
        extend=extensions.phi3,
    ),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        {**_ATTENTION, **_MLP, **_POST_NORMS, **_QK_NORMS},
        written=("olmo2", "olmo3"),
        constants={**_SILU, "attention_bias": False},
        period=4,
        own_output=True,
        extend=extensions.olmo2,
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        "GptOssForCausalLM",
        _GPT_OSS,
        written=("gpt_oss",),
        biased=frozenset({*_ATTENTION, *_EXPERTS, "ffn_gate_inp"}),
        fields={
            "num_local_experts": ("expert_count", int, ...),
            "num_experts_per_tok": ("expert_used_count", int, ...),
            "intermediate_size": ("expert_feed_forward_length", int, ...),
            "sliding_window": ("attention.sliding_window", int, ...),
        },
        constants={**_SILU, "attention_bias": True, "swiglu_limit": 7.0},
        period=2,
        own_output=True,
        extend=extensions.gpt_oss,
    ),
    "exaone4": Architecture(
        "exaone4",
        "Exaone4ForCausalLM",
        {**_ATTENTION, **_MLP, **_POST_NORMS, **_QK_NORMS},
        written=("exaone4",),
        fields={"sliding_window": ("attention.sliding_window", int, None)},
        constants=_SILU,
        period=4,
        slides_at=extensions.EXAONE_LAYERS,
        square=True,
        factors=frozenset({ROPE_FACTORS}),
        extend=extensions.exaone4,
    ),
    "seed_oss": Architecture(
        "seed_oss",
        "SeedOssForCausalLM",
        {**_ATTENTION, **_MLP, "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"},
        written=("seed_oss",),
        biased=_QKV,
        constants={**_SILU, "attention_out_bias": False, "mlp_bias": False},
        extend=extensions.qkv_biases,
    ),
    "glm4": Architecture(
        "glm4",
        "Glm4ForCausalLM",
        {
            **_ATTENTION,
            **_PRE_NORMS,
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        written=("glm4",),
        biased=_QKV,
        constants=_SILU,
        extend=extensions.glm4,
    ),
    "ernie4_5": Architecture(
        "ernie4_5",
        "Ernie4_5ForCausalLM",
        _LLAMA,
        written=("ernie4_5",),
        constants={**_SILU, "use_bias": False},
    ),
    "hunyuan-dense": Architecture(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        {**_LLAMA, "attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
        written=("hunyuan_v1_dense",),
        constants={**_SILU, "attention_bias": False},
    ),
    "mistral3": Architecture(
        "ministral3",
        "Ministral3ForCausalLM",
        _LLAMA,
        written=("ministral3",),
        biased=_LINEAR,
        permuted=True,
        fields={
            "temperature_scale": ("attention.temperature_scale", float, None),
            "yarn_log_multiplier": ("rope.scaling.yarn_log_multiplier", float, None),
        },
        constants=_SILU,
        factors=frozenset({ROPE_FACTORS}),
        extend=extensions.mistral3,
    ),
    "cohere2": Architecture(
        "cohere2",
        "Cohere2ForCausalLM",
        {**_ATTENTION, **_MLP, "attn_norm": "input_layernorm"},
        written=("cohere2",),
        fields={
            "rms_norm_eps": ("attention.layer_norm_epsilon", float, ...),
            "logit_scale": ("logit_scale", float, ...),
            "sliding_window": ("attention.sliding_window", int, ...),
        },
        constants={**_SILU, "attention_bias": False},
        period=4,
        square=True,
        tied=True,
        extend=extensions.cohere2,
    ),
}
