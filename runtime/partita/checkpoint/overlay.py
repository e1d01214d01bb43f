"""A checkpoint that stands over another one: what an adapter, training, another layout or a trial makes of it.

Invariant: whatever a subclass does not say is the base's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..quantization import Packed
from .base import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Derived(Checkpoint):
    base: Checkpoint

    @classmethod
    def of(cls, base: Checkpoint, **own: Any) -> Self:
        """Over `base`. own: the subclass's fields, and facts of the checkpoint that differ from the base's."""
        facts: dict[str, Any] = {
            "path": base.path,
            "config": base.config,
            "generation_config": base.generation_config,
            "norms_include_one": base.norms_include_one,
            "metadata": base.metadata,
        }
        return cls(**{**facts, **own}, base=base)

    def names(self) -> tuple[str, ...]:
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def read(self, name: str) -> np.ndarray | Packed:
        return self.base.read(name)

    def stored_as(self, name: str) -> str:
        return self.base.stored_as(name)

    def nbytes(self) -> int:
        return self.base.nbytes()

    def weight_bytes(self) -> Mapping[str, int]:
        return self.base.weight_bytes()

    def fingerprint(self) -> str:
        return self.base.fingerprint()
