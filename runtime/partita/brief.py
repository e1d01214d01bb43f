"""A line for what holds arrays, where the default representation would print every number in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sized
from pathlib import PurePath
from typing import Any

_COLLECTIONS: tuple[type[Sized], ...] = (tuple, list, dict, frozenset, set)


class Brief:
    """Base of dataclasses whose `repr` names each field with what fits on a line: numbers and short texts as they are,
    arrays by dtype and shape, collections by their length, anything else by its class."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__repr__" not in vars(cls):  # `dataclass` writes its own into a class that has none in itself
            cls.__repr__ = cls.__repr__

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        said = ", ".join(f"{field.name}={brief(getattr(self, field.name))}" for field in fields)
        return f"{type(self).__name__}({said})"


def brief(value: Any) -> str:
    """One field of a `Brief`."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str | PurePath):
        text = str(value)
        return repr(text if len(text) <= 40 else f"{text[:19]}…{text[-20:]}")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).split('.')[-1]}{list(value.shape)}"
    if isinstance(value, _COLLECTIONS):
        return f"<{len(value)}>"
    return type(value).__name__
