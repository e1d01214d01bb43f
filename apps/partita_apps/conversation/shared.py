"""A conversation whose replies are runs of our own server: its pages show them live, and can stop them.

Not here: what goes over the wire (`app_client.py`), and what is kept (`record.py`). Invariants: while the history is on
the server writes what is said, and nothing is written here beside it; while it is off, replies are those of any server,
and nobody keeps them; a run goes on when the connection is lost, and ends when the reply is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from partita.errors import SourceError
from partita.inference.runner import Generated
from partita.language_model import Piece
from partita.text.reply.parser import ToolCall

from .app_client import AppClient
from .client import Client
from .conversation import State, answered, asked
from .record import Place, Record
from .remote import UNNAMED, RemoteConversation
from .settings import Settings
from .stats import ReplyStats
from .stored_messages import asked_text

if TYPE_CHECKING:
    from ..history import Chat, History

PATIENCE = 5.0
"""Seconds in which a run that is stopped comes to its end."""
Json = Mapping[str, Any]


class SharedConversation(RemoteConversation):
    """app: the server as its page sees it."""

    def __init__(
        self,
        client: Client,
        app: AppClient,
        model: str | None,
        settings: Settings,
        chosen: Sequence[str] = (),
        *,
        rather: str | None = None,
    ) -> None:
        super().__init__(client, model, settings, chosen, rather=rather)
        self.app = app

    def reply(
        self,
        text: str,
        *,
        prompt: Sequence[int] | None = None,
        alternatives: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Generator[Piece, None, None]:
        """As that of other servers."""
        record = self.record
        if not isinstance(record, SharedRecord) or not record.on:
            yield from super().reply(text, prompt=prompt, alternatives=alternatives, on_progress=on_progress)
            return
        self.check(text)
        self._state = State()
        run, reading, said = record.start(text), _Events(self._texts if alternatives else None), list[Piece]()
        try:
            with closing(self.app.events(run)) as events:
                for event in events:
                    done = reading.take(event)
                    if on_progress is not None and not said:
                        on_progress(*reading.progress)
                    for piece in done or ([Piece("")] if said else []):
                        said.append(piece)
                        yield piece
            self._look_again()
        except SourceError:
            raise
        except BaseException:  # the reply is not wanted any more
            said += self._stopped(run, reading)
            raise
        finally:
            self._state = self._counted(reading)
            if any(piece.text or piece.thought or piece.call for piece in said):
                self.messages, self.emptied = [*self.messages, asked(text), answered(said, calls=True)], False
        if reading.failed:
            raise SourceError(reading.failed)

    def take_model(self, name: str) -> None:
        """Go on with another model of the server, if it has it."""
        self._model = self._models.get(name, self._model)

    @property
    def model_id(self) -> str:
        """The name under which the server knows the model, with its adapter."""
        return self._model.id

    def _stopped(self, run: str, reading: _Events) -> list[Piece]:
        """End a run; what it has said until then."""
        found, until = list[Piece](), time.monotonic() + PATIENCE
        with suppress(SourceError):
            self.app.post(f"/app/runs/{run}/stop", {})
            with closing(self.app.events(run, reading.number)) as events:
                for event in events:
                    found += reading.take(event)
                    if time.monotonic() > until:
                        break
        return found

    def _counted(self, reading: _Events) -> State:
        end, context = reading.end, self._model.context
        held = _count(end, "held")
        return State(
            prompt_tokens=_count(end, "prompt_tokens"),
            reused=_count(end, "cached_tokens"),
            tokens=_count(end, "tokens"),
            thought_tokens=_count(end, "thought_tokens"),
            held=held,
            seen=held if held is None or context is None else min(held, context),
            forgotten=_count(end, "forgotten"),
            cache_bytes=_count(end, "cache_bytes"),
        )


class SharedRecord(Record):
    """What is kept of it: the server writes the messages, and here is known which they are."""

    def __init__(self, conversation: SharedConversation, opening: Callable[[], History], *, on: bool = True) -> None:
        self._shared = conversation
        self._run: tuple[str, str] | None = None  # the ids of a text and of its reply
        self._place: Place | None = None
        super().__init__(conversation, opening, on=on)

    @property
    def model(self) -> str:
        return self._shared.model_id

    def settle(self) -> None:
        super().settle()
        if self.on and self.chat is not None and self.live is None and self.chat.model != self.model:
            self.chat = self.history.change(self.chat.id, model=self.model)

    def start(self, text: str) -> str:
        """Begin the run that answers a text, or find the one that does so already; its name. Raises SourceError."""
        if self.live is not None and self._run is not None and text == self.live:
            self.live = None
            return self._run[1]
        self.settle()
        self._place = place = self.placed(text)
        what = {"do": "send", "parent": place.parent, "text": text, "attachments": []}
        if place.asked is not None:
            what = {"do": "again", "message": place.asked}
        found = self._shared.app.post(f"/app/chats/{place.chat}/runs", what)
        names = [found.get(name) for name in ("run", "message", "reply")]
        if not all(isinstance(name, str) for name in names):
            raise SourceError(f"{self._shared.app.address}: its answer names no run")
        self._run = str(names[1]), str(names[2])
        return str(names[0])

    @contextmanager
    def turn(self, text: str, stats: ReplyStats) -> Iterator[Callable[[], None]]:
        before, self._place = self._conversation.messages, None
        if self.live is None:
            self._run = None
        try:
            yield lambda: None
        finally:
            with self._trying():
                if self.on and self.chat is not None:
                    self._after(before)

    def _after(self, before: list[dict[str, Any]]) -> None:
        place, chat = self._place, self.chat
        if chat is None:
            return
        if self._conversation.messages is not before:
            if self._run is not None:
                self._known += list(zip(self._conversation.messages[-2:], self._run, strict=True))
            self.chat = self.history.chat(chat.id)
        elif place is not None and place.fresh:
            self.history.erase(chat.id)
            self.leave()
        elif place is not None:
            self.chat = self.history.change(chat.id, leaf=place.before)

    def open(self, chat: Chat, given: Mapping[str, Any] | None = None) -> str:
        """Also a chat in which the server is writing: its reply is `live` then."""
        path = self.history.path(chat.id)
        live = len(path) > 1 and path[-1].state == "running" and self._runs(chat.id)
        note = super().open(chat, given, path[:-2] if live else None)
        self._shared.take_model(chat.model)
        if live:
            self._run, self.live = (path[-2].id, path[-1].id), asked_text(path[-2])
        self.settle()
        return note

    def _runs(self, chat: str) -> bool:
        return self._shared.app.get(f"/app/chats/{chat}").get("run") is not None


class _Events:
    """Events of a run on their way to pieces. texts: of tokens, where each token is wanted with its runners-up. number:
    of the last one. progress: of the prompt. end: what is known at the end."""

    def __init__(self, texts: dict[int, str] | None) -> None:
        self._texts, self._then = texts, time.monotonic()
        self.number, self.progress = 0, (0, 0)
        self.end: Json = {}
        self.failed = ""

    def take(self, event: tuple[int, str, Json] | None) -> list[Piece]:
        if event is None:
            return []
        self.number, kind, data = event
        if kind == "wait" and data.get("what") == "prompt":
            self.progress = _count(data, "done") or 0, _count(data, "total") or 0
        elif kind in ("text", "thought", "block"):
            return self._said(kind, str(data.get("text") or ""))
        elif kind == "call":
            name, arguments, ident = (str(data.get(key) or "") for key in ("name", "arguments", "id"))
            return [Piece("", call=ToolCall(name, arguments or "{}", ident, f"{name} {arguments}"))]
        elif kind == "tokens" and self._texts is not None:
            return [Piece("", token) for row in data.get("tokens") or () if (token := _token(row, self._texts))]
        elif kind == "end":
            return self._ended(data)
        return []

    def _said(self, kind: str, text: str) -> list[Piece]:
        if not text:
            return []
        now = time.monotonic()
        token = None if self._texts is not None else Generated(UNNAMED, now - self._then)
        self._then = now
        return [Piece("", token, thought=text) if kind == "thought" else Piece(text, token)]

    def _ended(self, data: Json) -> list[Piece]:
        self.end = data
        if data.get("state") == "failed":
            error = data.get("error")
            self.failed = str(error.get("message") if isinstance(error, Mapping) else error or "the reply failed")
            return []
        if data.get("state") in ("stopped", "interrupted"):
            return [Piece("")]
        return [Piece("", finish_reason="length" if data.get("state") == "length" else "stop")]


def _token(data: Any, texts: dict[int, str]) -> Generated | None:
    """A token of the trace with its runners-up, whose texts are put down. None for one that says nothing."""
    try:
        if data.get("ends"):
            return None
        texts |= {int(ident): str(text) for ident, text, _ in [(data["id"], data["text"], 0), *data["top"]]}
        others = tuple((int(ident), float(p)) for ident, _, p in data["top"])
        return Generated(int(data["id"]), float(data["ms"] or 0.0) / 1000, float(data["p"]), others)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _count(data: Json, name: str) -> int | None:
    value = data.get(name)
    return value if isinstance(value, int) else None
