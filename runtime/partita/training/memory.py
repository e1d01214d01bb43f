"""What training will take beyond the weights, before it is allocated, and which settings would make it fit.

An estimate from shapes, on the careful side; its parts are what the training operations keep (`Backend`, Training).
Knows no device: free bytes come from the caller. Not here: the weights themselves, which are loaded and so are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..cache.budget import RESERVE
from ..errors import MemoryBudgetError
from ..model.config import ConvConfig, DeltaConfig, ModelConfig
from ..model.weights import Names, weights
from ..units import memory_size
from .loss import chunk_rows

FLOAT = 4  # bytes; trained values, gradients and moments are float32
_BATCH = 5 * 4  # bytes of a slot in a batch
_LOGITS = 4  # arrays of a chunk's logits alive at once, when much goes wrong
CHUNK = 64  # tokens that the gated delta rule takes at once, on every backend that trains
_PASSING = 3  # arrays of a block's widest activations that come and go beside what is kept


@dataclass(frozen=True)
class TrainingShape:
    """rows, length: of a batch. trained: number of trained values. itemsize: bytes of the residual dtype. accumulate:
    batches of a step, which are there at once."""

    rows: int
    length: int
    trained: int
    itemsize: int = FLOAT
    grad_checkpoint: bool = False
    packing: bool = True
    accumulate: int = 1


@dataclass(frozen=True)
class Estimate:
    """Bytes. optimizer: gradients and moments. activations: kept for the backward pass. logits: a chunk's. batches:
    tokens, targets and what else is kept of each (`batches.Batch`)."""

    optimizer: int
    activations: int
    logits: int
    batches: int

    @property
    def total(self) -> int:
        return self.optimizer + self.activations + self.logits + self.batches


def estimate(config: ModelConfig, shape: TrainingShape) -> Estimate:
    """What is allocated beyond weights and trained values."""
    tokens = shape.rows * shape.length
    e, (q, kv, f), gate = config.hidden_size, _widths(config), _gate_width(config)
    # inputs of two norms and of the projections; queries, keys and values before and after rotation, attention's output
    # twice (by heads, and joined); gate, up and their product; attention's gate, before and after its activation, and
    # what it has multiplied
    attention = 4 * q + 3 * kv + 2 * gate + (q if gate else 0)
    widest = max(2 * f, q + 2 * kv, e)
    mixers = [attention if layer.mixer is None else _kept_by(layer.mixer, shape) for layer in config.layers]
    blocks = [4 * e + mixer + 3 * f for mixer in mixers]
    kept = config.num_layers * e + max(blocks) if shape.grad_checkpoint else sum(blocks)
    masks = (
        len({layer.window for layer in config.layers}) * shape.rows * shape.length**2 * FLOAT if shape.packing else 0
    )
    activations = tokens * (kept + _PASSING * widest) * shape.itemsize + masks
    unpacked = config.hidden_size * max(config.vocab_size, f) * FLOAT  # a packed matrix is dense while it is multiplied
    logits = _LOGITS * min(chunk_rows(config.vocab_size), tokens) * config.vocab_size * FLOAT
    batches = shape.accumulate * tokens * _BATCH
    return Estimate(3 * FLOAT * shape.trained, activations, logits + unpacked, batches)


def _kept_by(mixer: DeltaConfig | ConvConfig, shape: TrainingShape) -> int:
    """Values of a token in the residual dtype. A short convolution keeps its input and its two gates, and what goes in,
    comes out and goes on; the last chunk of a delta rule is as long as the others."""
    if isinstance(mixer, ConvConfig):
        return 6 * mixer.channels
    padded = -(-shape.length // CHUNK) * CHUNK
    return -(-_kept_by_delta(mixer) * FLOAT * padded // (shape.itemsize * shape.length))


def _kept_by_delta(c: DeltaConfig) -> int:
    """Values of a token, in float32, that the gated delta rule keeps in chunks: what goes through the convolution; keys
    and queries before and after their lengths are made one; of each value head four rows of a chunk's triangle, keys
    and queries with their decays and the solutions, changes and outputs before and behind the norm; a share of the
    states between chunks."""
    heads = 4 * (CHUNK + c.key_dim) + 9 * c.value_dim
    return 4 * c.channels + 6 * c.key_size + c.value_heads * (heads + 2 * c.value_dim * c.key_dim // CHUNK)


def admit(config: ModelConfig, shape: TrainingShape, free: int, *, full: bool = False) -> Estimate:
    """The estimate, if it fits into `free` bytes less a reserve. MemoryBudgetError names settings that help."""
    needs, budget = estimate(config, shape), max(free - RESERVE, 0)
    if needs.total <= budget:
        return needs
    helps = next((names for names, other in _smaller(shape) if estimate(config, other).total <= budget), None)
    if helps is None and full:
        helps = "`method` lora"
    raise MemoryBudgetError(
        f"training needs {memory_size(needs.total)} beside the weights (gradients and moments "
        f"{memory_size(needs.optimizer)}, activations {memory_size(needs.activations)}, "
        f"logits {memory_size(needs.logits)}, batches {memory_size(needs.batches)}), "
        f"{memory_size(free)} are free ({memory_size(RESERVE)} of them are kept back): "
        + (f"try {helps}" if helps else "take fewer `targets` or `layers`, a lower `rank`, or a smaller model")
    )


def _smaller(shape: TrainingShape) -> Iterator[tuple[str, TrainingShape]]:
    """Settings that take less, those first that change least of what is learnt."""
    checkpointed, flag = replace(shape, grad_checkpoint=True), "`grad_checkpoint`"
    if not shape.grad_checkpoint:
        yield flag, checkpointed
    rows = shape.rows
    if rows > 1:
        count = rows * shape.accumulate
        one = f"`batch_size` 1 `accumulate` {count}"
        yield one, replace(shape, rows=1, accumulate=count)
        yield f"{flag} {one}", replace(checkpointed, rows=1, accumulate=count)
    length = shape.length // 2
    while length >= 64:
        yield f"{flag} `batch_size` 1 `max_length` {length}", replace(checkpointed, rows=1, length=length)
        length //= 2
    count = shape.accumulate // 2
    while count:
        yield f"`accumulate` {count}", replace(shape, accumulate=count)
        count //= 2


def _gate_width(config: ModelConfig) -> int:
    """Values of a token in what gates attention, made by a projection of its own."""
    gate = config.attention_gate
    if gate is None or not gate.own:
        return 0
    heads = ((config.heads_of(i), config.head_dim_of(i)) for i in range(config.num_layers))
    return max(count * gate.size(size) for count, size in heads)


def _widths(config: ModelConfig) -> tuple[int, int, int]:
    """Values of a token in a block: of its queries, of its keys (0 where no layer attends), and inside its MLP or the
    experts it goes through."""
    rows: dict[str, int] = {}
    for spec in weights(config, Names()):
        if len(spec.shape) > 1:
            rows[spec.kind] = max(spec.shape[-2], rows.get(spec.kind, 0))
    experts = config.experts
    if experts is None or "experts_up" not in rows:
        return rows.get("q", 0), rows.get("k", 0), rows["up"]
    inside = experts.active * rows["experts_up"] + (rows["up"] if experts.beside else 0)
    return rows.get("q", 0), rows.get("k", 0), inside
