"""Tensors that mlx-lm calls otherwise than they were published, one for one: a checkpoint under the other names.

Not here: what also changes its form (`layouts`). Invariant: tensors are those of the base, read when they are asked
for; a checkpoint that has the names already is returned as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from partita.checkpoint import names
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.overlay import Derived
from partita.quantization import Packed

_LAGUNA = (
    (".mlp.gate.weight", ".mlp.gate.proj.weight"),
    (".mlp.experts.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"),
)
"""How names end as published, and for mlx-lm."""


def _laguna_of_mlx(name: str) -> str:
    return _ended(name, _LAGUNA)


def _laguna_as_published(name: str) -> str:
    return _ended(name, [(mlx, published) for published, mlx in _LAGUNA])


def _ended(name: str, endings: Sequence[tuple[str, str]]) -> str:
    return next((name.removesuffix(old) + new for old, new in endings if name.endswith(old)), name)


_GLIMMER = (
    ("model.vision_", "vision_"),
    ("model.language_model.", "language_model.model."),
)
"""How names begin, of a whole Muse Glimmer: mlx-lm knows what it leaves out by its name."""


def _glimmer_of_mlx(name: str) -> str:
    return _begun(name, _GLIMMER)


def _glimmer_as_published(name: str) -> str:
    back = [(mlx, published) for published, mlx in _GLIMMER]
    return _begun(name, [*back, ("language_model.lm_head.", "lm_head.")])


def _begun(name: str, beginnings: Sequence[tuple[str, str]]) -> str:
    return next((new + name.removeprefix(old) for old, new in beginnings if name.startswith(old)), name)


_CALLED: Mapping[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "laguna": (_laguna_as_published, _laguna_of_mlx),
    "lfm2_moe": (names.by_number, names.by_projection),
    "muse_glimmer": (_glimmer_as_published, _glimmer_of_mlx),
}
"""By a config's model_type: what a tensor is called as published, and by mlx-lm."""


@dataclass(frozen=True, kw_only=True)
class _Renamed(Derived):
    """places: what the base calls each tensor, by its new name."""

    places: Mapping[str, str]

    def _place(self, name: str) -> str:
        if name not in self.places:
            raise self.missing(name)
        return self.places[name]

    def names(self) -> tuple[str, ...]:
        return tuple(self.places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(self._place(name))

    def read(self, name: str) -> np.ndarray | Packed:
        return self.base.read(self._place(name))

    def stored_as(self, name: str) -> str:
        return self.base.stored_as(self._place(name))

    def weight_bytes(self) -> Mapping[str, int]:
        sizes = self.base.weight_bytes()
        return {name: sizes[place] for name, place in self.places.items()}


def as_published(checkpoint: Checkpoint) -> Checkpoint:
    """Under the names that transformers looks for."""
    return _renamed(checkpoint, 0)


def published_name(checkpoint: Checkpoint, name: str) -> str:
    """What a tensor is called there."""
    called = _CALLED.get(str(checkpoint.config.get("model_type")))
    return name if called is None else called[0](name)


def as_of_mlx(checkpoint: Checkpoint) -> Checkpoint:
    """Under mlx-lm's."""
    return _renamed(checkpoint, 1)


def _renamed(checkpoint: Checkpoint, side: int) -> Checkpoint:
    called = _CALLED.get(str(checkpoint.config.get("model_type")))
    if called is None:
        return checkpoint
    places = {called[side](name): name for name in checkpoint.names()}
    return checkpoint if all(new == name for new, name in places.items()) else _Renamed.of(checkpoint, places=places)
