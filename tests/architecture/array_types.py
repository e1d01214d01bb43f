"""For the type checker, which reads this file and nobody runs: the arrays of each library are `Array`s, and each
backend and each group has every method of its protocol with its own arrays."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import torch

from partita.arrays import Array
from partita.backend import Backend
from partita.group import Alone, Group
from partita_backends.mlx import MlxBackend
from partita_backends.mlx_group import MlxGroup
from partita_backends.numpy import NumpyBackend
from partita_backends.torch import TorchBackend
from partita_backends.torch.group import TorchGroup


def arrays(x: np.ndarray, y: mx.array, z: torch.Tensor) -> tuple[Array, ...]:
    return x, y, z


def oracle(ops: NumpyBackend) -> Backend[np.ndarray]:
    return ops


def on_mlx(ops: MlxBackend) -> Backend[mx.array]:
    return ops


def on_torch(ops: TorchBackend) -> Backend[torch.Tensor]:
    return ops


def groups(
    alone: Alone, mlx: MlxGroup, torch: TorchGroup
) -> tuple[Group[np.ndarray], Group[mx.array], Group[torch.Tensor]]:
    return alone, mlx, torch
