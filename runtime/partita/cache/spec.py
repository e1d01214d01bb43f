"""How a cache is laid out, and what it will cost: plain numbers, decided before anything is allocated.

Knows no arrays. `Cache` (state.py) allocates exactly what `cache_bytes` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from ..brief import Brief
from ..errors import ContextError
from ..model.config import ConvConfig, ModelConfig, RopeConfig
from ..quantization import check_groups, hadamard_matrix
from .kv_format import KVFormat

BLOCK = 256  # slots; a growing buffer gains this many at a time
ALIGN = 32  # slots; the size of a full ring is rounded up to this
CHECKPOINT_BYTES = 256 << 20  # of a row; a model of 4B has some 50 MiB of state, one of 27B 150
LEAST_CHECKPOINTS, MOST_CHECKPOINTS = 2, 16
DEFAULT_SINKS = 4
DEFAULT_CHUNK = 256


@dataclass(frozen=True)
class Span:
    """What one kind of layer keeps: the first `sinks` tokens and the last `window`. None: everything."""

    window: int | None
    sinks: int

    @property
    def anchor(self) -> int | None:
        """The last position that a query to the sinks is rotated to."""
        return None if self.window is None else self.sinks + self.window - 1


@dataclass(frozen=True)
class LayerSpec:
    """sink_logits: whether its softmax has learned scores without keys. key_bias: whether its keys have a bias, and no
    norm after it. absolute: whether scores depend on where a query and a key are, not on their distance alone: where
    norms come after rotation. shares: the layer whose keys and values it reads, having no arrays of its own."""

    kv_heads: int
    head_dim: int
    span: Span
    rope: RopeConfig | None
    scale: float
    softcap: float | None
    sink_logits: bool = False
    key_bias: bool = False
    absolute: bool = False
    shares: int | None = None


@dataclass(frozen=True)
class RecurrentSpec:
    """What a layer without keys and values keeps of all tokens, float32: the last inputs of its convolution, (K - 1,
    channels), and a matrix for each of its heads, () where it has none."""

    tail: tuple[int, int]
    matrix: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        return 4 * (math.prod(self.tail) + (math.prod(self.matrix) if self.matrix else 0))


@dataclass(frozen=True)
class CacheSpec(Brief):
    """Everything that decides a cache's size and behaviour.

    context: tokens that a full-attention layer keeps (None: all). chunk: the longest write. slack: how many tokens
    `trim` can always take back.
    """

    layers: tuple[LayerSpec | RecurrentSpec, ...]
    kv: KVFormat
    context: int | None
    sinks: int
    chunk: int = DEFAULT_CHUNK
    slack: int = 0

    @cached_property
    def attention(self) -> dict[int, LayerSpec]:
        """Layers that keep keys and values, by their numbers."""
        attend = {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, LayerSpec)}
        return {i: layer for i, layer in attend.items() if layer.shares is None}

    @cached_property
    def recurrent(self) -> dict[int, RecurrentSpec]:
        """Layers that remember by a state, by their numbers."""
        return {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, RecurrentSpec)}

    @property
    def spans(self) -> tuple[Span, ...]:
        """The kinds of layers that attend."""
        return tuple(dict.fromkeys(layer.span for layer in self.attention.values()))

    @property
    def state_bytes(self) -> int:
        """Bytes of a row's recurrent states, whatever its length."""
        return sum(layer.nbytes for layer in self.recurrent.values())

    @property
    def checkpoints(self) -> int:
        """How many earlier recurrent states a row may keep to be taken back to (`states`)."""
        if not self.recurrent:
            return 0
        return max(min(CHECKPOINT_BYTES // self.state_bytes, MOST_CHECKPOINTS), LEAST_CHECKPOINTS)

    def ring(self, span: Span) -> int | None:
        """Slots that a full ring goes round; None where nothing is ever overwritten."""
        return None if span.window is None else span.window + max(self.slack, self.chunk - 1)

    def slots(self, span: Span, tokens: int) -> int:
        """Slots allocated once `tokens` have been written, the spare one included."""
        ring = self.ring(span)
        needed = -(-(max(tokens - span.sinks, 0) + 1) // BLOCK) * BLOCK
        return needed if ring is None else min(needed, -(-(ring + 1) // ALIGN) * ALIGN)


def plan(
    config: ModelConfig,
    kv: KVFormat,
    *,
    context: int | None = None,
    sinks: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    slack: int = 0,
) -> CacheSpec:
    """The cache of a model. context None: its trained maximum. A sliding layer keeps its own window, without sinks.
    Longrope's factors are the long ones where the context is beyond the original one, from the first token on.

    Raises ContextError for an impossible context or number of sinks, DataError for a head_dim that the format does not
    divide.
    """
    context = config.max_positions if context is None else context
    if context < 1:
        raise ContextError(f"`context` must be >= 1, got {context}", field="context")
    if context > config.max_positions:
        raise ContextError(
            f"`context` {context} is beyond the {config.max_positions} tokens this model was trained on: "
            f"use `context` {config.max_positions} or less (a conversation may still go on without end)",
            field="context",
        )
    sinks = min(DEFAULT_SINKS, context - 1) if sinks is None else sinks
    if not 0 <= sinks < context:
        most = context - 1
        raise ContextError(f"`sinks` must be from 0 to {most} with `context` {context}, got {sinks}", field="sinks")
    if chunk < 1 or slack < 0:
        raise ContextError(f"`chunk` must be >= 1 and `slack` >= 0, got {chunk} and {slack}")
    sizes = sorted({config.head_dim_of(i) for i in range(config.num_layers)})
    for bits in sorted({kv.key_bits, kv.value_bits} - {16, 32}):
        for size in sizes:
            check_groups(size, bits, kv.group_size, f"`kv` {kv}")
    if kv.hadamard:
        for size in sizes:
            hadamard_matrix(size)
    full = Span(context - sinks, sinks)
    layers = tuple(_layer(config, i, full, context) for i in range(config.num_layers))
    return CacheSpec(layers, kv, context, sinks, chunk, slack)


def _layer(config: ModelConfig, i: int, full: Span, context: int) -> LayerSpec | RecurrentSpec:
    layer = config.layers[i]
    if isinstance(layer.mixer, ConvConfig):
        return RecurrentSpec((layer.mixer.kernel - 1, layer.mixer.channels))
    if (delta := layer.mixer) is not None:
        return RecurrentSpec((delta.kernel - 1, delta.channels), (delta.value_heads, delta.value_dim, delta.key_dim))
    return LayerSpec(
        config.kv_heads_of(i),
        config.head_dim_of(i),
        full if layer.window is None else Span(layer.window, 0),
        layer.rope.for_context(context) if layer.rope else None,
        config.attention_scale,
        config.attention_softcap,
        config.sink_logits,
        config.attention_bias and config.qk_norm == "none",
        config.qk_norm == "rotated",
        layer.shares,
    )


def side_bytes(bits: int, group_size: int, head_dim: int) -> float:
    """Bytes of one key or value vector: `bits` a number, and a float16 scale and bias for every packed group."""
    return head_dim * (bits + (32 / group_size if bits < 16 else 0)) / 8


def bytes_per_token(spec: CacheSpec) -> float:
    """Bytes that one more token in the ring costs, over all layers."""
    kv = spec.kv
    return sum(
        layer.kv_heads * side_bytes(bits, kv.group_size, layer.head_dim)
        for layer in spec.attention.values()
        for bits in (kv.key_bits, kv.value_bits)
    )


def cache_bytes(spec: CacheSpec, tokens: int, batch: int = 1) -> int:
    """Bytes of a cache of `batch` rows once `tokens` have been written to each: exactly `Cache.nbytes`, of one without
    checkpoints."""
    kv, total = spec.kv, 4 + spec.state_bytes  # int32: the next position
    for span in spec.spans:
        total += 4 * (spec.slots(span, tokens) + span.sinks)  # int32: slots' positions
    for layer in spec.attention.values():
        slots, sinks = spec.slots(layer.span, tokens), layer.span.sinks
        vectors = sum(side_bytes(bits, kv.group_size, layer.head_dim) for bits in (kv.key_bits, kv.value_bits))
        total += int(layer.kv_heads * (slots + (sinks if kv.joint else 0)) * vectors)
        apart = (0 if kv.joint else 2) + (layer.rope is not None)  # keys, values; keys before rotation
        if sinks:
            total += apart * layer.kv_heads * (sinks + 1) * layer.head_dim * kv.sink_bits // 8
    return total * batch
