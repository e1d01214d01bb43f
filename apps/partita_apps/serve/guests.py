"""Processes that take memory beside those of models, and how much of it they will still take.

Not here: room for them (`registry`). Invariant: what a guest was promised and has not taken yet is nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable


class Guests:
    """By the names that messages have for them."""

    def __init__(self) -> None:
        self._left: dict[str, Callable[[], int]] = {}

    def add(self, name: str, left: Callable[[], int]) -> None:
        """left: bytes that it will still take, asked whenever somebody else needs memory."""
        self._left[name] = left

    def drop(self, name: str) -> None:
        self._left.pop(name, None)

    @property
    def names(self) -> list[str]:
        return list(self._left)

    @property
    def bytes(self) -> int:
        return sum(left() for left in self._left.values())
