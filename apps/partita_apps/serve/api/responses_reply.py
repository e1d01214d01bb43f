"""A reply in the form of the Responses API: events of its stream, and the object. Data in, data out; no HTTP, no model.

Invariants: the object is what the stream's events add up to, since the same code makes both; an item has one id from
its first event to the last object; sequence numbers rise by one; what has been given out is never changed.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from partita.text.reply.called import ToolCall

from ..asked import Delta, Ended, Event, Logprob, Refused, Started, Waiting
from .errors import message
from .thoughts import sealed

Json = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]
_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
_CODES = {"invalid": "invalid_prompt", "context": "context_length_exceeded", "busy": "rate_limit_exceeded"}


class ResponseWriter:
    """One reply. head: the object's fields that are known from the request. calls: how the client calls each tool, by
    the name that the model knows: `{"name": …}`, with "namespace" or "custom" beside it.

    seal: whether thoughts are given as an opaque text, too. logprobs: whether texts carry their tokens' probabilities.
    silence: seconds of a long prompt after which the reply is said to be in progress once more: clients that see no
    comments take one that says nothing for minutes for dead.
    """

    def __init__(
        self,
        head: Mapping[str, Any],
        calls: Mapping[str, Mapping[str, Any]],
        *,
        seal: bool = False,
        logprobs: bool = False,
        silence: float = 20.0,
    ) -> None:
        self._head, self._calls, self._seal, self._logprobs = dict(head), calls, seal, logprobs
        self._id, self._created = f"resp_{secrets.token_hex(16)}", int(time.time())
        self._output: list[Json] = []
        self._open: _Text | None = None
        self._prompt = self._cached = self._sequence = 0
        self._silence, self._said = silence, time.monotonic()

    def push(self, event: Event) -> list[Json]:
        """What the stream says of an event."""
        return [self._numbered(found) for found in self._push(event)]

    def fail(self, why: Refused) -> list[Json]:
        """The end of a stream that has begun and cannot go on."""
        events = [] if self._sequence else [*self._begin()]
        events += self._close("incomplete")
        error = {"code": _CODES.get(why.kind, "server_error"), "message": message(why, "openai")}
        events.append({"type": "response.failed", "response": self._object("failed", error=error)})
        return [self._numbered(found) for found in events]

    def _begin(self) -> Iterator[Json]:
        for name in ("created", "in_progress"):
            yield {"type": f"response.{name}", "response": self._object("in_progress")}

    def _push(self, event: Event) -> Iterator[Json]:
        match event:
            case Waiting():
                if self._sequence and time.monotonic() - self._said >= self._silence:
                    yield {"type": "response.in_progress", "response": self._object("in_progress")}
            case Started():
                self._prompt, self._cached = event.prompt_tokens, event.cached_tokens
                self._head |= {name: getattr(event.sampling, name) for name in _SAMPLING}
                yield from self._begin()
            case Delta(kind="tool_call", call=ToolCall() as call):
                yield from self._close("completed")
                yield from self._call(call)
            case Delta(kind="speech" | "thought" as kind):
                logprobs = [_logprob(one) for one in event.logprobs] if self._logprobs and kind == "speech" else []
                if event.text or logprobs:
                    yield from self._say(kind, event.text, logprobs)
            case Delta():
                raise ValueError(f"a {event.kind} without a call")
            case Ended():
                yield from self._end(event)

    def _end(self, ended: Ended) -> Iterator[Json]:
        whole = ended.reason != "length"
        yield from self._close("completed" if whole else "incomplete")
        if whole and all(item["type"] == "reasoning" for item in self._output):  # clients look for a message or a call
            yield from self._say("speech", "", [])
            yield from self._close("completed")
        status = "completed" if whole else "incomplete"
        details = None if whole else {"reason": "max_output_tokens"}
        done = self._object(status, ended, incomplete_details=details)
        yield {"type": f"response.{status}", "response": done}

    # ---------------------------------------------------------------- items

    def _say(self, kind: Literal["speech", "thought"], text: str, logprobs: list[Json]) -> Iterator[Json]:
        if self._open is None or self._open.kind != kind:
            yield from self._close("completed")
            self._open = _Text(kind, len(self._output), self._seal)
            yield from self._open.begin()
        yield self._open.add(text, logprobs)

    def _close(self, status: Status) -> Iterator[Json]:
        text, self._open = self._open, None
        if text is not None:
            yield from text.end(status)
            self._output.append(text.item(status))

    def _call(self, call: ToolCall) -> Iterator[Json]:
        known = dict(self._calls.get(call.name, {"name": call.name}))
        if known.pop("custom", False):
            short, kind, key, arguments = "ctc", "custom_tool_call", "input", custom_input(call.arguments)
            events = "custom_tool_call_input"
        else:
            short, kind, key, arguments = "fc", "function_call", "arguments", call.arguments
            events = "function_call_arguments"
        where = {"item_id": f"{short}_{secrets.token_hex(16)}", "output_index": len(self._output)}
        item = {"type": kind, "id": where["item_id"], "call_id": call.id, **known}
        yield _item("added", where, {**item, key: "", "status": "in_progress"})
        yield {"type": f"response.{events}.delta", **where, "delta": arguments}
        yield {"type": f"response.{events}.done", **where, key: arguments}
        item |= {key: arguments, "status": "completed"}
        yield _item("done", where, item)
        self._output.append(item)

    # ---------------------------------------------------------------- the object

    @property
    def response(self) -> Json:
        """The object, behind the last event."""
        return self._last

    def _object(self, status: str, ended: Ended | None = None, **more: Any) -> Json:
        usage = None if ended is None else _usage(self._prompt, self._cached, ended)
        self._last = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            **self._head,
            "output": [*self._output],
            "usage": usage,
            **more,
        }
        return self._last

    def _numbered(self, event: Json) -> Json:
        self._sequence, self._said = self._sequence + 1, time.monotonic()
        return {"type": event["type"], "sequence_number": self._sequence - 1, **event}


class _Text:
    """An item that is written piece by piece: a message, or a thought."""

    def __init__(self, kind: Literal["speech", "thought"], index: int, seal: bool) -> None:
        self.kind, self._seal = kind, seal
        self._where: Json = {"item_id": f"{'msg' if kind == 'speech' else 'rs'}_{secrets.token_hex(16)}"}
        self._where["output_index"] = index
        self._event = f"response.{'output_text' if kind == 'speech' else 'reasoning_text'}"
        self._pieces: list[str] = []
        self._logprobs: list[Json] = []

    def begin(self) -> Iterator[Json]:
        yield _item("added", self._where, self.item("in_progress", begun=False))
        yield {"type": "response.content_part.added", **self._in_part, "part": self._part()}

    def add(self, text: str, logprobs: list[Json]) -> Json:
        self._pieces.append(text)
        self._logprobs += logprobs
        return {"type": f"{self._event}.delta", **self._in_part, "delta": text, **self._probable(logprobs)}

    def end(self, status: Status) -> Iterator[Json]:
        text = "".join(self._pieces)
        yield {"type": f"{self._event}.done", **self._in_part, "text": text, **self._probable(self._logprobs)}
        yield {"type": "response.content_part.done", **self._in_part, "part": self._part()}
        yield _item("done", self._where, self.item(status))

    def item(self, status: Status, *, begun: bool = True) -> Json:
        content = [self._part()] if begun else []
        ident = self._where["item_id"]
        if self.kind == "speech":
            return {"type": "message", "id": ident, "role": "assistant", "status": status, "content": content}
        item: Json = {"type": "reasoning", "id": ident, "status": status, "summary": [], "content": content}
        return item | ({"encrypted_content": sealed("".join(self._pieces))} if self._seal else {})

    @property
    def _in_part(self) -> Json:
        return {**self._where, "content_index": 0}

    def _part(self) -> Json:
        text = "".join(self._pieces)
        if self.kind == "thought":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*self._logprobs]}

    def _probable(self, logprobs: list[Json]) -> Json:
        return {"logprobs": [*logprobs]} if self.kind == "speech" else {}


def custom_input(arguments: str) -> str:
    """The text that a custom tool is called with: the model gave it as a function's one argument."""
    given = json.loads(arguments)
    return given["input"] if isinstance(given.get("input"), str) else arguments


def _item(what: Literal["added", "done"], where: Mapping[str, Any], item: Json) -> Json:
    return {"type": f"response.output_item.{what}", "output_index": where["output_index"], "item": item}


def _logprob(one: Logprob) -> Json:
    def said(token: Logprob) -> Json:
        return {"token": token.text, "bytes": [*token.bytes], "logprob": token.logprob}

    return {**said(one), "top_logprobs": [said(other) for other in one.top]}


def _usage(prompt: int, cached: int, ended: Ended) -> Json:
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": ended.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": ended.thought_tokens},
        "total_tokens": prompt + ended.completion_tokens,
    }
