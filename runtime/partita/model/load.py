"""A checkpoint to a decoder on a device: reads each tensor once, checks its shape, stacks neighbours of one format.

Not here: what the files look like (`checkpoint/`) or what a config means (`model/families/parse.py`). Host
memory holds the tensors of one projection at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from ..backend import Backend
from ..checkpoint import experts
from ..checkpoint.base import Checkpoint
from ..checkpoint.gguf.blocks import AFFINE
from ..checkpoint.names import EMBEDDING, HEAD, Index
from ..errors import CheckpointError
from ..quantization import Packed, dequantize
from .config import ModelConfig
from .decoder import Attention, Block, Decoder
from .families.parse import Names, family, parse
from .layers import MLP, ExpertLinear, Linear, MoE, RMSNorm, Stack

_COMPARED = 64  # rows of two matrices that should be one


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The checkpoint's `ModelConfig`; norms that hold the one already do not get it twice."""
    parsed = parse(checkpoint.config)
    return replace(parsed, norm_adds_one=False) if checkpoint.norms_include_one else parsed


def weight_bytes(ops: Backend, checkpoint: Checkpoint) -> int:
    """Bytes that `load_decoder` will put on the device of `ops`: rather a few percent too few than too many.

    Reads no tensor. Raises CheckpointError where there is no decoder.
    """
    names = family(checkpoint.config).names
    prefix, dense = _prefix(checkpoint, names), 32 if ops.decode_dtype == "float32" else 16
    own = [name for name in checkpoint.names() if name.startswith((prefix, names.head))]
    return int(sum(math.prod(checkpoint.shape(name)) * _bits(checkpoint.stored_as(name), dense) for name in own) / 8)


def packed_as(stored: str) -> tuple[int, int] | None:
    """Bits and group size that a tensor is read with, from what `Checkpoint.stored_as` says; None for a dense one."""
    if "-bit:" in stored:
        bits, group = stored.split("-bit:")
        return int(bits), int(group)
    if stored in AFFINE:
        return int(stored[1]), 32
    return (5, 32) if stored == "MXFP4" else None


def _bits(stored: str, dense: int) -> float:
    """Bits of a weight on a device; scales and biases, of 16 bits each, are counted in."""
    if stored == "U8":  # of gpt-oss: 32 floats are 16 bytes and one of their scale
        return 32 / 17 * _bits("MXFP4", dense)
    packed = packed_as(stored)
    return dense if packed is None else packed[0] + 32 / packed[1]


def load_decoder(
    ops: Backend,
    checkpoint: Checkpoint,
    *,
    stack: bool = True,
    on_layer: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Every weight of the checkpoint, prepared for `ops`.

    stack: store projections of one input as one matrix where their formats allow. on_layer(done, total): progress.
    Raises CheckpointError for a missing tensor or a shape that the config does not have.
    """
    return _decoder(_Reader(ops, checkpoint, read_config(checkpoint), stack), on_layer)


def check_whole(checkpoint: Checkpoint) -> None:
    """Whether `load_decoder` would find every tensor, in its shape. Nothing is read.

    Raises what it would raise: CheckpointError that names the tensor, UnsupportedModel for another kind of model.
    """
    _decoder(_Judge(checkpoint, read_config(checkpoint)), None)


def notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a person should know of a checkpoint that says two things: the config decides, and the other is told."""
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


def _alike(a: np.ndarray | Packed, b: np.ndarray | Packed) -> bool:
    """Whether two matrices hold the same numbers, by rows from all over them; each may be rounded in its own way."""
    rows = np.unique(np.linspace(0, a.shape[0] - 1, _COMPARED, dtype=int))
    x, y = (dequantize(v.map(lambda part: part[rows])) if isinstance(v, Packed) else v[rows] for v in (a, b))
    x, y = x.astype(np.float32), y.astype(np.float32)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype:
        return np.array_equal(x, y, equal_nan=True)
    return float(np.square(x - y).sum()) <= 0.05 * float(np.square(x).sum())


def _decoder(reader: _Reader, on_layer: Callable[[int, int], None] | None) -> Decoder:
    config = reader.config
    embedding = reader.matrix(reader.names.embedding, config.vocab_size, config.hidden_size)
    blocks = []
    for i in range(config.num_layers):
        blocks.append(reader.block(i))
        if on_layer is not None:
            on_layer(i + 1, config.num_layers)
    name = reader.prefix + reader.names.embedding
    head = Linear(embedding, name=name)
    if not config.tie_embeddings:
        head = Linear(reader.matrix(reader.head, config.vocab_size, config.hidden_size, prefix=""), name=reader.head)
    return Decoder(config, embedding, tuple(blocks), reader.norm(reader.names.norm, config.hidden_size), head, name)


def load_block(ops: Backend, checkpoint: Checkpoint, layer: int, *, stack: bool = True) -> Block:
    """One block by itself, as `load_decoder` would load it: for what replaces a block in a decoder, or runs one block
    after the other. Errors as there."""
    return _Reader(ops, checkpoint, read_config(checkpoint), stack).block(layer)


def load_last_norm(ops: Backend, checkpoint: Checkpoint) -> RMSNorm:
    """The norm between the last block and the head, by itself. Errors as for `load_decoder`."""
    config = read_config(checkpoint)
    reader = _Reader(ops, checkpoint, config, stack=True)
    return reader.norm(reader.names.norm, config.hidden_size)


class _Reader:
    """Tensors by the family's names. Shapes come from the config; a tensor that disagrees is named."""

    def __init__(self, ops: Backend, checkpoint: Checkpoint, config: ModelConfig, stack: bool):
        self.ops, self.checkpoint, self.config, self.stack = ops, checkpoint, config, stack
        self.names = family(checkpoint.config).names
        self.prefix = _prefix(checkpoint, self.names)
        own = Index(checkpoint.names()).find(f"{self.names.head}.weight")
        self.head = self.names.head if own is None else own.removesuffix(".weight")
        self.experts = experts.find(checkpoint) if config.experts else {}

    def block(self, i: int) -> Block:
        c, n = self.config, self.names
        q, kv, e = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.hidden_size
        attention, mlp = n.attention.format(i=i), n.mlp.format(i=i)
        projections = [(f"{attention}.q_proj", q), (f"{attention}.k_proj", kv), (f"{attention}.v_proj", kv)]
        q_size, k_size = (q, kv) if c.qk_norm == "full" else (c.head_dim, c.head_dim)
        return Block(
            self.layer_norm(n.attention_norm, i),
            Attention(
                self.fused(f"{attention}.{n.qkv}", (q, kv, kv), e, c.attention_bias)
                if n.qkv
                else self.projections(projections, e, c.attention_bias),
                self.linear(f"{attention}.o_proj", e, q, c.attention_out_bias),
                self.norm(f"{attention}.q_norm", q_size) if c.qk_norm != "none" else None,
                self.norm(f"{attention}.k_norm", k_size) if c.qk_norm != "none" else None,
                c.head_dim,
                c.qk_norm == "full",
                self.ops.array(self.vector(f"{attention}.sinks", c.num_heads), "float32") if c.sink_logits else None,
            ),
            self.layer_norm(n.attention_post_norm, i),
            self.layer_norm(n.mlp_norm, i),
            self.moe(mlp) if c.layers[i].experts else self.mlp(mlp),
            self.layer_norm(n.mlp_post_norm, i),
            c.residual_scale,
        )

    def mlp(self, name: str) -> MLP:
        c, e, f = self.config, self.config.hidden_size, self.config.intermediate_size
        if self.names.gate_up:
            gate_up = self.fused(f"{name}.{self.names.gate_up}", (f, f), e, c.mlp_bias)
        else:
            gate_up = self.projections([(f"{name}.gate_proj", f), (f"{name}.up_proj", f)], e, c.mlp_bias)
        return MLP(gate_up, self.linear(f"{name}.down_proj", e, f, c.mlp_bias), c.activation)

    def moe(self, name: str) -> MoE:
        c, e = self.config.experts, self.config.hidden_size
        stored = self.experts.get(self.prefix + name)
        if c is None or stored is None:
            raise CheckpointError(f"{self.checkpoint.path.name}: {self.prefix}{name} has no experts")
        f = c.intermediate_size
        return MoE(
            self.linear(f"{name}.{self.names.router}", c.count, e, c.bias),
            self.expert_linear(stored, "gate_proj", (c.count, f, e), c.bias),
            self.expert_linear(stored, "up_proj", (c.count, f, e), c.bias),
            self.expert_linear(stored, "down_proj", (c.count, e, f), c.bias),
            self.config.activation,
            c.active,
            c.normalize,
            c.softmax_after_topk,
        )

    def expert_linear(
        self, stored: experts.StoredExperts, projection: str, shape: tuple[int, ...], bias: bool
    ) -> ExpertLinear:
        found = stored.shape(projection)
        if found == shape:
            weight = self.ops.prepare(self.expert_weight(stored, projection))
            if not bias:
                return ExpertLinear(weight)
            vectors = self.expert_bias(stored, projection)
            if vectors.shape == shape[:2]:
                return ExpertLinear(weight, self.ops.prepare_vector(vectors))
            found, shape = vectors.shape, shape[:2]
        where = f"{self.checkpoint.path.name}: {projection} of the experts of {stored.module}"
        raise CheckpointError(f"{where} has shape {found}, the config says {shape}")

    def expert_weight(self, stored: experts.StoredExperts, projection: str) -> np.ndarray | Packed:
        return stored.weight(projection)

    def expert_bias(self, stored: experts.StoredExperts, projection: str) -> np.ndarray:
        return stored.bias(projection)

    def matrix(self, name: str, out: int, size: int, prefix: str | None = None):
        return self.ops.prepare(self.read(name, (out, size), prefix))

    def linear(self, name: str, out: int, size: int, bias: bool) -> Linear:
        vector = self.ops.prepare_vector(self.vector(f"{name}.bias", out)) if bias else None
        return Linear(self.matrix(name, out, size), vector, self.prefix + name)

    def norm(self, name: str, size: int) -> RMSNorm:
        weight = self.vector(f"{name}.weight", size).astype(np.float32)
        weight = self.ops.prepare_vector(weight + 1 if self.config.norm_adds_one else weight)
        return RMSNorm(weight, self.config.norm_eps, self.prefix + name)

    def layer_norm(self, name: str | None, i: int) -> RMSNorm | None:
        return None if name is None else self.norm(name.format(i=i), self.config.hidden_size)

    def fused(self, name: str, sizes: tuple[int, ...], size: int, bias: bool) -> Stack:
        """A matrix that the checkpoint stores as one."""
        return Stack((self.linear(name, sum(sizes), size, bias),), (sizes,))

    def projections(self, parts: Sequence[tuple[str, int]], size: int, bias: bool) -> Stack:
        """Matrices (out, size) of one input. Neighbours of equal format become one."""
        stored: list[Linear] = []
        sizes: list[tuple[int, ...]] = []
        run: list[np.ndarray | Packed] = []
        names: list[tuple[str, int]] = []

        def close() -> None:
            vectors = [self.vector(f"{name}.bias", out) for name, out in names] if bias else []
            vector = self.ops.prepare_vector(np.concatenate(vectors)) if bias else None
            name = self.prefix + names[0][0] if len(names) == 1 else ""
            stored.append(Linear(self.ops.prepare(_rows(run)), vector, name))
            sizes.append(tuple(out for _, out in names))
            run.clear()
            names.clear()

        for name, out in parts:
            weight = self.read(name, (out, size))
            if run and not (self.stack and _same_format(run[-1], weight)):
                close()
            run.append(weight)
            names.append((name, out))
        close()
        return Stack(tuple(stored), tuple(sizes))

    def vector(self, name: str, size: int) -> np.ndarray:
        value = self.tensor(self.prefix + name, (size,))
        if isinstance(value, Packed):
            raise CheckpointError(f"{self.checkpoint.path.name}: {name} is packed where a dense tensor belongs")
        return value

    def read(self, name: str, shape: tuple[int, int], prefix: str | None = None) -> np.ndarray | Packed:
        return self.tensor(f"{self.prefix if prefix is None else prefix}{name}.weight", shape)

    def differs(self, name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> CheckpointError:
        return CheckpointError(f"{self.checkpoint.path.name}: {name} has shape {found}, the config says {shape}")

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray | Packed:
        """What the checkpoint has under its own name. No backend computes in float64."""
        found = self.checkpoint.shape(name)
        if found != shape:
            raise self.differs(name, found, shape)
        value = self.checkpoint.read(name)
        return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value


class _Judge(_Reader):
    """Looks for what a reader would read; tensors of zeros, which take no room, stand for what it finds."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig):
        super().__init__(cast(Backend, _Nowhere()), checkpoint, config, stack=False)

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        found = self.checkpoint.shape(name)
        if found != shape:
            raise self.differs(name, found, shape)
        return np.broadcast_to(np.float32(0), shape)

    def expert_weight(self, stored: experts.StoredExperts, projection: str) -> np.ndarray:
        for name in stored.sources(projection):
            self.checkpoint.shape(name)
        return np.broadcast_to(np.float32(0), stored.shape(projection))

    def expert_bias(self, stored: experts.StoredExperts, projection: str) -> np.ndarray:
        for name in stored.bias_sources(projection):
            self.checkpoint.shape(name)
        return np.broadcast_to(np.float32(0), stored.shape(projection)[:2])


class _Nowhere:
    """In place of a backend: what is prepared is not looked at again."""

    def prepare(self, x: Any) -> Any:
        return x

    prepare_vector = prepare

    def array(self, x: Any, dtype: str) -> Any:
        return x


def _prefix(checkpoint: Checkpoint, names: Names) -> str:
    """Text decoders of multimodal checkpoints keep their tensors under one more name."""
    embedding = f"{names.embedding}.weight"
    found = Index(checkpoint.names()).find(names.prefix + embedding)
    if found is None:
        raise checkpoint.missing(names.prefix + embedding)
    return found.removesuffix(embedding)


def _same_format(a: np.ndarray | Packed, b: np.ndarray | Packed) -> bool:
    if isinstance(a, Packed) and isinstance(b, Packed):
        return (a.bits, a.group_size, a.scales.dtype) == (b.bits, b.group_size, b.scales.dtype)
    return not isinstance(a, Packed) and not isinstance(b, Packed) and a.dtype == b.dtype


def _rows(parts: list[np.ndarray | Packed]) -> np.ndarray | Packed:
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if not isinstance(first, Packed):
        return np.concatenate(parts)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return Packed(
        np.concatenate([p.weight for p in parts]),  # pyright: ignore[reportAttributeAccessIssue]
        np.concatenate([p.scales for p in parts]),  # pyright: ignore[reportAttributeAccessIssue]
        np.concatenate([p.biases for p in parts]),  # pyright: ignore[reportAttributeAccessIssue]
        first.bits,
        first.group_size,
    )
