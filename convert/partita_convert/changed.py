"""A checkpoint whose tensors are changed as they are read: what is quantized for a trial, or before another writer.

Not here: what the change is. Invariant: names, shapes and everything but the values are the base's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from partita.checkpoint import Checkpoint
from partita.quantization import Packed

Value = np.ndarray | Packed


@dataclass(frozen=True, kw_only=True)
class Changed(Checkpoint):
    base: Checkpoint
    change: Callable[[str, Value], Value]

    @classmethod
    def of(cls, base: Checkpoint, change: Callable[[str, Value], Value]) -> Changed:
        return cls(
            path=base.path,
            config=base.config,
            generation_config=base.generation_config,
            norms_include_one=base.norms_include_one,
            metadata=base.metadata,
            base=base,
            change=change,
        )

    def names(self) -> tuple[str, ...]:
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def read(self, name: str) -> Value:
        return self.change(name, self.base.read(name))

    def stored_as(self, name: str) -> str:
        return self.base.stored_as(name)

    def fingerprint(self) -> str:
        return self.base.fingerprint()
