"""HTML of messages: whole ones, which are kept for the next time, and of a reply that grows.

Not here: Markdown itself (`markup`). Invariant: what is kept is bounded, and is what would be rendered again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...markup import Blocks, Renderer

MOST_KEPT = 16 << 20
"""Characters of all texts that are kept, with their HTML."""


class Rendering:
    """For all threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    @cached_property
    def _renderer(self) -> Renderer:
        from ...markup import Renderer  # a tenth of a second, and a server may never show a page

        return Renderer()

    def blocks(self) -> Blocks:
        """Of a text that grows."""
        from ...markup import Blocks

        return Blocks(self._renderer)

    def html(self, text: str) -> str:
        found = self._look(text)
        if found is None:
            found = self._renderer.html(text)
            self._keep(text, found)
        return found

    def some(self, texts: Iterable[str], seconds: float) -> list[str | None]:
        """HTML of texts; None of those that would be rendered after so many seconds, and that nobody had before."""
        until = time.monotonic() + seconds
        return [self._look(text) if time.monotonic() > until else self.html(text) for text in texts]

    def _look(self, text: str) -> str | None:
        with self._lock:
            found = self._kept.get(text)
            if found is not None:
                self._kept.move_to_end(text)
            return found

    def _keep(self, text: str, html: str) -> None:
        size = len(text) + len(html)
        with self._lock:
            if text in self._kept or size > MOST_KEPT // 4:
                return
            self._kept[text] = html
            self._size += size
            while self._size > MOST_KEPT:
                old, gone = self._kept.popitem(last=False)
                self._size -= len(old) + len(gone)
