"""A worker that plays replies which a test wrote down, behind the seam of the real one; and a registry of such models.

Tokenizer, chat template, parsers and detokenizer are the real ones of a tiny model folder; nothing is computed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from partita.engine.request import Event, Failed, Finished, Held, Progress, Request, Ring, Token, Warned
from partita_apps.serve import frames
from partita_apps.serve.asked import Refused
from partita_apps.serve.guests import Guests
from partita_apps.serve.model_text import ModelText
from partita_apps.serve.names import Entry
from partita_apps.serve.registry import Description


@dataclass(frozen=True)
class Script:
    """One reply. said: as text, in which literals of control tokens are those tokens, or as ids.

    reused: tokens of the prompt that were there before. chunk: tokens of the prompt that are read at once. ends: the
    model's own stop token follows, else the reply goes on to its `max_tokens`, saying its last token again. pause:
    seconds before each event. refuses: in place of everything. fails: after what was said. holds: nothing more comes
    after what was said. warns: first.
    """

    said: str | Sequence[int] = ""
    reused: int = 0
    chunk: int = 1 << 20
    ends: bool = True
    pause: float = 0.0
    refuses: Failed | None = None
    fails: Failed | None = None
    holds: bool = False
    warns: tuple[str, ...] = ()


Play = Script | Sequence[Script] | Callable[[Request], Script]
"""What is played: always the same, one after the other (the last one again and again), or by the request."""


class ScriptedWorker:
    """requests: all that came, in order. cancelled: ids of those whose iterator was closed before its end."""

    def __init__(self, text: ModelText, play: Play = Script()) -> None:  # frozen
        self.text, self.play = text, play
        self.requests: list[Request] = []
        self.cancelled: list[int] = []
        self.running: set[int] = set()
        self.beat: frames.Beat | None = None
        self.state = "ready"

    @property
    def facts(self) -> frames.Loaded:
        context = self.text.context
        return frames.Loaded("numpy", "cpu", "float32", "dense", context, context, bytes=1, row_bytes=1, free=1 << 30)

    async def events(self, request: Request) -> AsyncGenerator[Event, None]:
        request = msgspec.structs.replace(request, id=len(self.requests) + 1)
        script = self._next(request)
        self.requests.append(request)
        self.running.add(request.id)
        whole = False
        try:
            for event in self._events(request, script):
                await asyncio.sleep(script.pause)
                whole = isinstance(event, Finished | Failed)
                yield event
            if script.holds:
                await asyncio.Event().wait()
        finally:
            self.running.discard(request.id)
            if not whole:
                self.cancelled.append(request.id)

    def _next(self, request: Request) -> Script:
        if isinstance(self.play, Script):
            return self.play
        if callable(self.play):
            return self.play(request)
        return self.play[min(len(self.requests), len(self.play) - 1)]

    def ids(self, said: str | Sequence[int]) -> list[int]:
        if not isinstance(said, str):
            return list(said)
        return self.text.tokenizer.encode(said, bos=False, specials=True)

    def _events(self, request: Request, script: Script) -> Sequence[Event]:
        if script.refuses is not None:
            return [msgspec.structs.replace(script.refuses, id=request.id)]
        total = len(request.prompt)
        starts = range(script.reused, max(total, script.reused + 1), script.chunk)
        found: list[Event] = [Warned(request.id, message) for message in script.warns]
        found += [Progress(request.id, min(at + script.chunk, total), total, script.reused) for at in starts]
        found += [_held(request, total, self.text.context)] if request.trace else []
        ids = self.ids(script.said)
        if not script.ends and script.fails is None and not script.holds:
            ids += ids[-1:] * max(request.max_tokens - len(ids), 0)
        said = [_token(request, token) for token in ids[: request.max_tokens]]
        found += said
        if request.trace and not script.holds:
            found.append(_held(request, total + len(said), self.text.context))
        if script.fails is not None:
            return [*found, msgspec.structs.replace(script.fails, id=request.id)]
        if script.holds:
            return found
        if len(ids) < request.max_tokens and script.ends:
            return [*found, _token(request, request.stop_ids[-1]), Finished(request.id, "stop")]
        return [*found, Finished(request.id, "length")]


def _token(request: Request, token: int) -> Token:
    """With half of all probability, and the rest on the tokens before it, where probabilities are asked for."""
    count, seconds = request.alternatives, 0.02 if request.trace else None
    if not count:
        return Token(request.id, token, seconds=seconds)
    others = tuple((max(token - i, 0), 0.5 / 2**i) for i in range(count))
    return Token(request.id, token, 0.5, others, seconds)


def _held(request: Request, seen: int, context: int) -> Held:
    """Of a cache with four sinks and a ring of 31 slots more than its window."""
    sinks, window = min(seen, 4), min(max(seen - 4, 0), context - 4)
    ring = Ring(2, 4, context - 4, context + 27, min(context + 27, 255))
    free = context - sinks - window
    return Held(request.id, seen, seen, sinks, window, free, context, 1000, "k8v4", 8, 4, 32, 32, (ring,))


@dataclass
class ScriptedModel:
    text: ModelText
    worker: ScriptedWorker
    adapter: str = ""


@dataclass
class ScriptedRegistry:
    """loads: seconds that a model's first use takes. adapters: names that may follow a model's behind a colon.
    recommends: of each model's generation_config.json. folder: of the model's files, where something reads them."""

    models: Mapping[str, ScriptedModel]
    loads: float = 0.0
    adapters: Sequence[str] = ()
    recommends: Mapping[str, Any] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)
    folder: Path = Path()
    settings: frames.Load = field(default_factory=lambda: frames.Load("", backend="torch", dtype="float32"))
    guests: Guests = field(default_factory=Guests)

    def names(self) -> list[str]:
        return [*self.models, *(f"{name}:{adapter}" for name in self.models for adapter in self.adapters)]

    async def __aenter__(self) -> ScriptedRegistry:
        return self

    async def __aexit__(self, *error: Any) -> None: ...

    def describe(self, name: str) -> Description:
        base, adapter = self._find(name)
        facts = self.models[base].worker.facts
        return Description(
            name=name,
            base=base if adapter else None,
            state="loaded",
            created=1_700_000_000,
            bytes=1000,
            memory=2000,
            context=facts.context,
            pinned=False,
            facts=facts,
        )

    def free(self) -> int:
        return 1 << 33

    def entry(self, name: str) -> Entry:
        base, _ = self._find(name)
        return Entry(base, self.folder, 1000)

    def present(self, but: str = "") -> list[str]:
        return [name for name in self.models if name != but]

    def idle_bytes(self) -> int:
        return 0

    @asynccontextmanager
    async def making_room(self) -> AsyncGenerator[Callable[[], Awaitable[bool]], None]:
        async def unload() -> bool:
            return False

        yield unload

    async def put_adapter(self, path: Path, name: str, folder: str | None) -> str | None:
        """No model here takes one."""
        return None

    def predicted(self, name: str) -> int:
        self._find(name)
        return 3000

    async def generation_config(self, name: str) -> Mapping[str, Any]:
        self._find(name)
        return self.recommends

    async def unload(self, name: str) -> None:
        base, _ = self._find(name)
        if self.models[base].worker.running:
            raise Refused(f"{base} is being used", "conflict")
        self.unloaded.append(base)

    def workers(self) -> dict[str, ScriptedWorker]:
        return {name: model.worker for name, model in self.models.items()}

    async def loading(self, name: str) -> AsyncGenerator[tuple[int, int], None]:
        self._find(name)
        if not self.used and self.loads:
            yield 1, 2
            await asyncio.sleep(self.loads)

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[ScriptedModel]:
        base, adapter = self._find(name)
        self.used.append(name)
        yield replace(self.models[base], adapter=adapter)

    def _find(self, name: str) -> tuple[str, str]:
        if name not in self.names():
            raise Refused(f"there is no model {name!r}; expected one of {', '.join(self.names())}", "not_found")
        base, _, adapter = name.partition(":")
        return base, adapter


def scripted(folder: Path, play: Play = Script(), *, name: str = "tiny", **text: Any) -> ScriptedRegistry:
    """A registry of one model, with the tokenizer and the template of a folder. text: as in `ModelText.open`."""
    opened = ModelText.open(name, folder, **{"context": 512, **text})
    return ScriptedRegistry({name: ScriptedModel(opened, ScriptedWorker(opened, play))}, folder=folder)
