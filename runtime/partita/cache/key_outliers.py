"""What is known against quantizing a model's keys before a single token has been read: outliers in the bias of k.

One large value in a group of keys widens the step of the whole group. A bias is in every token's key, so it alone
forces a step of max|bias| / (2^bits - 1), and rounding then adds noise of step / sqrt(12) to each dimension. In a score
scale * q·k with queries of about unit variance that is

    noise = scale * sqrt(head_dim) * step / sqrt(12)   (nats, standard deviation)

With the Hadamard rotation a head's bias is spread over its dims first: its range is 2 * |bias| / sqrt(head_dim). Where
keys are stored less a centre (`centres`), what counts of a pair's bias is how far its rotation is from the mean one, in
the mean square over the positions that the model was trained on. Above THRESHOLD the order of near keys is decided by
rounding: on a random tiny model with one biased dim a head, KL at k4v4 is 0.11 nats without the bias, 0.12 at a noise
of 0.06, 0.7 at 0.25 and 1.9 at 0.5. Qwen2 is known for such biases; models without a bias of k, or with a norm over
keys after it, never cross it. How bad it is, `partita eval` measures.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..backend import Backend
from ..model.decoder import Decoder
from ..model.mixers.attention import Attention
from ..model.rope import mean_rotation
from .centres import POSITIONS, is_centred
from .kv_format import KVFormat
from .spec import CacheSpec, LayerSpec

THRESHOLD = 0.25  # nats; rounding keys of unit variance to 4 bits alone costs about half of this


def key_noise(ops: Backend, model: Decoder, spec: CacheSpec) -> list[float]:
    """Noise in nats that the bias of k forces on each layer's scores; 0 where there is none, or keys are dense."""
    positions = model.config.max_positions
    noise: list[float] = []
    for block, layer in zip(model.blocks, spec.layers, strict=True):
        if not isinstance(block.mixer, Attention) or not isinstance(layer, LayerSpec) or layer.shares is not None:
            noise.append(0.0)
            continue
        left = _left(_key_bias(ops, block.mixer), layer, spec, positions)
        noise.append(_noise(left, layer.scale, spec.kv))
    return noise


def kv_warning(ops: Backend, model: Decoder, spec: CacheSpec) -> str | None:
    """One line naming the worst layer and a safer format, or None."""
    if spec.kv.key_bits >= 16 or not model.config.attention_bias:
        return None
    noise = key_noise(ops, model, spec)
    worst = int(np.argmax(noise))
    if noise[worst] <= THRESHOLD:
        return None
    others = {name: replace(spec, kv=KVFormat.parse(name)) for name in ("k8v8", "16")}
    safer = next(name for name, other in others.items() if max(key_noise(ops, model, other), default=0.0) <= THRESHOLD)
    return (
        f"`kv` {spec.kv} is likely to spoil this model's replies: the bias of its keys (layer {worst}) makes rounding "
        f"move scores by {noise[worst]:.1f} nats: use `kv` {safer}, or compare both on a text with partita eval"
    )


def _key_bias(ops: Backend, attention: Attention) -> np.ndarray | None:
    """float32 (Hkv, D), or None where there is none, or a norm takes its size away."""
    if attention.k_norm is not None:
        return None
    outputs: list[np.ndarray | None] = []
    for part, sizes in zip(attention.qkv.parts, attention.qkv.sizes, strict=True):
        ends = np.cumsum(sizes)[:-1]
        bias = None if part.bias is None else ops.to_numpy(part.bias)
        outputs += [None] * len(sizes) if bias is None else np.split(bias, ends)
    key = outputs[1]  # q k v
    return None if key is None else key.astype(np.float32).reshape(-1, attention.head_dim)


def _left(bias: np.ndarray | None, layer: LayerSpec, spec: CacheSpec, positions: int) -> np.ndarray | None:
    """A bias (Hkv, D) as large as what the centre leaves of it, each of its pairs in the mean square."""
    if bias is None or layer.rope is None or not is_centred(layer, spec):
        return bias
    mean, whole = (mean_rotation(layer.rope, n) for n in (POSITIONS, positions))
    away = np.sqrt(np.maximum(1 - np.abs(whole) ** 2 + np.abs(whole - mean) ** 2, 0))  # the variance, and the bias
    plain = np.zeros(bias.shape[-1] - 2 * len(away))  # what does not turn is taken away whole
    return bias * np.concatenate([away, away, plain])


def _noise(bias: np.ndarray | None, scale: float, kv: KVFormat) -> float:
    if bias is None or kv.key_bits >= 16:
        return 0.0
    head_dim = bias.shape[-1]
    spread = 2 * np.linalg.norm(bias, axis=-1) / math.sqrt(head_dim) if kv.hadamard else np.abs(bias)
    step = float(spread.max()) / (2**kv.key_bits - 1)
    return scale * math.sqrt(head_dim) * step / math.sqrt(12)
