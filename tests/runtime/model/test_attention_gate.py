"""The gate of what heads of attention give: every activation and extent, made by rows of the queries or by its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

import partita_backends
from partita.backend import Backend
from partita.model.config import GateConfig, LayerConfig, ModelConfig
from partita.model.layers import Linear, RMSNorm, Stack
from partita.model.mixers.attention import Attention
from partita.model.weights import Names, layer_weights

from ... import bounds

HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 8, 24


@dataclass(frozen=True)
class Latest:
    """A state whose tokens see themselves alone, so that heads give their values."""

    ops: Backend

    def attend(self, layer: int, x: Any, heads: int, *_: Any) -> Any:
        kv = (x.shape[2] - heads) // 2
        v = self.ops.to_numpy(x)[:, :, heads + kv :].swapaxes(1, 2)
        return self.ops.array(np.repeat(v, heads // kv, 1))


def config(gate: GateConfig) -> ModelConfig:
    return ModelConfig(
        "gated",
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        layers=(LayerConfig(None, None),),
        max_positions=64,
        norm_eps=1e-5,
        attention_scale=1.0,
        activation="silu",
        tie_embeddings=True,
        qk_norm="head",
        attention_gate=gate,
    )


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("each", ["head", "element"])
@pytest.mark.parametrize("activation", ["sigmoid", "softplus"])
@pytest.mark.parametrize("backend", partita_backends.names())
def test_what_heads_give_is_multiplied(
    backend: str,
    activation: Literal["sigmoid", "softplus"],
    each: Literal["head", "element"],
    own: bool,
    normed: bool,
) -> None:
    ops, gate = partita_backends.load(backend, dtype="float32"), GateConfig(activation, each, own)
    specs = {spec.kind: spec for spec in layer_weights(config(gate), Names(), 0)}
    random = np.random.default_rng(3)
    matrix = {
        kind: random.standard_normal(specs[kind].shape, np.float32) * HIDDEN**-0.5
        for kind in ("q", "k", "v", "attention_gate", "o")
        if kind in specs
    }
    size = HEAD_DIM if each == "element" else 1
    assert matrix["q"].shape == (HEADS * (HEAD_DIM + (0 if own else size)), HIDDEN)
    assert ("attention_gate" in matrix) == own
    x = random.standard_normal((2, 3, HIDDEN), np.float32)

    inputs = [kind for kind in ("q", "k", "v", "attention_gate") if kind in matrix]
    whole = Linear(ops.prepare(np.concatenate([matrix[kind] for kind in inputs])))
    stack = Stack((whole,), (tuple(matrix[kind].shape[0] for kind in inputs),))
    norm = RMSNorm(ops.prepare_vector(np.ones(HEAD_DIM, np.float32)), 1e-5) if normed else None
    mixer = Attention(stack, Linear(ops.prepare(matrix["o"])), norm, norm, HEAD_DIM, gate=gate)
    found = ops.to_numpy(mixer(ops, ops.array(x), Latest(ops), 0))  # pyright: ignore[reportArgumentType]

    exact = {kind: rows.astype(np.float64) for kind, rows in matrix.items()}
    rows = exact["attention_gate"] if own else exact["q"].reshape(HEADS, -1, HIDDEN)[:, HEAD_DIM:].reshape(-1, HIDDEN)
    made = (x @ rows.T).reshape(2, 3, HEADS, size)
    factor = 1 / (1 + np.exp(-made)) if activation == "sigmoid" else np.log1p(np.exp(made))
    heads = np.repeat((x @ exact["v"].T).reshape(2, 3, KV_HEADS, HEAD_DIM), HEADS // KV_HEADS, 2) * factor
    wanted = heads.reshape(2, 3, -1) @ exact["o"].T
    roundings = 2 * HIDDEN + HEADS * HEAD_DIM + 4  # values, what the gate is made of, output; the gate itself
    bounds.assert_near(found, wanted, bounds.drift(roundings))
