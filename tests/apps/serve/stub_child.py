"""A model's process whose engine computes nothing, for tests of what is around it: `python stub_child.py --fd N`.

A request's prompt begins with what the engine does with it, one of the numbers below; the tokens of its reply count
from 0 to `max_tokens`. The model's name has words that say how it loads.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from partita.engine.request import Event, Finished, Progress, Request, Token
from partita.errors import CheckpointError, ContextError, MemoryBudgetError
from partita_apps.serve.child import Steps, main
from partita_apps.serve.frames import Load, Loaded

PLAIN, DIE, HANG, RAISE, REFUSE, SLOW, FLOOD, BREAK, WAIT = range(9)
CONTEXT = 1000


class Engine:
    """`Steps`, one token of each request in a step."""

    def __init__(self) -> None:
        self._rows: dict[int, Request] = {}
        self._done: dict[int, int] = {}
        self._cancelled: set[int] = set()
        self._generated = self._steps = 0
        self.step_seconds = 0.001

    @property
    def idle(self) -> bool:
        return not self._rows

    @property
    def model(self) -> None:
        """It computes nothing, so no adapter fits it."""

    def put(self, adapter: str, model: None) -> None: ...

    def submit(self, request: Request) -> None:
        if request.prompt[0] == REFUSE:
            raise ContextError(f"{len(request.prompt)} tokens do not fit", field="context")
        if request.prompt[0] == BREAK:
            raise ZeroDivisionError("at 0x7f0012345678")
        self._rows[request.id], self._done[request.id] = request, 0

    def cancel(self, id: int) -> None:
        self._cancelled.add(id)

    def step(self) -> list[Event]:
        events: list[Event] = []
        self._steps += 1
        for id, request in list(self._rows.items()):
            events += self._stepped(id, request)
        return events

    def _stepped(self, id: int, request: Request) -> list[Event]:
        does, done = request.prompt[0], self._done[id]
        if id in self._cancelled or done >= request.max_tokens:
            del self._rows[id]
            return [Finished(id, "cancelled" if id in self._cancelled else "length")]
        if does == WAIT:
            return []
        if does == DIE and done == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if does == RAISE and done == 2:
            raise ZeroDivisionError("at 0x7f0012345678")
        if does == HANG and done == 2:
            time.sleep(600)
        if does == SLOW:
            time.sleep(0.01)
        count = 1000 if does == FLOOD else 1
        self._done[id] += count
        self._generated += count
        began: list[Event] = [] if done else [Progress(id, len(request.prompt), len(request.prompt), 0)]
        return began + [Token(id, done + i) for i in range(count)]

    def statistics(self) -> dict[str, int]:
        waiting = sum(request.prompt[0] == WAIT for request in self._rows.values())
        return {
            "rows": len(self._rows) - waiting,
            "prefilling": 0,
            "waiting": waiting,
            "cache_bytes": 0,
            "prefix_bytes": 0,
            "generated": self._generated,
            "prefilled": 0,
            "reused": self._steps,
        }


def open_stub(load: Load, on_layer: Callable[[int, int], None]) -> tuple[Steps, Loaded]:
    for done in range(3):
        on_layer(done + 1, 3)
    name = Path(load.model).name
    if "damaged" in name:
        raise CheckpointError("model.safetensors is damaged")
    if "huge" in name:
        raise MemoryBudgetError("it needs 9 GiB, 1 GiB are free", field="context")
    if "broken" in name:
        raise ZeroDivisionError("at 0x7f0012345678")
    if "dying" in name:
        os._exit(7)
    if "hanging" in name:
        time.sleep(600)
    return Engine(), Loaded("stub", "cpu", "float32", "16", CONTEXT, CONTEXT, 1 << 20, 1 << 10, 1 << 30)


if __name__ == "__main__":
    main(open_stub)
