"""The weights of a decoder in a checkpoint: found by their names, checked against the shapes of its config, read
one at a time. Not here: what becomes of them (`load`), which there are (`weights`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..checkpoint import experts
from ..checkpoint.base import Checkpoint
from ..checkpoint.gguf.blocks import GROUP
from ..checkpoint.names import Index
from ..errors import CheckpointError
from ..quantization import Packed, Stored
from .config import ModelConfig
from .families.parse import family
from .weights import CONVOLUTIONS, DeltaNames, Names, WeightSpec, weights

Value = np.ndarray | Packed
Matrix = Value | Stored
SPLIT_INPUT = ".linear_attn.in_proj_qkv.weight"
"""What Qwen3-Next's fused inputs have in GGUF in place of one of theirs."""
ROUTER_OF_MLX = ".mlp.gate.proj.weight"
"""What Laguna's router is called in MLX's folders. What is added where experts are chosen stands beside it there, as in
the running model of transformers, and not with the experts."""
CHOICE_BESIDE_ROUTER = ".mlp.gate.e_score_correction_bias"


class WeightSource:
    """The weights of a decoder in a checkpoint, checked against the shapes that its config gives them."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig):
        self.checkpoint = checkpoint
        self.specs = tuple(weights(config, _names(checkpoint)))
        self._experts = experts.find(checkpoint) if config.experts else {}

    def check(self, spec: WeightSpec) -> None:
        """Whether the checkpoint has this weight in this shape; nothing is read."""
        if spec.kind == "router":  # a layer without experts is reported as such, not by the first tensor it lacks
            self._experts_of(_mlp_of_router(spec))
        if not spec.kind.startswith("experts"):
            found = self.checkpoint.shape(spec.name)
            turned = spec.kind in CONVOLUTIONS and found == (spec.shape[0], *spec.shape[:0:-1])
            self._compare(spec.name, spec.shape if turned else found, spec.shape)
            return
        stored, projection = self._stored(spec)
        biases = spec.kind == "experts_bias"  # their shape is known once they are read
        for name in stored.bias_sources(projection) if biases else stored.sources(projection):
            self.checkpoint.shape(name)
        if not biases:
            self._compare_experts(stored, projection, stored.shape(projection), spec.shape)

    def read(self, spec: WeightSpec) -> Matrix:
        """What the checkpoint has under its own name, of whatever is not an expert's."""
        self.check(spec)
        value = self.checkpoint.read_stored(spec.name)
        return _narrowed(value) if isinstance(value, np.ndarray) else value

    def rows(self, spec: WeightSpec, rows: np.ndarray) -> Value:
        """Some rows of a matrix, by their numbers."""
        self.check(spec)
        value = self.checkpoint.read(spec.name)
        return value.map(lambda part: part[rows]) if isinstance(value, Packed) else _narrowed(value[rows])

    def experts(self, spec: WeightSpec, smallest_group: int = GROUP) -> Value:
        self.check(spec)
        stored, projection = self._stored(spec)
        if spec.kind == "experts_bias":
            value = stored.bias(projection)
            self._compare_experts(stored, projection, value.shape, spec.shape)
        else:
            value = stored.weight(projection, smallest_group)
        return _narrowed(value) if isinstance(value, np.ndarray) else value

    def vector(self, spec: WeightSpec) -> np.ndarray:
        value = self.experts(spec) if spec.kind == "experts_bias" else self.read(spec)
        if not isinstance(value, np.ndarray):
            raise CheckpointError(f"{self.checkpoint.path.name}: {spec.name} is packed where a dense tensor belongs")
        return value

    def stored_as(self, spec: WeightSpec) -> str:
        """As `Checkpoint.stored_as`."""
        if not spec.kind.startswith("experts"):
            return self.checkpoint.stored_as(spec.name)
        stored, projection = self._stored(spec)
        if spec.kind == "experts_bias":
            return self.checkpoint.stored_as(stored.bias_sources(projection)[0])
        return stored.stored_as(projection)

    def _stored(self, spec: WeightSpec) -> tuple[experts.StoredExperts, str]:
        """The experts that a weight is one of, and the projection that it is."""
        mlp, _, projection = spec.module.rpartition(".experts.")
        return self._experts_of(mlp), projection

    def _experts_of(self, mlp: str) -> experts.StoredExperts:
        if mlp not in self._experts:
            raise CheckpointError(f"{self.checkpoint.path.name}: {mlp} has no experts")
        return self._experts[mlp]

    def _compare_experts(
        self, stored: experts.StoredExperts, projection: str, found: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        self._compare(f"{projection} of the experts of {stored.module}", found, shape)

    def _compare(self, what: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if found != shape:
            raise CheckpointError(f"{self.checkpoint.path.name}: {what} has shape {found}, the config says {shape}")


def _names(checkpoint: Checkpoint) -> Names:
    """The family's names, where this checkpoint has them: text decoders of multimodal ones are under one more name."""
    names, index = family(checkpoint.config).names, Index(checkpoint.names())
    embedding = f"{names.embedding}.weight"
    found = index.find(names.prefix + embedding)
    if found is None:
        raise checkpoint.missing(names.prefix + embedding)
    head = index.find(f"{names.head}.weight") or names.head
    if any(name.endswith(SPLIT_INPUT) for name in checkpoint.names()):
        names = replace(names, delta=replace(names.delta, inputs=DeltaNames().inputs))
    first = index.find(f"{names.prefix}{names.mlp.format(i=0)}.{names.gate}.weight")
    if first is not None and first.endswith(".gate_proj.weight"):
        names = replace(names, gate="gate_proj", up="up_proj", down="down_proj")
    if any(name.endswith(ROUTER_OF_MLX) for name in checkpoint.names()):
        names = replace(names, router="gate.proj")
    if any(name.endswith(CHOICE_BESIDE_ROUTER) for name in checkpoint.names()):
        names = replace(names, choice_bias=Names().choice_bias)
    return replace(names, prefix=found.removesuffix(embedding), head=head.removesuffix(".weight"))


def _mlp_of_router(spec: WeightSpec) -> str:
    """The name of the module that a router and its experts are in, whatever the router is called."""
    return spec.module.rpartition(".")[0].removesuffix(".router").removesuffix(".gate")


def _narrowed(value: np.ndarray) -> np.ndarray:
    """No backend computes in float64."""
    return value.astype(np.float32) if value.dtype == np.float64 else value
