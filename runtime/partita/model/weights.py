"""The weights of a decoder, described once: name, shape and place of each, for a config and a family's names.

Loading, checks, random initialization, adapters and estimates of memory read this. Not here: tensors, and the forms in
which files keep experts (`checkpoint/experts.py`). Invariant: `load_decoder` reads these weights, in these shapes, and
no others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from .config import ConvConfig, DeltaConfig, ModelConfig

# fmt: off
Kind = Literal[
    "embedding", "norm", "head",
    "attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm", "q_norm", "k_norm",
    "q", "k", "v", "qkv", "attention_gate", "o", "sinks", "gate", "up", "gate_up", "down",
    "z", "b", "a", "qkvz", "ba", "conv", "conv_q", "conv_k", "conv_v", "a_log", "dt", "o_norm",
    "conv_in", "conv_bias",
    "router", "choice", "experts_gate", "experts_up", "experts_down",
    "shared_gate", "shared_up", "shared_down", "shared_switch",
    "mlp_beside_norm", "routed_norm", "routed_post_norm", "router_scale", "expert_scale",
    "layer_table", "layer_projection", "layer_projection_norm",
    "layer_gate", "layer_out", "layer_norm", "layer_scalar",
    "bias", "experts_bias",
]
# fmt: on
"""The place of a weight. "bias": of the projection whose name precedes it, which has its own kind. attention_gate: of
what multiplies what heads give. "sinks": the learned logits of attention without values. Of the gated delta rule: z,
what the output is gated by; b and a, what each token replaces and forgets; a_log and dt, how a is read. conv_in: of a
short convolution, its two gates and what it reads. choice: what is added where experts are chosen. shared_switch: whose
sigmoid multiplies the shared expert. mlp_beside_norm: after a dense MLP beside experts. layer_table, layer_projection:
what every layer is told of a token; layer_gate, layer_out, layer_norm: how it is added there."""

# fmt: off
PROJECTIONS: frozenset[Kind] = frozenset((
    "q", "k", "v", "qkv", "attention_gate", "o",
    "z", "b", "a", "qkvz", "ba", "conv_in",
    "gate", "up", "gate_up", "down",
))
# fmt: on
"""Matrices of a mixer and of a dense MLP; what adapters are put on."""

CONVOLUTIONS: tuple[Kind, ...] = ("conv", "conv_q", "conv_k", "conv_v")
"""Depthwise ones, (C, 1, K): a row of K taps for each channel. MLX's files have (C, K, 1)."""


@dataclass(frozen=True)
class LayerNorms:
    """Of a layer: the norms before and after its mixer and its MLP, with `{i}` for the layer; None: it has none."""

    attention_norm: str | None = "layers.{i}.input_layernorm"
    attention_post_norm: str | None = None
    """After the mixer, before the residual sum."""
    mlp_norm: str | None = "layers.{i}.post_attention_layernorm"
    mlp_post_norm: str | None = None


@dataclass(frozen=True)
class DeltaNames:
    """Of a layer that remembers by the gated delta rule. inputs, conv: by what they hold, in the order of queries, keys
    and values. "qkvz", "ba": rows of a key head and of its value heads side by side. norms: where they are not those of
    the model's other layers."""

    module: str = "layers.{i}.linear_attn"
    inputs: tuple[tuple[Kind, str], ...] = (
        ("qkv", "in_proj_qkv"),
        ("z", "in_proj_z"),
        ("b", "in_proj_b"),
        ("a", "in_proj_a"),
    )
    conv: tuple[tuple[Kind, str], ...] = (("conv", "conv1d"),)
    norm: str = "norm"
    out: str = "out_proj"
    norms: LayerNorms | None = None


@dataclass(frozen=True)
class ConvNames:
    """Of a layer whose mixer is a short convolution. inputs: of one matrix, the gate before the convolution, the gate
    behind it, and what it reads."""

    module: str = "layers.{i}.conv"
    inputs: str = "in_proj"
    conv: str = "conv"
    out: str = "out_proj"


@dataclass(frozen=True)
class Names(LayerNorms):
    """Tensor names, with `{i}` for the layer. None: the family has no such tensor."""

    prefix: str = "model."
    embedding: str = "embed_tokens"
    norm: str = "norm"
    head: str = "lm_head"
    """Without the prefix."""
    attention: str = "layers.{i}.self_attn"
    mlp: str = "layers.{i}.mlp"
    qkv: str | None = None
    """Of one matrix that holds queries, keys and values, in this order, within `attention`."""
    gate_up: str | None = None
    """Of one matrix that holds gate and up, within `mlp`."""
    router: str = "gate"
    """Of the matrix that scores experts, within `mlp`."""
    choice_bias: str = "gate.e_score_correction_bias"
    shared: str = "shared_expert"
    shared_switch: str = "shared_expert_gate"
    """Within `mlp`."""
    q_norm: str = "q_norm"
    k_norm: str = "k_norm"
    attention_gate: str = "gate_proj"
    out: str = "o_proj"
    """Within `attention`."""
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    """Of a dense MLP, within `mlp`."""
    conv: ConvNames = field(default_factory=ConvNames)
    delta: DeltaNames = field(default_factory=DeltaNames)
    beside: str = "layers.{i}"
    """Of the module that has experts beside a dense MLP, and their router and norms."""


@dataclass(frozen=True)
class WeightSpec:
    """name: the tensor's in the checkpoint; of experts, "MLP.experts.gate_proj.weight", however the file keeps them.

    shape: a matrix is (out, in), one of each expert (experts, out, in), a norm or bias (n,), the experts' biases
    (experts, out). layer: None outside the blocks. widths: rows of each output, where one matrix holds several.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    layer: int | None = None
    widths: tuple[int, ...] = ()

    @property
    def module(self) -> str:
        """The name of the module that has it: "model.layers.0.self_attn.q_proj"."""
        return self.name.removesuffix(".weight").removesuffix(".bias")

    @property
    def outputs(self) -> tuple[int, ...]:
        """Rows of each output of a matrix."""
        return self.widths or self.shape[:1]


def weights(config: ModelConfig, names: Names) -> Iterator[WeightSpec]:
    """Every weight of a decoder, in the model's order; of tied embeddings the embedding alone."""
    table = (config.vocab_size, config.hidden_size)
    yield WeightSpec(f"{names.prefix}{names.embedding}.weight", table, "embedding")
    if (told := config.per_layer) is not None:
        size = config.num_layers * told.size
        yield WeightSpec(f"{names.prefix}embed_tokens_per_layer.weight", (told.vocab_size, size), "layer_table")
        projection = f"{names.prefix}per_layer_model_projection.weight"
        yield WeightSpec(projection, (size, config.hidden_size), "layer_projection")
        yield WeightSpec(f"{names.prefix}per_layer_projection_norm.weight", (told.size,), "layer_projection_norm")
    for layer in range(config.num_layers):
        yield from layer_weights(config, names, layer)
    yield WeightSpec(f"{names.prefix}{names.norm}.weight", (config.hidden_size,), "norm")
    if not config.tie_embeddings:
        yield WeightSpec(f"{names.head}.weight", table, "head")


def layer_weights(config: ModelConfig, names: Names, layer: int) -> Iterator[WeightSpec]:
    """Every weight of one layer; apart from biases, no two are of one kind."""
    own = config.layers[layer]
    mlp = names.prefix + names.mlp.format(i=layer)
    beside = own.experts and config.experts is not None and config.experts.beside
    parts = [
        _norms(config, names, layer),
        _mixer(config, names, layer),
        _experts(config, names, mlp) if own.experts and not beside else _mlp(config, names, mlp, layer),
    ]
    if beside:
        parts.append(_beside(config, names.prefix + names.beside.format(i=layer)))
    parts.append(_told(config, f"{names.prefix}layers.{layer}"))
    for part in parts:
        yield from (replace(spec, layer=layer) for spec in part)


def _mixer(config: ModelConfig, names: Names, layer: int) -> Iterator[WeightSpec]:
    """What tokens meet in."""
    match config.layers[layer].mixer:
        case DeltaConfig() as mixer:
            return _delta(config, mixer, names.delta, names.prefix + names.delta.module.format(i=layer))
        case ConvConfig() as mixer:
            return _conv(config, mixer, names.conv, names.prefix + names.conv.module.format(i=layer))
        case None:
            return _attention(config, names, names.prefix + names.attention.format(i=layer), layer)


def _norms(config: ModelConfig, names: Names, layer: int) -> Iterator[WeightSpec]:
    own = names if config.layers[layer].delta is None else names.delta.norms or names
    places: tuple[tuple[Kind, str | None], ...] = (
        ("attention_norm", own.attention_norm),
        ("attention_post_norm", own.attention_post_norm),
        ("mlp_norm", own.mlp_norm),
        ("mlp_post_norm", own.mlp_post_norm),
    )
    for kind, place in places:
        if place is not None:
            yield WeightSpec(f"{names.prefix}{place.format(i=layer)}.weight", (config.hidden_size,), kind)


def _attention(config: ModelConfig, names: Names, module: str, layer: int) -> Iterator[WeightSpec]:
    e, bias, own = config.hidden_size, config.attention_bias, config.layers[layer]
    size, gate = config.head_dim_of(layer), config.attention_gate
    heads, kv = config.heads_of(layer), config.kv_heads_of(layer) * size
    q = heads * size
    if names.qkv:
        yield from _linear(f"{module}.{names.qkv}", (q + 2 * kv, e), "qkv", bias, (q, kv, kv))
    else:
        more = 0 if gate is None else heads * gate.query_rows(size)
        yield from _linear(f"{module}.q_proj", (q + more, e), "q", bias)
        if own.shares is None:
            yield from _linear(f"{module}.k_proj", (kv, e), "k", bias)
        if own.shares is None and not own.keys_are_values:
            yield from _linear(f"{module}.v_proj", (kv, e), "v", bias)
    if gate is not None and gate.own:
        shape = heads * gate.size(size), e
        yield from _linear(f"{module}.{names.attention_gate}", shape, "attention_gate", False)
    yield from _linear(f"{module}.{names.out}", (e, q), "o", config.attention_out_bias)
    if config.qk_norm not in ("none", "unit"):
        sizes = (q, kv) if config.qk_norm == "full" else (size, size)
        yield WeightSpec(f"{module}.{names.q_norm}.weight", sizes[:1], "q_norm")
        if own.shares is None:
            yield WeightSpec(f"{module}.{names.k_norm}.weight", sizes[1:], "k_norm")
    if config.sink_logits:
        yield WeightSpec(f"{module}.sinks", (heads,), "sinks")


def _delta(config: ModelConfig, c: DeltaConfig, names: DeltaNames, module: str) -> Iterator[WeightSpec]:
    """Of the gated delta rule: no projection has a bias."""
    e, k, v, heads = config.hidden_size, c.key_size, c.value_size, c.value_heads
    each: dict[str, tuple[int, ...]] = {"q": (k,), "k": (k,), "v": (v,), "z": (v,), "b": (heads,), "a": (heads,)}
    for kind, name in names.inputs:
        widths = tuple(width for part in kind for width in each[part])
        yield from _linear(f"{module}.{name}", (sum(widths), e), kind, False, widths if len(widths) > 1 else ())
    channels = {"conv": c.channels, "conv_q": k, "conv_k": k, "conv_v": v}
    for kind, name in names.conv:
        yield WeightSpec(f"{module}.{name}.weight", (channels[kind], 1, c.kernel), kind)
    yield WeightSpec(f"{module}.dt_bias", (heads,), "dt")
    yield WeightSpec(f"{module}.A_log", (heads,), "a_log")
    yield WeightSpec(f"{module}.{names.norm}.weight", (c.value_dim,), "o_norm")
    yield from _linear(f"{module}.{names.out}", (e, v), "o", False)


def _conv(config: ModelConfig, c: ConvConfig, names: ConvNames, module: str) -> Iterator[WeightSpec]:
    """Of a short convolution."""
    e, size = config.hidden_size, c.channels
    yield from _linear(f"{module}.{names.inputs}", (3 * size, e), "conv_in", c.bias, (size,) * 3)
    yield WeightSpec(f"{module}.{names.conv}.weight", (size, 1, c.kernel), "conv")
    if c.bias:
        yield WeightSpec(f"{module}.{names.conv}.bias", (size,), "conv_bias")
    yield from _linear(f"{module}.{names.out}", (e, size), "o", c.bias)


def _beside(config: ModelConfig, module: str) -> Iterator[WeightSpec]:
    """Of experts beside a dense MLP."""
    c, e = config.experts, config.hidden_size
    assert c is not None
    norms: tuple[tuple[Kind, str], ...] = (
        ("mlp_beside_norm", "post_feedforward_layernorm_1"),
        ("routed_norm", "pre_feedforward_layernorm_2"),
        ("routed_post_norm", "post_feedforward_layernorm_2"),
    )
    for kind, name in norms:
        yield WeightSpec(f"{module}.{name}.weight", (e,), kind)
    yield from _linear(f"{module}.router.proj", (c.count, e), "router", False)
    yield WeightSpec(f"{module}.router.scale", (e,), "router_scale")
    yield WeightSpec(f"{module}.router.per_expert_scale", (c.count,), "expert_scale")
    yield from _projections_of_experts(config, module)


def _told(config: ModelConfig, module: str) -> Iterator[WeightSpec]:
    """What adds to the stream what a layer is told of a token; and the layer's number."""
    if (told := config.per_layer) is not None:
        e = config.hidden_size
        yield from _linear(f"{module}.per_layer_input_gate", (told.size, e), "layer_gate", False)
        yield from _linear(f"{module}.per_layer_projection", (e, told.size), "layer_out", False)
        yield WeightSpec(f"{module}.post_per_layer_input_norm.weight", (e,), "layer_norm")
    if config.layer_scalar:
        yield WeightSpec(f"{module}.layer_scalar", (1,), "layer_scalar")


def _mlp(config: ModelConfig, names: Names, module: str, layer: int) -> Iterator[WeightSpec]:
    e, f, bias = config.hidden_size, config.intermediate_size_of(layer), config.mlp_bias
    if names.gate_up:
        yield from _linear(f"{module}.{names.gate_up}", (2 * f, e), "gate_up", bias, (f, f))
    else:
        yield from _linear(f"{module}.{names.gate}", (f, e), "gate", bias)
        yield from _linear(f"{module}.{names.up}", (f, e), "up", bias)
    yield from _linear(f"{module}.{names.down}", (e, f), "down", bias)


def _experts(config: ModelConfig, names: Names, module: str) -> Iterator[WeightSpec]:
    c, e = config.experts, config.hidden_size
    if c is None:
        raise ValueError("a layer of experts in a config without experts")
    yield from _linear(f"{module}.{names.router}", (c.count, e), "router", c.bias)
    if c.choice_bias:
        yield WeightSpec(f"{module}.{names.choice_bias}", (c.count,), "choice")
    yield from _projections_of_experts(config, module)
    if c.shared_size:
        shared = f"{module}.{names.shared}"
        yield from _linear(f"{shared}.gate_proj", (c.shared_size, e), "shared_gate", False)
        yield from _linear(f"{shared}.up_proj", (c.shared_size, e), "shared_up", False)
        yield from _linear(f"{shared}.down_proj", (e, c.shared_size), "shared_down", False)
    if c.shared_gate:
        yield from _linear(f"{module}.{names.shared_switch}", (1, e), "shared_switch", False)


def _projections_of_experts(config: ModelConfig, module: str) -> Iterator[WeightSpec]:
    c, e = config.experts, config.hidden_size
    assert c is not None
    f = c.intermediate_size
    kinds: tuple[tuple[str, Kind, int, int], ...] = (
        ("gate_proj", "experts_gate", f, e),
        ("up_proj", "experts_up", f, e),
        ("down_proj", "experts_down", e, f),
    )
    for projection, kind, out, size in kinds:
        name = f"{module}.experts.{projection}"
        yield WeightSpec(f"{name}.weight", (c.count, out, size), kind)
        if c.bias:
            yield WeightSpec(f"{name}.bias", (c.count, out), "experts_bias")


def _linear(
    module: str, shape: tuple[int, int], kind: Kind, bias: bool, widths: tuple[int, ...] = ()
) -> Iterator[WeightSpec]:
    yield WeightSpec(f"{module}.weight", shape, kind, widths=widths)
    if bias:
        yield WeightSpec(f"{module}.bias", shape[:1], "bias")
