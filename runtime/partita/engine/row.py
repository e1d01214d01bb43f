"""One reply that is being computed: its tokens, what it is held to, and when it ends. On the host; knows no cache.

Invariant: `tokens` is the prompt and the reply so far; the last one is not in any cache yet.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..backend import MASKED
from ..errors import PartitaError
from ..inference.runner import Generated
from ..language_model import LanguageModel
from .matcher import Matcher
from .request import Event, Failed, Finished, Request, Token, Warned

Kind = Literal["input", "memory", "busy", "internal"]
Reason = Literal["stop", "length", "cancelled"]


@dataclass(eq=False)
class Row:
    """left: tokens that may still come. queued: those that a matcher has forced. ended: nothing more will come; failed:
    by a fault of its own. clock: seconds. reported: when its cache was, if ever."""

    request: Request
    model: LanguageModel
    tokens: list[int]
    left: int
    clock: Callable[[], float] = time.perf_counter
    matcher: Matcher | None = None
    queued: list[int] = field(default_factory=list[int])
    ended: bool = False
    failed: bool = False
    reported: float = -math.inf
    _before: float | None = None  # when the token before came
    _mask: Future[np.ndarray | None] | None = None
    _warned: str | None = None

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def ruled(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        return bool(self.request.logit_bias) or self.matcher is not None

    def begin(self, matcher: Matcher | None, executor: Executor) -> list[Event]:
        """The prompt has been read, and the first token is to be chosen next. Raises what the matcher raises."""
        self.matcher = matcher
        self._force()
        return self._settled(executor)

    def rule(self) -> np.ndarray:
        """What is added to the logits of the next token, float32 (V,)."""
        size = self.model.config.vocab_size
        added = np.zeros(size, np.float32)
        for token, bias in self.request.logit_bias.items():
            added[token] = bias
        allowed = self._allowed(size)
        return added if allowed is None else np.where(allowed, added, np.float32(MASKED))

    def settle(self) -> list[Event]:
        """Wait for what may come next. Raises what the matcher raises."""
        if self._mask is not None:
            self._mask.result()
        return self._told()

    def take(self, generated: Generated, executor: Executor) -> list[Event]:
        """The next token has been chosen: what there is to report. Raises what the matcher raises."""
        return [self.token(generated), *self.push(generated.id, executor)]

    def token(self, generated: Generated) -> Token:
        count, seconds = self.request.alternatives, self._since() if self.request.trace else None
        if not count:
            return Token(self.id, generated.id, seconds=seconds)
        return Token(self.id, generated.id, generated.probability, generated.alternatives[:count], seconds)

    def _since(self) -> float | None:
        """Seconds since the token before, None for the first one."""
        before, self._before = self._before, self.clock()
        return None if before is None else self._before - before

    def push(self, token: int, executor: Executor) -> list[Event]:
        """Go on behind a token, or end."""
        self.tokens.append(token)
        self.left -= 1
        if token in self.request.stop_ids:
            return self.end("stop")
        if self.queued:
            self.queued.pop(0)  # the matcher knows it already
        elif self.matcher is not None:
            self.matcher.push(token)
            self._force()
        return self._settled(executor)

    def end(self, reason: Reason) -> list[Event]:
        self.ended = True
        return [Finished(self.id, reason)]

    def fail(self, error: Exception, kind: Kind = "input") -> list[Event]:
        """By an error of its own."""
        self.ended = self.failed = True
        if isinstance(error, PartitaError):
            return [Failed(self.id, str(error), kind, error.field)]
        return [Failed(self.id, f"the constraint failed ({type(error).__name__})")]

    def guarded(self, function: Callable[[], list[Event]]) -> list[Event]:
        """What it gives, or the end of this row alone."""
        try:
            return function()
        except Exception as error:
            return self.fail(error)

    def _force(self) -> None:
        """Queue the tokens that can only be these."""
        matcher, self._mask = self.matcher, None
        if matcher is None or matcher.finished:
            return
        for token in matcher.forced():
            matcher.push(token)
            self.queued.append(token)
            if matcher.finished:
                return

    def _settled(self, executor: Executor) -> list[Event]:
        """What is known before the next token; what may be that one is found out while the model reads the last one."""
        events = self._told()
        if not self.ended and not self.left:
            events += self.end("length")
        if self.matcher is not None and not (self.ended or self.matcher.finished or self._mask):
            self._mask = executor.submit(self.matcher.mask)
        return events

    def _told(self) -> list[Event]:
        """What the matcher has found out: a warning, the end."""
        matcher, events = self.matcher, list[Event]()
        if matcher is None:
            return events
        if matcher.warning not in (None, self._warned):
            self._warned = matcher.warning
            events.append(Warned(self.id, matcher.warning or ""))
        return [*events, *self.end("stop")] if matcher.finished and not self.queued else events

    def _allowed(self, size: int) -> np.ndarray | None:
        """Of every token, whether it may come next: bool (V,), or None."""
        if self.queued:
            return np.arange(size) == self.queued[0]
        mask = None if self._mask is None else self._mask.result()
        if mask is None:
            return None
        bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")[:size]
        return np.pad(bits, (0, size - len(bits))).astype(bool)
