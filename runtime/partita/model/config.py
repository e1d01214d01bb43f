"""What a decoder is, as frozen data: everything that differs between families is a field here.

Parsed once from a checkpoint's own config (`model/families/parse.py`) and validated; the model then asks no dictionary.
A default means that the part is absent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..brief import Brief


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding of one kind of layer; `rope.inverse_frequencies` says what each scaling does.

    theta: the base. dims: rotated dims of each head. scaling: "default", "linear", "llama3", "factors", "yarn", or
    "longrope" until a cache has chosen between its factors.
    """

    theta: float
    dims: int
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0
    factors: tuple[float, ...] = ()
    """One divisor per frequency (dims / 2), where a file carries them ready-made; longrope's for short contexts."""
    long_factors: tuple[float, ...] = ()
    """longrope: the divisors for a context beyond `original_max_positions`."""
    attention_factor: float = 1.0
    """Multiplies cosines and sines, of queries and of keys."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """yarn: a dim that turns more often than beta_fast within the original context keeps its frequency; one that turns
    less often than beta_slow is divided by the factor."""
    truncate: bool = True
    """yarn: whether those two bounds are rounded to whole dims."""
    neighbours: bool = False
    """Pairs of dims that rotate are (2i, 2i + 1), not (i, i + dims / 2)."""
    query_growth: float = 0.0
    """Queries are multiplied by 1 + query_growth * ln(1 + position // original_max_positions) (arXiv 2501.19399)."""

    def for_context(self, tokens: int) -> RopeConfig:
        """The same with longrope's factors chosen, once for all positions: keys are stored rotated, and cannot follow
        a conversation that grows past the original context."""
        if self.scaling != "longrope":
            return self
        factors = self.long_factors if tokens > self.original_max_positions else self.factors
        return replace(self, scaling="factors", factors=factors, long_factors=())


@dataclass(frozen=True)
class ExpertsConfig:
    """A layer's MLP as a choice among experts.

    count: experts. active: how many a token goes through. intermediate_size: width of each.
    """

    count: int
    active: int
    intermediate_size: int
    normalize: bool = False
    """The chosen experts' weights are divided by their sum."""
    normalize_eps: float = 1e-20
    """Added to that sum; the default is far below what float32 rounds it to."""
    score: Literal["softmax", "sigmoid", "softmax_chosen"] = "softmax"
    """What a router's outputs become: weights over all experts, of which those of the chosen count; each for itself; or
    a softmax over the chosen alone."""
    choice_bias: bool = False
    """What is learned beside the scores decides which experts are chosen, and not what they weigh."""
    groups: int = 1
    active_groups: int = 1
    """Experts stand in so many groups, and are chosen of the best groups alone: by the sum of their two best scores."""
    scale: float = 1.0
    """Multiplies the weights."""
    softcap: float | None = None
    """Of a router's outputs, before they become scores."""
    shared_size: int = 0
    """Width of an MLP that every token goes through besides; 0 for none."""
    shared_gate: bool = False
    """What that gives is multiplied by a sigmoid, learned for each token."""
    bias: bool = False
    """The router and the experts' projections have biases."""
    beside: bool = False
    """A dense MLP and the experts read the stream at once, each behind a norm of its own, and their sum, of what a norm
    makes of each, is added. The router reads the stream through a norm too, and each expert has a learned factor."""


@dataclass(frozen=True)
class GateConfig:
    """What multiplies what heads of attention give, made of what queries are made of.

    activation: what that goes through. each: has a number of its own. own: made by a projection of its own; otherwise
    by further rows of the queries' one, behind each head's.
    """

    activation: Literal["sigmoid", "softplus"] = "sigmoid"
    each: Literal["head", "element"] = "element"
    own: bool = False

    def size(self, head_dim: int) -> int:
        """Numbers of a head."""
        return head_dim if self.each == "element" else 1

    def query_rows(self, head_dim: int) -> int:
        """Of them, those that the queries' projection makes."""
        return 0 if self.own else self.size(head_dim)


@dataclass(frozen=True)
class DeltaConfig:
    """A layer that remembers by the gated delta rule (arXiv 2412.06464): a matrix for each value head, which every
    token changes, behind a short convolution.

    key_heads: each serves value_heads / key_heads value heads. key_dim, value_dim: of a head. kernel: taps of the
    convolution. norm_eps: of the norm over what the heads give.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    norm_eps: float
    beta_scale: float = 1.0
    """How much of a key's value one token may replace: 2 lets it be turned over (arXiv 2411.12537)."""

    @property
    def key_size(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.key_size + self.value_size


@dataclass(frozen=True)
class ConvConfig:
    """A layer whose tokens meet in a short convolution alone, depthwise, between two gates. kernel: taps, the token's
    own included. bias: of the convolution and of the projections before and behind it."""

    channels: int
    kernel: int
    bias: bool = False


@dataclass(frozen=True)
class LayerConfig:
    """window: keys a query sees, itself included; None for full attention. rope: None for a layer that does not rotate.

    experts: whether the layer's MLP is `ModelConfig.experts`. mixer: what the layer has in place of attention. shares:
    the earlier layer whose keys and values it reads, having none of its own. keys_are_values: one projection gives
    both, before any norm. heads, kv_heads, head_dim, intermediate_size: None where they are the model's.
    """

    window: int | None
    rope: RopeConfig | None
    experts: bool = False
    mixer: DeltaConfig | ConvConfig | None = None
    shares: int | None = None
    keys_are_values: bool = False
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None

    @property
    def delta(self) -> DeltaConfig | None:
        """The mixer, of a layer that remembers by the gated delta rule."""
        return self.mixer if isinstance(self.mixer, DeltaConfig) else None


@dataclass(frozen=True)
class PerLayerConfig:
    """What every layer is told of a token beside the stream: `size` numbers a layer, of a table of `vocab_size` rows
    and of a projection of the embedding."""

    size: int
    vocab_size: int


@dataclass(frozen=True)
class ModelConfig(Brief):
    """One decoder-only transformer."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    max_positions: int
    """The trained maximum, in tokens."""
    norm_eps: float
    attention_scale: float
    activation: str
    """"silu", "gelu_tanh" or "swiglu_clamped"."""
    tie_embeddings: bool
    norm_adds_one: bool = False
    """Norms multiply by 1 + w."""
    last_norm_plain: bool = False
    """The norm before the head multiplies by w all the same."""
    post_norm_eps: float | None = None
    """Of the norms behind attention and the MLP, where it is not that of the others."""
    embedding_scale: float | None = None
    embedding_norm: bool = False
    """What is embedded is normed, without a weight."""
    residual_scale: float | None = None
    """Multiplies what attention and the MLP add to the residual stream."""
    logit_scale: float | None = None
    """Multiplies the logits, before their soft cap."""
    norm_centred: bool = False
    """Norms subtract the mean first: layer norms without bias."""
    parallel: bool = False
    """The MLP reads what attention reads, and both are added to the stream at once."""
    qk_norm: Literal["none", "head", "full", "rotated", "unit"] = "none"
    """Norms of queries and keys before rotation: over each head, or over all heads at once; "rotated": over each head,
    after rotation; "unit": over each head, without a weight."""
    attention_bias: bool = False
    """Of the query, key and value projections."""
    attention_out_bias: bool = False
    attention_gate: GateConfig | None = None
    mlp_bias: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    sink_logits: bool = False
    """One learned logit a head, which takes part in every softmax of attention and has no value."""
    experts: ExpertsConfig | None = None
    value_norm: bool = False
    """Values are normed over each head, without a weight."""
    per_layer: PerLayerConfig | None = None
    layer_scalar: bool = False
    """What leaves a layer is multiplied by a learned number."""

    def heads_of(self, layer: int) -> int:
        """Query heads of one layer."""
        return self.layers[layer].heads or self.num_heads

    def kv_heads_of(self, layer: int) -> int:
        """Key-value heads of one layer."""
        return self.layers[layer].kv_heads or self.num_kv_heads

    def head_dim_of(self, layer: int) -> int:
        """Of one layer."""
        return self.layers[layer].head_dim or self.head_dim

    def intermediate_size_of(self, layer: int) -> int:
        """Width of one layer's dense MLP."""
        return self.layers[layer].intermediate_size or self.intermediate_size

    @property
    def num_layers(self) -> int:
        return len(self.layers)
