"""A checkpoint whose tensors are changed as they are read: what is quantized for a trial, or before another writer.

Invariant: names, shapes and everything but the values are the base's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from partita.checkpoint.overlay import Derived
from partita.quantization import Packed

Value = np.ndarray | Packed


@dataclass(frozen=True, kw_only=True)
class Changed(Derived):
    change: Callable[[str, Value], Value]

    def read(self, name: str) -> Value:
        return self.change(name, self.base.read(name))
