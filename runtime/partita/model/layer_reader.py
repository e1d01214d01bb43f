"""Layers out of a checkpoint's weights: each tensor is read once, its shape checked, neighbours of one format stacked.

Not here: which weights there are (`weights.py`), or in which form a checkpoint has them (`weight_source`). Invariant:
host memory holds the tensors of one stack at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..checkpoint.base import Checkpoint
from ..quantization import Packed, Stored, below
from .config import ConvConfig, DeltaConfig, ModelConfig
from .decoder import Block
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
from .weight_source import Matrix, WeightSource
from .weights import CONVOLUTIONS, Kind, WeightSpec


def embedding_norm(ops: Backend, config: ModelConfig) -> RMSNorm | None:
    """Of what is embedded, where the family has one."""
    return _unit_norm(ops, config.hidden_size, config.norm_eps) if config.embedding_norm else None


def _unit_norm(ops: Backend, size: int, eps: float) -> RMSNorm:
    """Without a weight that is learned."""
    return RMSNorm(ops.prepare_vector(np.ones(size, np.float32)), eps)


class LayerReader:
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
        inputs = self.stack(_of(own, "qkv", "q", "k", "v", "attention_gate"))  # first: it checks the dims of heads
        unit = _unit_norm(self.ops, c.head_dim_of(i), c.norm_eps)
        return Attention(
            inputs,
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
