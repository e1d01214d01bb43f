"""A reply in the form of the Messages API: events of its stream, and the message. Data in, data out; no HTTP, no model.

Invariants: the message is what the stream's events add up to, since the same code makes both; blocks come one after the
other, their indexes rise by one; each thought ends with a signature that is not empty.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any, Literal

from partita.text.reply.called import ToolCall

from ..asked import Delta, Ended, Event, Refused, Started, Waiting
from .errors import document
from .thoughts import SIGNATURE, sealed

Json = dict[str, Any]


class MessageWriter:
    """One reply. max_tokens: as asked for; a reply that ends before, and not by itself, has filled the context.

    show_thoughts: else thoughts are given as an opaque signature alone, which the client gives back. silence: seconds
    of such a thought after which an empty delta comes: clients that see no comments take a reply that says nothing for
    minutes for dead.
    """

    def __init__(self, model: str, max_tokens: int, *, show_thoughts: bool = True, silence: float = 20.0) -> None:
        self._max_tokens, self._show_thoughts = max_tokens, show_thoughts
        self._silence, self._said = silence, time.monotonic()
        self._content: list[Json] = []
        self._kind: Literal["speech", "thought"] | None = None  # of the block that is being written
        self._pieces: list[str] = []
        self._called = False
        self.message: Json = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
            "usage": _usage(0, 0),
        }
        """Whole behind the last event."""

    def push(self, event: Event) -> list[Json]:
        """What the stream says of an event."""
        found = list(self._push(event))
        self._said = time.monotonic() if found else self._said
        return found

    def fail(self, why: Refused) -> list[Json]:
        """The end of a stream that has begun and cannot go on."""
        return [document(why, "anthropic")]

    def _push(self, event: Event) -> Iterator[Json]:
        match event:
            case Waiting():
                return
            case Started():
                self.message = {**self.message, "usage": _usage(event.prompt_tokens, event.cached_tokens)}
                yield {"type": "message_start", "message": self.message}
                yield {"type": "ping"}
            case Delta(kind="tool_call", call=ToolCall() as call):
                yield from self._close()
                yield from self._call(call)
            case Delta(kind="speech" | "thought" as kind):
                yield from self._say(kind, event.text)
            case Delta():
                raise ValueError(f"a {event.kind} without a call")
            case Ended():
                yield from self._close()
                yield from self._end(event)

    def _end(self, ended: Ended) -> Iterator[Json]:
        reason = self._reason(ended)
        stop = ended.stop if reason == "stop_sequence" else None
        details = {"thinking_tokens": ended.thought_tokens}
        counted = {"output_tokens": ended.completion_tokens, "output_tokens_details": details}
        usage = {**self.message["usage"], **counted}
        end = {"stop_reason": reason, "stop_sequence": stop, "stop_details": None, "container": None}
        self.message = {**self.message, **end, "content": self._content, "usage": usage}
        kept = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "server_tool_use")
        yield {"type": "message_delta", "delta": end, "usage": {name: usage[name] for name in kept} | counted}
        yield {"type": "message_stop"}

    def _reason(self, ended: Ended) -> str:
        if ended.reason == "length":
            return "max_tokens" if ended.completion_tokens >= self._max_tokens else "model_context_window_exceeded"
        if self._called:
            return "tool_use"
        return "end_turn" if ended.stop is None else "stop_sequence"

    # ---------------------------------------------------------------- blocks

    def _say(self, kind: Literal["speech", "thought"], text: str) -> Iterator[Json]:
        if not text:
            return
        if self._kind != kind:
            yield from self._close()
            self._kind = kind
            empty = {"type": "text", "text": "", "citations": None}
            yield self._start(empty if kind == "speech" else {"type": "thinking", "thinking": "", "signature": ""})
        self._pieces.append(text)
        if kind == "speech":
            yield self._delta({"type": "text_delta", "text": text})
        elif self._show_thoughts:
            yield self._delta({"type": "thinking_delta", "thinking": text})
        elif time.monotonic() - self._said >= self._silence:
            yield self._delta({"type": "thinking_delta", "thinking": ""})

    def _close(self) -> Iterator[Json]:
        if self._kind is None:
            return
        kind, text = self._kind, "".join(self._pieces)
        self._kind, self._pieces = None, []
        if kind == "speech":
            block: Json = {"type": "text", "text": text, "citations": None}
        else:
            shown = self._show_thoughts
            signature = SIGNATURE if shown else sealed(text)
            yield self._delta({"type": "signature_delta", "signature": signature})
            block = {"type": "thinking", "thinking": text if shown else "", "signature": signature}
        yield from self._stop(block)

    def _call(self, call: ToolCall) -> Iterator[Json]:
        self._called = True
        ident = re.sub(r"[^a-zA-Z0-9_-]", "_", call.id)
        block = {"type": "tool_use", "id": ident, "name": call.name, "input": {}, "caller": {"type": "direct"}}
        yield self._start(block)
        yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        yield from self._stop({**block, "input": json.loads(call.arguments)})

    def _start(self, block: Json) -> Json:
        return {"type": "content_block_start", "index": len(self._content), "content_block": block}

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": len(self._content), "delta": delta}

    def _stop(self, block: Json) -> Iterator[Json]:
        yield {"type": "content_block_stop", "index": len(self._content)}
        self._content.append(block)


def _usage(prompt: int, cached: int) -> Json:
    return {
        "input_tokens": prompt - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "cache_creation": None,
        "output_tokens": 0,
        "output_tokens_details": None,
        "server_tool_use": None,
        "service_tier": "standard",
        "inference_geo": None,
    }
