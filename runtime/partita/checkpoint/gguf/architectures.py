"""GGUF's architectures as rows of one table: what their tensors are called in a Hugging Face checkpoint, and what a
config.json says beyond the fields that all of them have. Read by `names`, and backwards by the converter.

Not here: reading files, or what a config means for the mathematics (that is `families`' work). Invariant: a field that
GGUF leaves out has a value here only where the architecture's readers fix it; these are llama.cpp's conventions:

    llama, granite, smollm3,  rows of q and k (and their biases) are permuted: rotation is of neighbouring pairs
    mistral3
    glm4, ernie4_5, cohere2   the same rotation, and rows as in Hugging Face, where it is of neighbours too
    gemma2, gemma3            norms hold 1 + w; queries are scaled by head_dim ** -0.5, but in the models of 46 and of
                              62 layers, where it is (hidden_size / heads) ** -0.5
    gemma4                    norms do not hold 1 + w; the file says how wide heads of global layers are, and apart from
                              that of sliding ones; keys without values are both; rope_freqs divides a pair of global
                              layers that does not turn by 1e30
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
    qwen35, qwen35moe         value heads are tiled (`arrangement`); norms hold 1 + w, but that behind the delta rule;
                              ssm_a is -exp(A_log)
    qwen3next                 the same with heads in Hugging Face's order
    qwen35moe, qwen3next      the weights of the experts chosen are divided by their sum
    mistral3                  yarn's log multiplier is Hugging Face's mscale_all_dim beside an mscale of 1; queries grow
                              by attention.temperature_scale, each original context anew; without yarn, Mistral
    lfm2, lfm2moe             a layer without key-value heads is a short convolution, without biases; token_embd_norm is
                              the last norm; lfm2moe divides the chosen weights by their sum, and a bias chooses
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from . import extensions
from .keys import Keys
from .parts import (
    ATTENTION,
    EXPERTS,
    GEMMA2,
    GEMMA4,
    GPT_OSS,
    LFM2,
    LFM2_MOE,
    LINEAR,
    LLAMA,
    LONG_FACTORS,
    MLP,
    OUTER_LFM2,
    OUTER_NAMES,
    PHI3,
    POST_NORMS,
    PRE_NORMS,
    QK_NORMS,
    QKV,
    QWEN3_NEXT,
    QWEN35,
    QWEN35_MOE,
    ROPE_FACTORS,
    SHORT_FACTORS,
    SPARSE,
)

Config = extensions.Config


@dataclass(frozen=True)
class Architecture:
    """One row.

    model_type, class_name: how config.json calls it. written: the model types that are written under it.
    layer_names: part of a GGUF layer's tensor to part of a Hugging Face one's. outer_names: the whole names of the
    others. biased: the parts that may have a bias.
    permuted: rows of q and k. recurrent: the order of value heads in layers that remember by the delta rule; None: no
    layer does. convolves: whether layers without key-value heads are short convolutions. predicts: whether a file may
    have blocks behind the model's, which predict further tokens.
    by_layer: fields of which a file may have one for each layer; they are lists until `extend`.
    fields: config field to (key after "<architecture>.", type, default); ... where the key must be there.
    constants: fields that every file of the architecture means. theta: the rope base where the key is missing; ... if
    it must be there. period: of the layers, the last of each is global; None: no layer slides. slides_at: the number
    of layers of the one model that slides; None: any may. square: whether heads together must be as wide as the model.
    each_slides: whether its readers want to be told of each layer. factors: tensors of rope factors that they take.
    own_output: whether they need `output.weight`. tied: whether they know none. extend: fields that take more than a
    key.
    """

    model_type: str
    class_name: str
    layer_names: Mapping[str, str]
    written: tuple[str, ...]
    biased: frozenset[str] = frozenset()
    permuted: bool = False
    outer_names: Mapping[str, str] = field(default_factory=lambda: OUTER_NAMES)
    recurrent: Literal["grouped", "tiled"] | None = None
    convolves: bool = False
    predicts: bool = False
    norms_include_one: bool = False
    fields: Mapping[str, tuple[str, type, Any]] = field(default_factory=dict[str, tuple[str, type, Any]])
    by_layer: frozenset[str] = frozenset()
    constants: Mapping[str, Any] = field(default_factory=dict[str, Any])
    theta: Any = ...
    period: int | None = None
    slides_at: int | None = None
    each_slides: bool = False
    square: bool = False
    factors: frozenset[str] = frozenset()
    own_output: bool = False
    tied: bool = False
    extend: Callable[[Keys, Config], Config] = lambda keys, config: config


_SILU = {"hidden_act": "silu"}
_QWEN = {**_SILU, "use_sliding_window": False}
_GELU = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
_DELTA = {
    "linear_conv_kernel_dim": ("ssm.conv_kernel", int, ...),
    "linear_key_head_dim": ("ssm.state_size", int, ...),
    "linear_num_key_heads": ("ssm.group_count", int, ...),
    "linear_num_value_heads": ("ssm.time_step_rank", int, ...),
    "linear_value_size": ("ssm.inner_size", int, ...),
}
_CONV = {
    "conv_L_cache": ("shortconv.l_cache", int, ...),
    "sliding_window": ("attention.sliding_window", int, 0),
}
_SPARSE = {
    "num_experts": ("expert_count", int, ...),
    "num_experts_per_tok": ("expert_used_count", int, ...),
    "moe_intermediate_size": ("expert_feed_forward_length", int, ...),
    "shared_expert_intermediate_size": ("expert_shared_feed_forward_length", int, ...),
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        LLAMA,
        written=("llama", "mistral", "ministral"),
        biased=LINEAR,
        permuted=True,
        constants=_SILU,
        theta=10000.0,
        factors=frozenset({ROPE_FACTORS}),
        extend=extensions.llama,
    ),
    "smollm3": Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        LLAMA,
        written=("smollm3",),
        biased=LINEAR,
        permuted=True,
        constants=_QWEN,
        extend=extensions.smollm3,
    ),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        LLAMA,
        written=("granite",),
        biased=LINEAR,
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
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", LLAMA, written=("qwen2",), biased=QKV, constants=_QWEN),
    "qwen3": Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        {**LLAMA, **QK_NORMS},
        written=("qwen3",),
        constants={**_QWEN, "attention_bias": False},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**ATTENTION, **SPARSE, **PRE_NORMS, **QK_NORMS},
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
        GEMMA2,
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
        {**GEMMA2, **QK_NORMS},
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
    "gemma4": Architecture(
        "gemma4_text",
        "Gemma4ForCausalLM",
        GEMMA4,
        written=("gemma4_text", "gemma4"),
        by_layer=frozenset({"intermediate_size", "num_key_value_heads"}),
        fields={
            "sliding_window": ("attention.sliding_window", int, ...),
            "final_logit_softcapping": ("final_logit_softcapping", float, None),
            "local_head_dim": ("attention.key_length_swa", int, ...),
            "local_value_dim": ("attention.value_length_swa", int, ...),
            "local_rotated": ("rope.dimension_count_swa", int, None),
            "local_theta": ("rope.freq_base_swa", float, 10000.0),
            "num_kv_shared_layers": ("attention.shared_kv_layers", int, 0),
            "hidden_size_per_layer_input": ("embedding_length_per_layer_input", int, 0),
            "num_experts": ("expert_count", int, None),
            "top_k_experts": ("expert_used_count", int, None),
            "moe_intermediate_size": ("expert_feed_forward_length", int, None),
        },
        constants=_GELU,
        period=6,
        each_slides=True,
        factors=frozenset({ROPE_FACTORS}),
        extend=extensions.gemma4,
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        PHI3,
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
        {**ATTENTION, **MLP, **POST_NORMS, **QK_NORMS},
        written=("olmo2", "olmo3"),
        constants={**_SILU, "attention_bias": False},
        period=4,
        own_output=True,
        extend=extensions.olmo2,
    ),
    "gpt-oss": Architecture(
        "gpt_oss",
        "GptOssForCausalLM",
        GPT_OSS,
        written=("gpt_oss",),
        biased=frozenset({*ATTENTION, *EXPERTS, "ffn_gate_inp"}),
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
        {**ATTENTION, **MLP, **POST_NORMS, **QK_NORMS},
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
        {**ATTENTION, **MLP, "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"},
        written=("seed_oss",),
        biased=QKV,
        constants={**_SILU, "attention_out_bias": False, "mlp_bias": False},
        extend=extensions.qkv_biases,
    ),
    "glm4": Architecture(
        "glm4",
        "Glm4ForCausalLM",
        {
            **ATTENTION,
            **PRE_NORMS,
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        written=("glm4",),
        biased=QKV,
        constants=_SILU,
        extend=extensions.glm4,
    ),
    "ernie4_5": Architecture(
        "ernie4_5",
        "Ernie4_5ForCausalLM",
        LLAMA,
        written=("ernie4_5",),
        constants={**_SILU, "use_bias": False},
    ),
    "hunyuan-dense": Architecture(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        {**LLAMA, "attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
        written=("hunyuan_v1_dense",),
        constants={**_SILU, "attention_bias": False},
    ),
    "mistral3": Architecture(
        "ministral3",
        "Ministral3ForCausalLM",
        LLAMA,
        written=("ministral3",),
        biased=LINEAR,
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
        {**ATTENTION, **MLP, "attn_norm": "input_layernorm"},
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
    "qwen35": Architecture(
        "qwen3_5_text",
        "Qwen3_5ForCausalLM",
        QWEN35,
        written=("qwen3_5_text", "qwen3_5"),
        recurrent="tiled",
        predicts=True,
        norms_include_one=True,
        fields=_DELTA,
        constants={**_SILU, "attention_bias": False},
        extend=extensions.qwen35,
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        QWEN35_MOE,
        written=("qwen3_5_moe_text", "qwen3_5_moe"),
        recurrent="tiled",
        predicts=True,
        norms_include_one=True,
        fields={**_DELTA, **_SPARSE, "intermediate_size": ("feed_forward_length", int, None)},
        constants={**_SILU, "attention_bias": False},
        extend=extensions.qwen35moe,
    ),
    "qwen3next": Architecture(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        QWEN3_NEXT,
        written=("qwen3_next",),
        recurrent="grouped",
        predicts=True,
        norms_include_one=True,
        fields={**_DELTA, **_SPARSE},
        constants={
            **_SILU,
            "attention_bias": False,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        extend=extensions.gated_delta,
    ),
    "lfm2": Architecture(
        "lfm2",
        "Lfm2ForCausalLM",
        LFM2,
        written=("lfm2",),
        outer_names=OUTER_LFM2,
        convolves=True,
        fields=_CONV,
        by_layer=frozenset({"num_key_value_heads"}),
        constants={"conv_bias": False, "block_auto_adjust_ff_dim": False},
        extend=extensions.short_conv,
    ),
    "lfm2moe": Architecture(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        LFM2_MOE,
        written=("lfm2_moe",),
        outer_names=OUTER_LFM2,
        convolves=True,
        fields={
            **_CONV,
            "num_experts": ("expert_count", int, ...),
            "num_experts_per_tok": ("expert_used_count", int, ...),
            "moe_intermediate_size": ("expert_feed_forward_length", int, ...),
            "num_dense_layers": ("leading_dense_block_count", int, ...),
            "gating": ("expert_gating_func", int, ...),
        },
        by_layer=frozenset({"num_key_value_heads"}),
        constants={
            "conv_bias": False,
            "use_expert_bias": True,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
        },
        extend=extensions.short_conv_moe,
    ),
}
