"""Norms, activations and rotations of a few rows: one call each, where torch makes a handful of small operations."""

from __future__ import annotations

import numpy as np

from .compiled import kernel
from .lanes import WIDTH, fused, larger, load, sigmoid, smaller, splat, store, total

ACTIVATIONS = ("silu", "gelu_tanh", "swiglu_clamped")


@kernel
def rms_norm(x, weight, eps, y):  # pragma: no cover
    """As `Backend.rms_norm`, of float32 rows (n, size) into y."""
    size = x.shape[1]
    whole = size // WIDTH * WIDTH
    for t in range(x.shape[0]):
        acc = splat(np.float32(0))
        for i in range(0, whole, WIDTH):
            part = load(x, t * size + i)
            acc = fused(part, part, acc)
        squares = total(acc)
        for i in range(whole, size):
            squares += x[t, i] * x[t, i]
        scale = np.float32(1) / np.sqrt(squares / np.float32(size) + np.float32(eps))
        for i in range(0, whole, WIDTH):
            store(y, t * size + i, load(x, t * size + i) * splat(scale) * load(weight, i))
        for i in range(whole, size):
            y[t, i] = x[t, i] * scale * weight[i]


@kernel
def glu(gate, up, activation, y):  # pragma: no cover
    """As `Backend.glu`, of float32 rows (n, size), size in whole lanes, into y. activation: a place in ACTIVATIONS."""
    size = y.shape[1]
    for t in range(y.shape[0]):
        for i in range(0, size, WIDTH):
            g, u = load(gate[t], i), load(up[t], i)
            if activation == 0:
                g = g * sigmoid(g)
            elif activation == 1:  # 1 + tanh(x) is 2 sigmoid(2x)
                cube = g * g * g
                g = g * sigmoid(splat(np.float32(1.5957691216057308)) * fused(splat(np.float32(0.044715)), cube, g))
            else:
                g = smaller(g, splat(np.float32(7)))
                u = larger(smaller(u, splat(np.float32(7))), splat(np.float32(-7))) + splat(np.float32(1))
                g = g * sigmoid(splat(np.float32(1.702)) * g)
            store(y, t * size + i, g * u)


@kernel
def rotate(x, cos, sin, y):  # pragma: no cover
    """As `Backend.rope`, float32, into y. x, y: (B, H, T, D); cos, sin: (B, T, d / 2)."""
    half, size = cos.shape[2], x.shape[3]
    for b in range(x.shape[0]):
        for h in range(x.shape[1]):
            for t in range(x.shape[2]):
                row, out, c, s = x[b, h, t], y[b, h, t], cos[b, t], sin[b, t]
                for i in range(half):
                    out[i] = row[i] * c[i] - row[i + half] * s[i]
                    out[i + half] = row[i + half] * c[i] + row[i] * s[i]
                for i in range(2 * half, size):
                    out[i] = row[i]
