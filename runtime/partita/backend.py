"""The seam: what a backend must do for the model, the cache and the sampler that are written once above it.

A backend is an instance handed in as `ops`, never a global, so a test can hold three at once. The operations are
fused transformer steps rather than a numpy clone. Above the seam only what mlx, torch and numpy arrays share may be
used, which is `arrays.Array`. A capability is a required method: nothing is probed for. `Backend` alone takes any
arrays and gives some; an implementation is a `Backend` of its own array type.

Letters in shapes: B rows of a batch, T new tokens, H heads, D head_dim, C slots, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import numpy as np

from .arrays import A
from .quantization import Packed, Stored
from .rings import part

MASKED = -1e30
"""Added to a score that must not count. Finite, so that a row that sees nothing gives numbers instead of NaN."""


@dataclass(frozen=True)
class Sinks(Generic[A]):
    """The kept first tokens of a row, which are scored by a query of their own (`cache/state.py`).

    q: (B, Hq, T, D), rotated for them. kv: (2, B, Hkv, S, D), keys and values, never quantized. mask: float32 (B, T,
    S), 0 where visible and MASKED elsewhere. both: that and the mask of what is not sinks, side by side, (B, T, S + C).
    shift: float32 (B, Hq, T), added to all their scores as the mask is, or None.
    """

    q: A
    kv: A
    mask: A
    both: A
    shift: A | None = None

    def some(self, queries: slice, tokens: slice, keys: slice) -> Sinks[A]:
        """Of some heads of queries, some tokens, and the heads of keys that they read."""
        x: Any = self
        shift = None if x.shift is None else x.shift[:, queries, tokens]
        return Sinks(x.q[:, queries, tokens], x.kv[:, :, keys], x.mask[:, tokens], x.both[:, tokens], shift)

    @property
    def k(self) -> A:
        return part(self.kv, 0)

    @property
    def v(self) -> A:
        return part(self.kv, 1)


@dataclass(frozen=True)
class Rule(Generic[A]):
    """What queries see of slots by positions alone: p of q's iff 0 <= p <= q and (p > q - window or p < sinks).

    queries: int32 (B, T), slots: int32 (B, C), -1 where there is none. window None: no limit. seen: bool (B, T, C),
    what it comes to.
    """

    queries: A
    slots: A
    window: int | None
    sinks: int
    seen: A


@dataclass(frozen=True)
class Memory:
    """Bytes. `active` and `peak` count what this process allocated on the device (resident memory on a CPU)."""

    total: int
    free: int
    active: int
    peak: int


class Backend(Protocol[A]):
    """One player of the score. dtype names are numpy's, and "bfloat16"."""

    name: str
    """mlx, torch or numpy."""
    device: str
    """metal, cuda, rocm or cpu."""
    dtype: str
    """dtype of the residual stream and of products with many rows: float32, bfloat16 or float16."""
    decode_dtype: str
    """dtype of products with a few rows; differs from `dtype` on CPUs, where 16-bit kernels read weights faster."""
    smallest_group: int
    """Of integers that share a scale: what products with packed weights take. Smaller groups are made dense."""
    modes: tuple[str, ...]
    """Of small floats (`quantization.SMALL_FLOATS`): what products take as it is stored. Others become integers, or
    dense, of the same values."""
    asynchronous: bool
    """Whether an operation returns before it has been computed, so that work can be launched ahead of a read."""

    @property
    def compiles(self) -> bool:
        """Whether `compile` gains anything on this device."""
        ...

    @property
    def captures(self) -> bool:
        """Whether what is compiled is so dear to make again that buffers should grow ahead of need."""
        ...

    @property
    def exact(self) -> Backend[A]:
        """This backend, where a few rows times a packed weight are computed as exactly as many are."""
        ...

    @property
    def rough(self) -> Backend[A]:
        """This backend, or one in bfloat16 on the same device where products of many rows are faster so, or one that
        leaves dense weights as they are stored: for averages over many numbers, of weights that are used once."""
        ...

    # Host boundary
    def array(self, x: np.ndarray, dtype: str | None = None) -> A: ...
    def to_numpy(self, x: A) -> np.ndarray: ...
    def zeros(self, shape: Sequence[int], dtype: str) -> A: ...
    def full(self, shape: Sequence[int], value: int | float, dtype: str) -> A: ...
    def launch(self, *arrays: A) -> None:
        """Start computing the arrays without waiting for them."""
        ...

    def fetch(self, x: A) -> Callable[[], np.ndarray]:
        """Start copying x to the host; call the result to wait for it."""
        ...

    def sync(self) -> None: ...
    def memory(self) -> Memory: ...
    def reset_peak(self) -> None: ...

    # Shape
    def cast(self, x: A, dtype: str) -> A: ...
    def concat(self, arrays: Sequence[A], axis: int) -> A: ...
    def take(self, x: A, index: A, axis: int) -> A:
        """Rows of x chosen by integers of any shape; the index's shape replaces `axis`."""
        ...

    def copy(self, x: A) -> A:
        """The same numbers in memory of their own, which no later `write` changes."""
        ...

    def assign(self, buffer: A, x: A) -> A:
        """x, of buffer's shape and dtype, in buffer's memory where arrays have one. The old buffer is dead afterwards.

        For what lives as long as a run and changes each step: made again each time, it would lie scattered among what
        comes and goes, and a process would grow from step to step."""
        ...

    def place(self, buffer: A, x: A, start: Sequence[int]) -> A:
        """buffer with x, of its dtype and no larger along any axis, from indices `start` on, one an axis. The old
        buffer is dead afterwards."""
        ...

    def where(self, condition: A, x: A | float, y: A | float) -> A: ...
    def split(self, x: A, sizes: Sequence[int], axis: int) -> Sequence[A]:
        """x in parts of these sizes along an axis."""
        ...

    def write(self, buffer: A, x: A, index: A, head: int = 0) -> A:
        """buffer (B, H, C, D) with x (B, h, T, D) at slots index (B, T) of its heads from `head` on. The old buffer is
        dead afterwards."""
        ...

    # Model
    def prepare(self, weight: np.ndarray | Packed | Stored) -> Any:
        """A weight (out, in), dense or packed, on the device in the form that `linear` and `embed` are fast with.

        UnsupportedModel: a packed weight of a mode that this backend does not compute with. CheckpointError: blocks of
        a file that are damaged."""
        ...

    def prepare_experts(self, weight: np.ndarray | Packed) -> Any:
        """One matrix an expert, (experts, out, in), dense or packed, in the form that `moe_linear` is fast with. Errors
        as for `prepare`."""
        ...

    def prepare_vector(self, x: np.ndarray) -> A:
        """A norm's weight or a bias, (n,), as float32 or the residual dtype, whichever `rms_norm` wants; or one bias an
        expert, (experts, n)."""
        ...

    def embed(self, weight: Any, tokens: A) -> A:
        """Rows (B, T, E) of a prepared weight, in the residual dtype."""
        ...

    def linear(self, x: A, weight: Any, bias: A | None = None) -> A:
        """x (..., in) times a prepared weight (out, in), transposed, plus bias: (..., out)."""
        ...

    def adapted_linear(self, x: A, weight: Any, a: A, b: A, scale: float) -> A:
        """x Wᵀ + scale * (x Aᵀ) Bᵀ: (..., out), of a prepared weight W (out, in) and an adapter (arXiv 2106.09685).

        a: (rank, in). b: (out, rank). Either may be trained; the weight is not.
        """
        ...

    def moe_linear(self, x: A, weight: Any, index: A, bias: A | None = None) -> A:
        """Every token through the matrices of its own experts: (B, T, K, out).

        x: (B, T, K, in), or (B, T, 1, in) where the K experts of a token read the same. weight: from
        `prepare_experts`. index: int32 (B, T, K). bias: (experts, out).
        """
        ...

    def rms_norm(self, x: A, weight: A, eps: float) -> A:
        """x / sqrt(mean(x²) + eps) * weight over the last axis, computed in float32 (arXiv 1910.07467)."""
        ...

    def turns(self, cos: A, sin: A, heads: int, plain: int, *, packs: bool = False) -> Any:
        """What `rotate` takes, made once for all layers of a step: cos, sin float32 (B, T, d/2) for the first `heads`
        heads; the `plain` ones behind them stay as they are. packs: what is rotated meets a packed ring, so it may be
        given in the dtype that products with that have."""
        ...

    def rotate(self, x: A, turns: Any) -> A:
        """Rotate pairs (i, i + d/2) of the first d dims of heads of x (B, T, H, D), by what `turns` gave (arXiv
        2104.09864, in the half-split order of Hugging Face checkpoints)."""
        ...

    def glu(self, gate: A, up: A, activation: str) -> A:
        """activation(gate) * up, with "silu" or "gelu_tanh"; "swiglu_clamped" (gpt-oss): with gate at most 7 and up
        from -7 to 7, gate * sigmoid(1.702 * gate) * (up + 1)."""
        ...

    def cached_attention(
        self,
        q: A,
        k: A | Packed[A],
        v: A | Packed[A],
        mask: A,
        *,
        scale: float,
        sinks: Sinks[A] | None,
        softcap: float | None,
        sink_logits: A | None = None,
        rule: Rule[A] | None = None,
    ) -> A:
        """softmax(scale * q·k + mask) · v with grouped heads, softmax in float32; (B, Hq, T, D), residual dtype.

        q: (B, Hq, T, D), as `rotate` gives it. k, v: (B, Hkv, C, D) arrays or `Packed`. mask: float32 (B, T, C),
        additive. rule: what the mask was made of, for kernels that do without it. Scores of `sinks` join the same
        softmax. Soft capping (c * tanh(s / c)) comes before the mask. sink_logits: float32 (Hq,), one score a query
        head that takes its share of the softmax and has no value (gpt-oss).
        """
        ...

    # Quantized keys and values
    def quantize(self, x: A, bits: int, group_size: int) -> Packed[A]:
        """`quantization.quantize_minmax` in this backend's own operations."""
        ...

    def store(self, kv: Any, x: A, index: A) -> Any:
        """A ring (`rings`) with new keys and values at slots index (B, T), as they come out of a stacked product: x (B,
        T, 2 * H, D), keys first. Packed ones as `quantize` gives them. The old ring is dead afterwards."""
        ...

    def put_keys(self, kv: A, k: A) -> A:
        """A dense ring (2, B, H, C, D) with keys k (B, H, S, D) in its first slots. The old one is dead afterwards."""
        ...

    def dequantize(self, packed: Packed[A]) -> A:
        """float32 values of what `quantize` gave."""
        ...

    def hadamard(self, x: A) -> A:
        """x times the orthonormal Hadamard matrix over the last axis (a power of two); its own inverse."""
        ...

    # Recurrent layers
    def sigmoid(self, x: A) -> A: ...
    def softplus(self, x: A) -> A:
        """log(1 + exp(x)), without overflow."""
        ...

    def causal_conv(
        self,
        x: A,
        weight: A,
        tail: A,
        *,
        bias: A | None = None,
        lengths: A | None = None,
        positions: A | None = None,
    ) -> tuple[A, A]:
        """Depthwise convolution along tokens: (B, T, C), in x's dtype, and the tail behind it, float32 (B, K - 1, C).

        x: (B, T, C). weight: float32 (C, K), the last column is the token's own. tail: the inputs before x, oldest
        first. bias: float32 (C,). lengths: int32 (B,), how many tokens are real in each row, of which the tail that is
        given back ends with the last; all, if None. positions: int32 (B, T), of each token in its document, of training
        on packed rows: what is before a document's first token counts as zeros. Neither array is changed.
        """
        ...

    def gated_delta(self, q: A, k: A, v: A, decay: A, beta: A, state: A, *, fresh: A | None = None) -> tuple[A, A]:
        """The gated delta rule (arXiv 2412.06464), one token after the other, in float32:

            S <- exp(decay) S;  S <- S + beta (v - S k) kᵀ;  output S q

        Outputs (B, T, Hv, Dv) in v's dtype, and the state behind the last token. q, k: (B, T, Hk, Dk); value head h
        reads key head h // (Hv / Hk). v: (B, T, Hv, Dv). decay, at most 0, and beta: float32 (B, T, Hv); with both 0 a
        token changes nothing. state: float32 (B, Hv, Dv, Dk), not changed. fresh: bool (B, T), tokens before which the
        state is emptied.
        """
        ...

    # Reduce and sample
    def sum(self, x: A, axis: int) -> A: ...
    def max(self, x: A, axis: int) -> A: ...
    def argmax(self, x: A, axis: int) -> A:
        """int32; the first of equals."""
        ...

    def topk(self, x: A, k: int) -> tuple[A, A]:
        """The k largest along the last axis, descending, with their int32 indices."""
        ...

    def softmax(self, x: A, axis: int) -> A: ...
    def logsumexp(self, x: A, axis: int) -> A: ...
    def cumsum(self, x: A, axis: int) -> A: ...
    def exp(self, x: A) -> A: ...
    def log(self, x: A) -> A: ...
    def tanh(self, x: A) -> A: ...
    def compile(self, function: Callable[..., tuple[A, ...]]) -> Callable[..., tuple[A, ...]]:
        """The same function (x, *state) -> (y, *state), compiled for the shapes it is first called with; itself where
        that is moot. It depends on its arrays alone. The old state is dead afterwards, as a buffer of `write` is."""
        ...

    def scatter_add(self, x: A, index: A, value: float) -> A:
        """x (B, V) with `value` added at index (B, T), once for every occurrence."""
        ...

    # Training. Every operation above that a forward pass uses is differentiable on mlx and torch, with respect to x and
    # to a weight or bias that is a plain array; that may have any float dtype, and is cast to x's at the product. numpy
    # computes values alone.

    def attention(
        self,
        q: A,
        k: A,
        v: A,
        mask: A | None,
        *,
        scale: float,
        softcap: float | None = None,
        sink_logits: A | None = None,
    ) -> A:
        """softmax(scale * q·k + mask) · v over whole sequences, causal, with grouped heads: (B, Hq, T, D), q's dtype.

        q: (B, Hq, T, D). k, v: (B, Hkv, T, D). mask: float32 (B, T, T), additive; it hides later keys too, and a
        backend may skip those without a look. None: nothing else is hidden. softcap, sink_logits: as in
        `cached_attention`. No gradient goes to the mask, and nothing of its size is kept for the backward pass.
        """
        ...

    def value(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """The function of (trainables, *arrays) that gives (scalar, tuple of arrays) of a loss(ops, trainables,
        *arrays), computed as in training but without gradients: every product is in the residual dtype, whatever its
        number of rows.

        ops: a backend of this one's device and dtype that computes so, for the loss and all it calls; weights
        prepared by the one belong to the other. This one stays as it is, and other threads may use it meanwhile.
        """
        ...

    def value_and_grad(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """The function that gives ((scalar, tuple of arrays), gradients) of such a loss: a gradient for every
        trainable, under its name and in its dtype, zero where the loss does not depend on it. The loss's ops keep
        little for the backward pass; what it computes with others may be rounded as in decoding.

        Raises BackendUnavailable on numpy.
        """
        ...

    def checkpoint(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """function(trainables, *arrays) -> array or tuple of arrays, computed again in the backward pass instead of
        keeping what it needs. Only arguments are differentiated, of the arrays those of floats."""
        ...

    def chunked_sum(self, function: Callable[..., A], rows: int) -> Callable[..., A]:
        """The sum of function(trainables, *parts) -> float32 scalar over parts of `rows` rows of the arrays.

        Every part is differentiated as soon as it has been computed, so one part's intermediates are alive at a time
        and nothing is computed twice: for the logits of a large vocabulary. Only arguments are differentiated. Not to
        be used inside `checkpoint`.
        """
        ...

    def unflatten(self, flat: A, shapes: Sequence[tuple[int, ...]], dtype: str) -> Sequence[A]:
        """float32 (N,) as arrays of these shapes, one after the other, in a float dtype: views of one cast. Its
        gradient is joined in one pass."""
        ...

    def elementwise(self, function: Callable[..., tuple[A, ...]]) -> Callable[..., tuple[A, ...]]:
        """The same function of arrays of one shape, then of float numbers, which goes element by element: in one pass
        where the device has such a thing. Not differentiated."""
        ...

    def stop_gradient(self, x: A) -> A: ...
    def pick(self, x: A, index: A) -> A:
        """x (N, V) at integers index (N,): (N,)."""
        ...

    def cross_entropy(self, logits: A, targets: A) -> A:
        """logsumexp(logits) - logits at the target, a row of float32 (N, V) each: (N,). targets: integers (N,)."""
        ...
