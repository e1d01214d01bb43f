"""Norms, activations and rotations, and their derivatives: one pass over memory each, where torch makes a handful.

On one thread. Not here: which gradients are wanted. Rows are float32 (n, size), numbers of a row side by side.
"""

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
def inverses(x, eps, y):  # pragma: no cover
    """1 / root of the mean square of each row, into y (n,)."""
    size = x.shape[1]
    whole = size // WIDTH * WIDTH
    for t in range(x.shape[0]):
        row, acc = x[t], splat(np.float32(0))
        for i in range(0, whole, WIDTH):
            part = load(row, i)
            acc = fused(part, part, acc)
        squares = total(acc)
        for i in range(whole, size):
            squares += row[i] * row[i]
        y[t] = np.float32(1) / np.sqrt(squares / np.float32(size) + np.float32(eps))


@kernel
def normed(x, weight, inverse, y):  # pragma: no cover
    """x * inverse * weight, into y. inverse: (n,)."""
    size = x.shape[1]
    whole = size // WIDTH * WIDTH
    for t in range(x.shape[0]):
        row, out, scale = x[t], y[t], splat(inverse[t])
        for i in range(0, whole, WIDTH):
            store(out, i, load(row, i) * scale * load(weight, i))
        for i in range(whole, size):
            out[i] = row[i] * inverse[t] * weight[i]


@kernel
def normed_back(grad, x, weight, inverse, y):  # pragma: no cover
    """The gradient of x, into y, of that of `normed`, in which inverse depends on x."""
    size = x.shape[1]
    whole = size // WIDTH * WIDTH
    for t in range(x.shape[0]):
        above, row, out, acc = grad[t], x[t], y[t], splat(np.float32(0))
        for i in range(0, whole, WIDTH):
            acc = fused(load(above, i) * load(weight, i), load(row, i), acc)
        product = total(acc)
        for i in range(whole, size):
            product += above[i] * weight[i] * row[i]
        share = -product * inverse[t] * inverse[t] / np.float32(size)
        for i in range(0, whole, WIDTH):
            g = load(above, i) * load(weight, i)
            store(out, i, fused(load(row, i), splat(share), g) * splat(inverse[t]))
        for i in range(whole, size):
            out[i] = (above[i] * weight[i] + row[i] * share) * inverse[t]


@kernel
def glu(gate, gate_apart, up, up_apart, activation, y):  # pragma: no cover
    """As `Backend.glu`, of float32 rows, size in whole lanes, into y (n, size). gate, up: flat, their rows so many
    numbers apart. activation: a place in ACTIVATIONS."""
    size = y.shape[1]
    for t in range(y.shape[0]):
        for i in range(0, size, WIDTH):
            g, u = load(gate, t * gate_apart + i), load(up, t * up_apart + i)
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
def glu_back(grad, gate, up, activation, for_gate, for_up):  # pragma: no cover
    """The gradients of gate and up of that of `glu`, for the first two of ACTIVATIONS."""
    one = np.float32(1)
    for t in range(grad.shape[0]):
        for i in range(0, grad.shape[1], WIDTH):
            g, u, above = load(gate[t], i), load(up[t], i), load(grad[t], i)
            if activation == 0:
                share = sigmoid(g)
                steep = g
            else:
                square = g * g
                inner = fused(splat(np.float32(0.044715)), square, splat(one))
                share = sigmoid(splat(np.float32(1.5957691216057308)) * g * inner)
                steep = fused(splat(np.float32(0.134145)), square, splat(one))
                steep = splat(np.float32(1.5957691216057308)) * g * steep
            store(for_up[t], i, above * g * share)
            slope = fused(steep * share, splat(one) - share, share)
            store(for_gate[t], i, above * u * slope)


@kernel
def rotate(x, cos, sin, heads, half, y):  # pragma: no cover
    """As `Backend.rotate`, float32, into y (rows, H, D): the first heads are turned. x: flat; cos, sin: flat, `half`
    numbers for each row."""
    size, whole = y.shape[2], half // WIDTH * WIDTH
    for t in range(y.shape[0]):
        for h in range(y.shape[1]):
            at, turn, turned = (t * y.shape[1] + h) * size, t * half, 2 * half if h < heads else 0
            if turned > 0:
                for i in range(0, whole, WIDTH):
                    first, second = load(x, at + i), load(x, at + half + i)
                    c, s = load(cos, turn + i), load(sin, turn + i)
                    store(y, at + i, first * c - second * s)
                    store(y, at + half + i, second * c + first * s)
                for i in range(whole, half):
                    first, second, c, s = x[at + i], x[at + half + i], cos[turn + i], sin[turn + i]
                    y[t, h, i] = first * c - second * s
                    y[t, h, half + i] = second * c + first * s
            for i in range(turned, size):
                y[t, h, i] = x[at + i]
