"""Configs of tiny random models, by name: a family, or one of its variants, in transformers' own fields."""

from __future__ import annotations

from .common import COMMON, WINDOW
from .dense import DENSE
from .experts import EXPERTS
from .recurrent import RECURRENT
from .shaped import SHAPED

__all__ = ["COMMON", "DENSE", "EXPERTS", "FAMILIES", "NAMES", "RECURRENT", "SHAPED", "WINDOW"]

FAMILIES = {**DENSE, **EXPERTS, **RECURRENT, **SHAPED}
NAMES = tuple(FAMILIES)
