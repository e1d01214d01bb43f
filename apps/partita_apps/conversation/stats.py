"""What a reply cost: counted while its pieces pass, shown as a line for people and as fields of a document."""

from __future__ import annotations

from typing import Any

from partita.language_model import Piece
from partita.text.reply.parser import ToolCall
from partita.units import duration, memory_size

from .conversation import NONE, Conversation


class ReplyStats:
    """Give every piece to `add`. seconds of a token: since the one before, of the first: since the prompt began."""

    def __init__(self, conversation: Conversation):
        self._conversation = conversation
        self.tokens: list[int] = []
        """Generated ids without the token that ended the reply."""
        self._said: list[str] = []
        self._thought: list[str] = []
        self.calls: list[ToolCall] = []
        self.thought_tokens = 0
        self._thinks = False
        self.finish_reason: str | None = None
        self.trace: list[dict[str, Any]] = []
        self._seconds: list[float] = []

    def add(self, piece: Piece) -> None:
        text = self._conversation.token_text
        self._said.append(piece.text)
        self._thought.append(piece.thought)
        self.calls += [piece.call] if piece.call is not None else []
        if piece.thought or piece.text or piece.call is not None:
            self._thinks = bool(piece.thought)
        self.thought_tokens += self._thinks and piece.token is not None
        self.finish_reason = piece.finish_reason
        token = piece.token
        if token is None:
            return
        self._seconds.append(token.seconds)
        if token.id not in self._conversation.stop_ids:
            self.tokens.append(token.id)
        if token.probability is not None:
            others = [{"id": i, "text": text(i), "probability": p} for i, p in token.alternatives]
            row = {"id": token.id, "text": text(token.id), "probability": token.probability}
            self.trace.append({**row, "alternatives": others, "milliseconds": token.seconds * 1000})

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(self._said)

    @property
    def thought(self) -> str:
        return "".join(self._thought)

    @property
    def first_token_seconds(self) -> float | None:
        return self._seconds[0] if self._seconds else None

    @property
    def count(self) -> int:
        """Generated tokens, without the one that ended the reply."""
        told = self._conversation.state.tokens
        return len(self.tokens) if told is None else told

    @property
    def thought_count(self) -> int:
        """Of them, those that were thought."""
        told = self._conversation.state.thought_tokens
        return self.thought_tokens if told is None else told

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding alone, the first token left out. None with fewer than two."""
        later = self._seconds[1:]
        told = self._conversation.state.tokens
        count = len(later) if told is None else told - 1
        return count / sum(later) if count > 0 and sum(later) > 0 else None

    @property
    def read_tokens(self) -> int | None:
        """Of the prompt, those that were read for this reply: the others were in the cache. None: nobody says."""
        state = self._conversation.state
        return None if state.prompt_tokens is None else state.prompt_tokens - (state.reused or 0)

    @property
    def prompt_tokens_per_second(self) -> float | None:
        """Of the tokens that were read for this reply; those in the cache already cost nothing and do not count."""
        seconds, read = self.first_token_seconds, self.read_tokens
        return read / seconds if seconds and read is not None and read > 0 else None

    def details(self) -> str:
        """For people who asked for it, under that line: how fast the prompt was read, and the peak of memory."""
        state, speed = self._conversation.state, self.prompt_tokens_per_second
        parts = [] if self.read_tokens is None else [f"prompt {counted(self.read_tokens)}"]
        parts += [] if speed is None else [f"{speed:.1f}/s"]
        parts += [f"{state.reused} reused"] if state.reused else []
        parts += [] if state.peak_bytes is None else [f"peak memory {memory_size(state.peak_bytes)}"]
        return " · ".join(parts) or "nothing is known of the prompt"

    def line(self) -> str:
        """For people, under the reply."""
        state, context = self._conversation.state, self._conversation.about.context
        thoughts = f", {self.thought_count} of them thoughts" if self.thought_count else ""
        parts = [f"{counted(self.count)}{thoughts}"]
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.1f}/s")
        if self.first_token_seconds is not None:
            parts.append(f"first {duration(self.first_token_seconds)}")
        if state.seen is not None:
            parts.append(f"context {state.seen}" + (f"/{context}" if context is not None else ""))
        if state.cache_bytes is not None:
            parts.append(f"cache {memory_size(state.cache_bytes)}")
        if state.forgotten is not None and state.forgotten > 0:
            parts.append(f"{state.forgotten} forgotten")
        if self.finish_reason == "length":
            parts.append(f"cut at {self._conversation.settings.max_tokens} tokens (max_tokens)")
        if self._conversation.acceptance is not None:
            found = self._conversation.acceptance
            parts.append(f"drafts {found.accepted}/{found.proposed} accepted")
        return " · ".join(parts)

    def document(self, seed: int | None, trace: bool) -> dict[str, Any]:
        """Everything, for programs; null where nobody knows. Sizes in bytes, times in seconds, the trace's in
        milliseconds."""
        about, state = self._conversation.about, self._conversation.state
        found = {
            "text": self.text,
            "reasoning": self.thought or None,
            "tool_calls": [described(call) for call in self.calls],
            "tokens": None if any(token < 0 for token in self.tokens) else self.tokens,
            "prompt_tokens": state.prompt_tokens,
            "finish_reason": self.finish_reason,
            "model": about.model,
            "adapter": None if about.adapter == NONE else about.adapter,
            "backend": about.backend,
            "device": about.device,
            "dtype": about.dtype,
            "kv": about.kv,
            "context": about.context,
            "sinks": about.sinks,
            "cache_bytes": state.cache_bytes,
            "first_token_seconds": self.first_token_seconds,
            "tokens_per_second": self.tokens_per_second,
            "prompt_tokens_per_second": self.prompt_tokens_per_second,
            "peak_bytes": state.peak_bytes,
            "seed": seed,
            "forgotten_tokens": None if state.forgotten is None else max(state.forgotten, 0),
            "reused_tokens": state.reused,
            "draft": self._draft(),
        }
        return {**found, "trace": self.trace} if trace else found

    def _draft(self) -> dict[str, Any] | None:
        found = self._conversation.acceptance
        if found is None:
            return None
        counts = {"proposed": found.proposed, "accepted": found.accepted, "steps": found.steps}
        return {**counts, "acceptance_rate": found.rate}


def described(call: ToolCall) -> dict[str, Any]:
    """A tool call as OpenAI's API has it. One that is not understood has no function, but an error and its text."""
    if call.error is not None:
        return {"type": "error", "error": call.error, "written": call.written}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def counted(tokens: int) -> str:
    return f"{tokens} token{'s' * (tokens != 1)}"
