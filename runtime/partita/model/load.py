"""A checkpoint to a decoder on a device: reads each tensor once, checks its shape, stacks neighbours of one format.

Not here: which weights there are (`model/weights.py`), what the files look like (`checkpoint/`) or what a config means
(`model/families/parse.py`). Invariant: host memory holds the tensors of one stack at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..checkpoint.base import Checkpoint
from ..checkpoint.gguf.blocks import AFFINE as AFFINE_BLOCKS
from ..checkpoint.gguf.blocks import GROUP, SMALL, SMALL_GROUP
from ..checkpoint.names import EMBEDDING, HEAD, Index, predicts_further
from ..quantization import AFFINE, SMALL_FLOATS, Packed, Stored, below, dequantize
from ..small_floats import CENTRED_BITS
from ..units import memory_size
from .config import ConvConfig, DeltaConfig, ModelConfig
from .decoder import Block, Decoder
from .families.parse import parse
from .families.wrappers import left_out
from .layers import (
    MLP,
    ExpertLinear,
    LayerNorm,
    Linear,
    MLPBesideExperts,
    MoE,
    Parameter,
    PerLayerInput,
    PerLayerInputs,
    RMSNorm,
    Router,
    SharedExpert,
    Stack,
)
from .mixer import Mixer
from .mixers.attention import Attention
from .mixers.gated_delta import GatedDelta
from .mixers.short_conv import ShortConv
from .weight_source import Matrix, Value, WeightSource
from .weights import CONVOLUTIONS, Kind, WeightSpec

_FLOATS = ("F64", "F32", "F16", "BF16")
_COMPARED = 64  # rows of two matrices that should be one


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The checkpoint's `ModelConfig`; norms that hold the one already do not get it twice."""
    parsed = parse(checkpoint.config)
    return replace(parsed, norm_adds_one=False) if checkpoint.norms_include_one else parsed


def weight_bytes(ops: Backend, checkpoint: Checkpoint) -> int:
    """Bytes that `load_decoder` will put on the device of `ops`: rather a few percent too few than too many.

    Reads no tensor. Raises CheckpointError where there is no decoder, UnsupportedModel for another kind of model.
    """
    source, dense = WeightSource(checkpoint, read_config(checkpoint)), _dense_bits(ops)
    stored = ((math.prod(spec.shape), source.stored_as(spec)) for spec in source.specs)
    return int(sum(size * _bits(packed_as(kind, ops.smallest_group), dense, ops.modes) for size, kind in stored) / 8)


def packed_as(stored: str, smallest_group: int = GROUP) -> tuple[str, int, int] | None:
    """(mode, bits, group size) that a tensor is read in, from what `Checkpoint.stored_as` says; None for a dense one.
    smallest_group: what has smaller groups is made dense."""
    if "-bit:" in stored:
        bits, group = stored.split("-bit:")
        return AFFINE, int(bits), int(group)
    if stored in AFFINE_BLOCKS:
        return AFFINE, int(stored[1]), 32
    if stored in SMALL and smallest_group <= SMALL_GROUP:
        return AFFINE, int(stored[1]), SMALL_GROUP
    mode = stored.lower()
    return (mode, *SMALL_FLOATS[mode]) if mode in SMALL_FLOATS else None


def _dense_bits(ops: Backend) -> int:
    return 32 if ops.decode_dtype == "float32" else 16


def _bits(packed: tuple[str, int, int] | None, dense: int, modes: Sequence[str]) -> float:
    """Bits of a weight on a device that takes those modes. Scales and biases, of 16 bits each, are counted in; small
    floats have scales of 8, and as integers (`small_floats.without_codes`) often no biases."""
    if packed is None:
        return dense
    mode, bits, group = packed
    if mode == AFFINE:
        return bits + 32 / group
    if mode in modes:
        return bits + 8 / group
    return CENTRED_BITS + 16 / group if bits == 4 else dense


def load_decoder(
    ops: Backend,
    checkpoint: Checkpoint,
    *,
    stack: bool = True,
    on_layer: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Every weight of the checkpoint, prepared for `ops`.

    stack: store projections of one input as one matrix where their formats allow. Training says False: each projection
    has values, gradients and dropout of its own, by its own name. on_layer(done, total): progress.
    Raises CheckpointError for a missing tensor or a shape that the config does not have.
    """
    reader = _Reader(ops, checkpoint, read_config(checkpoint), stack)
    config, own = reader.config, reader.weights_of(None)
    embedding = reader.prepare([reader.source.read(own["embedding"])])
    per_layer = reader.per_layer_inputs(own)
    blocks: list[Block] = []
    for i in range(config.num_layers):
        blocks.append(reader.block(i))
        if on_layer is not None:
            on_layer(i + 1, config.num_layers)
    head = reader.linear(own["head"]) if "head" in own else Linear(embedding, None, (own["embedding"],))
    norm, named = reader.norm(own["norm"]), own["embedding"].module
    return Decoder(config, embedding, tuple(blocks), norm, head, named, per_layer, embedding_norm(ops, config))


def embedding_norm(ops: Backend, config: ModelConfig) -> RMSNorm | None:
    """Of what is embedded, where the family has one."""
    return _unit_norm(ops, config.hidden_size, config.norm_eps) if config.embedding_norm else None


def _unit_norm(ops: Backend, size: int, eps: float) -> RMSNorm:
    """Without a weight that is learned."""
    return RMSNorm(ops.prepare_vector(np.ones(size, np.float32)), eps)


def check_whole(checkpoint: Checkpoint) -> None:
    """Whether `load_decoder` would find every tensor, in its shape. Nothing is read.

    Raises what it would raise: CheckpointError that names the tensor, UnsupportedModel for another kind of model.
    """
    source = WeightSource(checkpoint, read_config(checkpoint))
    for spec in source.specs:
        source.check(spec)


def notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a person should know: that a model sees or hears, or guesses further tokens, and is played without, and
    where a checkpoint says two things, of which the config decides, and the other is reported."""
    return _beside(checkpoint) + _further(checkpoint) + _two_heads(checkpoint)


def held_dense(ops: Backend, checkpoint: Checkpoint) -> tuple[str, ...]:
    """That some weights take more memory than their files do, since products of this backend do not take them as they
    are stored; nothing where there are none."""
    source, dense = WeightSource(checkpoint, read_config(checkpoint)), _dense_bits(ops)
    kinds: dict[str, int] = {}
    for spec in source.specs:
        kind = source.stored_as(spec)
        packed = packed_as(kind, ops.smallest_group)
        if _bits(packed, dense, ops.modes) == dense and kind not in _FLOATS:
            kinds[kind] = kinds.get(kind, 0) + math.prod(spec.shape)
    if not kinds:
        return ()
    size = memory_size(sum(kinds.values()) * dense // 8)
    said = f"weights in {' and '.join(kinds)} are held in {ops.decode_dtype} by the {ops.name} backend: {size}"
    return (f"{checkpoint.path.name}: {said}",)


def _beside(checkpoint: Checkpoint) -> tuple[str, ...]:
    parts = left_out(checkpoint.names())
    if not parts:
        return ()
    said = ", ".join(f"{part} ({count} tensors)" for part, count in parts.items())
    return (f"{checkpoint.path.name}: this model also sees or hears, by {said}; here it reads and writes text alone",)


def _further(checkpoint: Checkpoint) -> tuple[str, ...]:
    count = sum(map(predicts_further, checkpoint.names()))
    if not count:
        return ()
    return (f"{checkpoint.path.name}: {count} tensors that guess further tokens than the next (mtp) are not used",)


def _two_heads(checkpoint: Checkpoint) -> tuple[str, ...]:
    index = Index(checkpoint.names())
    head, embedding = index.find(HEAD), index.find(EMBEDDING)
    if head is None or embedding is None or not read_config(checkpoint).tie_embeddings:
        return ()
    if checkpoint.shape(head) == checkpoint.shape(embedding) and _alike(
        checkpoint.read(head), checkpoint.read(embedding)
    ):
        return ()
    return (
        f"{checkpoint.path.name}: {head} is not the embedding, and config.json says that it is: the embedding is used; "
        "if the head is meant, set tie_word_embeddings to false there",
    )


def _alike(a: Value, b: Value) -> bool:
    """Whether two matrices hold the same numbers, by rows from all over them; each may be rounded in its own way."""
    rows = np.unique(np.linspace(0, a.shape[0] - 1, _COMPARED, dtype=int))
    x, y = (dequantize(v.map(lambda part: part[rows])) if isinstance(v, Packed) else v[rows] for v in (a, b))
    x, y = x.astype(np.float32), y.astype(np.float32)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype:
        return np.array_equal(x, y, equal_nan=True)
    return float(np.square(x - y).sum()) <= 0.05 * float(np.square(x).sum())


def load_block(ops: Backend, checkpoint: Checkpoint, layer: int) -> Block:
    """One block by itself, as `load_decoder` would load it: for what replaces a block in a decoder, or runs one block
    after the other. Errors as there."""
    return _Reader(ops, checkpoint, read_config(checkpoint), stack=True).block(layer)


def load_last_norm(ops: Backend, checkpoint: Checkpoint) -> RMSNorm:
    """The norm between the last block and the head, by itself. Errors as for `load_decoder`."""
    reader = _Reader(ops, checkpoint, read_config(checkpoint), stack=True)
    return reader.norm(reader.weights_of(None)["norm"])


def load_per_layer_inputs(ops: Backend, checkpoint: Checkpoint, rows: np.ndarray) -> PerLayerInputs | None:
    """What every layer is told of tokens, by itself, for tokens that are numbers of these rows of the table; None where
    layers are told nothing. Errors as there."""
    reader = _Reader(ops, checkpoint, read_config(checkpoint), stack=True)
    return reader.per_layer_inputs(reader.weights_of(None), rows)


class _Reader:
    """Layers out of weights. stacks: whether neighbours of one format become one matrix."""

    def __init__(self, ops: Backend, checkpoint: Checkpoint, config: ModelConfig, stack: bool):
        self.ops, self.config, self.stacks = ops, config, stack
        self.source = WeightSource(checkpoint, config)
        self._orders: dict[tuple[int, ...], Array] = {}  # by rotated dims, heads and their dims
        self._deltas: dict[DeltaConfig, Array] = {}  # orders of rows by key head
        self._biases = {spec.module: spec for spec in self.source.specs if spec.kind in ("bias", "experts_bias")}

    def weights_of(self, layer: int | None) -> dict[Kind, WeightSpec]:
        """A layer's weights by their kinds, or those outside the layers."""
        return {spec.kind: spec for spec in self.source.specs if spec.layer == layer}

    def block(self, i: int) -> Block:
        c, own = self.config, self.weights_of(i)
        return Block(
            self.norm(own.get("attention_norm")),
            self.mixer(i, own),
            self.norm(own.get("attention_post_norm")),
            None if "mlp_beside_norm" in own else self.norm(own.get("mlp_norm")),
            self.feed_forward(own),
            self.norm(own.get("mlp_post_norm")),
            c.residual_scale,
            c.parallel,
            self.per_layer_input(own),
            self.parameters([own["layer_scalar"]])[0].value if "layer_scalar" in own else None,
        )

    def feed_forward(self, own: Mapping[Kind, WeightSpec]) -> MLP | MoE | MLPBesideExperts:
        if "router" not in own or "up" in own:
            mlp = self.mlp(_of(own, "gate_up", "gate", "up"), own["down"])
            return self.beside(mlp, own) if "router" in own else mlp
        return self.moe(own)

    def beside(self, mlp: MLP, own: Mapping[Kind, WeightSpec]) -> MLPBesideExperts:
        experts = self.moe(own)
        scale, factors = (self.parameters([own[kind]])[0] for kind in ("router_scale", "expert_scale"))
        router = replace(experts.router, norm=self.router_norm(), scale=scale, factors=factors)
        return MLPBesideExperts(
            self.norm(own["mlp_norm"]),
            mlp,
            self.norm(own["mlp_beside_norm"]),
            self.norm(own["routed_norm"]),
            replace(experts, router=router),
            self.norm(own["routed_post_norm"]),
        )

    def router_norm(self) -> RMSNorm:
        size = self.config.hidden_size
        return RMSNorm(self.ops.prepare_vector(np.full(size, size**-0.5, np.float32)), self.config.norm_eps)

    def per_layer_inputs(self, own: Mapping[Kind, WeightSpec], rows: np.ndarray | None = None) -> PerLayerInputs | None:
        """rows: of the table, where not all of them are wanted."""
        told = self.config.per_layer
        if told is None:
            return None
        table = own["layer_table"]
        return PerLayerInputs(
            self.prepare([self.source.read(table) if rows is None else self.source.rows(table, rows)]),
            self.linear(own["layer_projection"]),
            self.norm(own["layer_projection_norm"]),
            told.size,
            table.module,
        )

    def per_layer_input(self, own: Mapping[Kind, WeightSpec]) -> PerLayerInput | None:
        if "layer_gate" not in own:
            return None
        gate, out = self.linear(own["layer_gate"]), self.linear(own["layer_out"])
        return PerLayerInput(gate, out, self.norm(own["layer_norm"]), self.config.activation)

    def mixer(self, i: int, own: Mapping[Kind, WeightSpec]) -> Mixer:
        match self.config.layers[i].mixer:
            case DeltaConfig() as c:
                return self.gated_delta(c, own)
            case ConvConfig() as c:
                return self.short_conv(c, own)
            case None:
                return self.attention(i, own)

    def short_conv(self, c: ConvConfig, own: Mapping[Kind, WeightSpec]) -> Mixer:
        return ShortConv(
            c.kernel,
            self.stack([own["conv_in"]]),
            self.parameters([own["conv"]])[0],
            self.parameters([own["conv_bias"]])[0] if c.bias else None,
            self.linear(own["o"]),
        )

    def attention(self, i: int, own: Mapping[Kind, WeightSpec]) -> Mixer:
        c = self.config
        unit = _unit_norm(self.ops, c.head_dim_of(i), c.norm_eps)
        return Attention(
            self.stack(_of(own, "qkv", "q", "k", "v", "attention_gate")),
            self.linear(own["o"]),
            unit if c.qk_norm == "unit" else self.norm(own.get("q_norm")),
            unit if c.qk_norm == "unit" else self.norm(own.get("k_norm")),
            c.head_dim_of(i),
            c.qk_norm == "full",
            self.ops.array(self.source.vector(own["sinks"]), "float32") if "sinks" in own else None,
            self.order(i),
            unit.weight if c.qk_norm == "rotated" else None,
            c.attention_gate,
            unit if c.value_norm and c.layers[i].shares is None else None,
        )

    def gated_delta(self, c: DeltaConfig, own: Mapping[Kind, WeightSpec]) -> Mixer:
        ops, size = self.ops, c.key_dim
        norm = self.source.vector(own["o_norm"]).astype(np.float32)
        return GatedDelta(
            c,
            self.stack(_of(own, "qkvz", "ba", "qkv", "q", "k", "v", "z", "b", "a")),
            self.parameters(_of(own, *CONVOLUTIONS)),
            self.parameters([own["a_log"]])[0],
            self.parameters([own["dt"]])[0],
            RMSNorm(ops.prepare_vector(norm), c.norm_eps, own["o_norm"].module),
            self.linear(own["o"]),
            ops.prepare_vector(np.full(size, 1 / size, np.float32)),
            ops.prepare_vector(np.full(size, size**-0.5, np.float32)),
            self.by_key_head(c) if "qkvz" in own else None,
        )

    def by_key_head(self, c: DeltaConfig) -> Array:
        """Where q, k, v, z, b, a come from, of outputs with those of a key head and its value heads side by side."""
        if c not in self._deltas:
            each = c.value_heads // c.key_heads
            parts: list[np.ndarray] = []
            start = 0
            for sizes in ((c.key_dim, c.key_dim, each * c.value_dim, each * c.value_dim), (each, each)):
                rows = start + np.arange(c.key_heads * sum(sizes), dtype=np.int32).reshape(c.key_heads, -1)
                parts += [part.ravel() for part in np.split(rows, np.cumsum(sizes)[:-1], axis=1)]
                start += rows.size
            self._deltas[c] = self.ops.array(np.concatenate(parts))
        return self._deltas[c]

    def parameters(self, specs: Sequence[WeightSpec]) -> tuple[Parameter, ...]:
        """In float32, by themselves or as one, as `stack` has it."""
        values = [self.source.vector(spec).astype(np.float32) for spec in specs]
        if self.stacks and len(specs) > 1:
            return (Parameter(self.ops.array(np.concatenate(values), "float32")),)
        return tuple(
            Parameter(self.ops.array(value, "float32"), spec.name) for spec, value in zip(specs, values, strict=True)
        )

    def order(self, i: int) -> Array | None:
        """Of a layer whose rotation pairs neighbours: where in queries, keys and values each number comes from, so that
        pairs are half of the rotated dims apart."""
        c, rope = self.config, self.config.layers[i].rope
        if rope is None or not rope.neighbours:
            return None
        key = kept, turned, size = c.kv_heads_of(i), c.heads_of(i) + c.kv_heads_of(i), c.head_dim_of(i)
        if (rope.dims, *key) not in self._orders:
            dims = np.arange(size)
            dims[: rope.dims] = dims[: rope.dims].reshape(-1, 2).T.ravel()
            heads = np.arange(turned + kept)[:, None] * size
            places = np.where(heads < turned * size, heads + dims, heads + np.arange(size))
            self._orders[rope.dims, *key] = self.ops.array(places.ravel().astype(np.int32))
        return self._orders[rope.dims, *key]

    def mlp(self, gate_up: Sequence[WeightSpec], down: WeightSpec) -> MLP:
        return MLP(self.stack(gate_up), self.linear(down), self.config.activation)

    def moe(self, own: Mapping[Kind, WeightSpec]) -> MoE:
        c, shared = self.config.experts, None
        assert c is not None  # a router is a weight of such configs alone
        if "shared_up" in own:
            switch = self.linear(own["shared_switch"]) if "shared_switch" in own else None
            shared = SharedExpert(self.mlp([own["shared_gate"], own["shared_up"]], own["shared_down"]), switch)
        bias = self.ops.array(self.source.vector(own["choice"]), "float32") if c.choice_bias else None
        return MoE(
            Router(self.linear(own["router"]), c, bias),
            self.expert_linear(own["experts_gate"]),
            self.expert_linear(own["experts_up"]),
            self.expert_linear(own["experts_down"]),
            self.config.activation,
            shared,
        )

    def expert_linear(self, spec: WeightSpec) -> ExpertLinear:
        return ExpertLinear(
            self.ops.prepare_experts(self.source.experts(spec, self.ops.smallest_group)), self.bias([spec])
        )

    @overload
    def norm(self, spec: WeightSpec) -> RMSNorm: ...
    @overload
    def norm(self, spec: WeightSpec | None) -> RMSNorm | None: ...
    def norm(self, spec: WeightSpec | None) -> RMSNorm | None:
        if spec is None:
            return None
        weight = self.source.vector(spec).astype(np.float32)
        c, behind = self.config, spec.kind in ("attention_post_norm", "mlp_post_norm")
        plus_one = c.norm_adds_one and not (spec.kind == "norm" and c.last_norm_plain)
        weight = self.ops.prepare_vector(weight + 1 if plus_one else weight)
        eps = c.post_norm_eps if behind and c.post_norm_eps is not None else c.norm_eps
        kind = LayerNorm if c.norm_centred else RMSNorm
        return kind(weight, eps, spec.module, plus_one)

    def linear(self, spec: WeightSpec) -> Linear:
        return self.joined([(spec, self.source.read(spec))])

    def stack(self, specs: Sequence[WeightSpec]) -> Stack:
        """Matrices of one input. Neighbours of equal format become one."""
        parts: list[Linear] = []
        run: list[tuple[WeightSpec, Matrix]] = []
        for spec in specs:
            weight = self.source.read(spec)
            if run and not (self.stacks and _same_format(run[-1][1], weight)):
                parts.append(self.joined(run))
                run = []
            run.append((spec, weight))
        parts.append(self.joined(run))
        return Stack(tuple(parts), tuple(tuple(n for spec in part.specs for n in spec.outputs) for part in parts))

    def joined(self, run: Sequence[tuple[WeightSpec, Matrix]]) -> Linear:
        """One matrix of the rows of some."""
        specs = tuple(spec for spec, _ in run)
        return Linear(self.prepare([weight for _, weight in run]), self.bias(specs), specs)

    def prepare(self, weights: Sequence[Matrix]) -> Any:
        """One matrix of the rows of some, on the device."""
        whole = _rows(weights)
        prepared = self.ops.prepare(whole)
        if isinstance(whole, Stored):
            whole.release()
        return prepared

    def bias(self, specs: Sequence[WeightSpec]) -> Array | None:
        """The biases of matrices of one input, 0 for one that has none beside others; None where none has."""
        own = [self._biases.get(spec.module) for spec in specs]
        if not any(own):
            return None
        vectors = [
            np.zeros(spec.shape[0], np.float32) if bias is None else self.source.vector(bias)
            for spec, bias in zip(specs, own, strict=True)
        ]
        return self.ops.prepare_vector(np.concatenate(vectors))


def _of(own: Mapping[Kind, WeightSpec], *kinds: Kind) -> list[WeightSpec]:
    """Those that there are, in this order."""
    return [own[kind] for kind in kinds if kind in own]


def _same_format(a: Matrix, b: Matrix) -> bool:
    if isinstance(a, Packed) and isinstance(b, Packed):
        return (a.format, a.scales.dtype) == (b.format, b.scales.dtype)
    if isinstance(a, Stored) and isinstance(b, Stored):
        return a.type == b.type
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype


def _rows(parts: Sequence[Matrix]) -> Matrix:
    """Matrices of one format, one below the other."""
    if stored := [part for part in parts if isinstance(part, Stored)]:
        return replace(stored[0], parts=tuple(rows for part in stored for rows in part.parts))
    return below([part for part in parts if not isinstance(part, Stored)])
