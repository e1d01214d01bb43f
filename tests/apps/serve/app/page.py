"""What a page does, without a browser: requests with the token, and events read as they come."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..served import Answer, Served

HEADER = "x-partita-page"


@dataclass(frozen=True)
class Told:
    id: int
    kind: str
    data: Any


class Page:
    def __init__(self, server: Served) -> None:
        self.server = server
        self.headers = {HEADER: server.token}

    def get(self, path: str) -> Any:
        return self._json(self.server.get(path, self.headers))

    def post(self, path: str, body: Any = None) -> Any:
        return self._json(self.server.post(path, {} if body is None else body, self.headers))

    def refused(self, method: str, path: str, body: Any = None) -> tuple[int, Mapping[str, Any]]:
        """Status and error."""
        given = {} if body is None and method == "POST" else body
        answer = self.server.ask(method, path, given, self.headers)
        assert answer.status >= 400, answer.body
        return answer.status, answer.json["error"]

    def chat(self, **more: Any) -> str:
        return self.post("/app/chats", more)["id"]

    def send(self, chat: str, text: str = "hi", **more: Any) -> Any:
        return self.post(f"/app/chats/{chat}/runs", {"do": "send", "text": text, **more})

    def reply(self, chat: str, text: str = "hi", **more: Any) -> Any:
        """The message of a whole reply."""
        started = self.send(chat, text, **more)
        assert self.told(started["run"])[-1].kind == "end"
        return self.message(chat, started["reply"])

    def message(self, chat: str, ident: str) -> Any:
        return next(each for each in self.get(f"/app/chats/{chat}")["messages"] if each["id"] == ident)

    def told(self, run: str, after: int | None = None) -> list[Told]:
        """All events to the end of the stream."""
        query = "" if after is None else f"?after={after}"
        with self.listening(f"/app/runs/{run}/events{query}") as events:
            return list(events)

    @contextmanager
    def listening(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[Iterator[Told]]:
        connection = self.server.connect()
        try:
            connection.request("GET", path, headers={**self.headers, **(headers or {})})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            yield events_of(answer)
        finally:
            connection.close()

    def _json(self, answer: Answer) -> Any:
        assert answer.status == 200, answer.body
        return answer.json


def events_of(answer: http.client.HTTPResponse) -> Iterator[Told]:
    fields: dict[str, str] = {}
    for raw in answer:
        line = raw.decode().rstrip("\n")
        name, _, value = line.partition(": ")
        if line.startswith(":"):
            continue
        if line:
            fields[name] = value
        elif fields:
            yield Told(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


def text_of(events: list[Told]) -> str:
    """What a page shows of a reply, as HTML and the open rest."""
    closed, rest = "", ""
    for each in events:
        if each.kind == "begin":
            closed, rest = "", ""
        elif each.kind == "text":
            rest += each.data["text"]
        elif each.kind == "block":
            closed = each.data["html"] if each.data["again"] else closed + each.data["html"]
            rest = each.data["rest"]
    return closed + rest
