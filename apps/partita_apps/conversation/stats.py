"""What a reply cost: counted while its pieces pass, shown as a line for people and as fields of a document."""

from __future__ import annotations

from typing import Any

from partita.language_model import Piece
from partita.text.reply.parser import ToolCall
from partita.units import duration, memory_size

from .conversation import Conversation


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
        tokenizer = self._conversation.model.tokenizer
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
        if token.id not in tokenizer.stop_ids:
            self.tokens.append(token.id)
        if token.alternatives:
            others = [{"id": i, "text": tokenizer.token_text(i), "probability": p} for i, p in token.alternatives]
            row = {"id": token.id, "text": tokenizer.token_text(token.id), "probability": token.probability}
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
    def tokens_per_second(self) -> float | None:
        """Of decoding alone, the first token left out. None with fewer than two."""
        later = self._seconds[1:]
        return len(later) / sum(later) if later and sum(later) > 0 else None

    @property
    def prompt_tokens_per_second(self) -> float | None:
        """Of the tokens that were read for this reply; those in the cache already cost nothing and do not count."""
        seconds, read = self.first_token_seconds, self._conversation.prompt_tokens - self._conversation.session.reused
        return read / seconds if seconds and read > 0 else None

    @property
    def peak_bytes(self) -> int | None:
        """The most memory that the process had on the device so far; None where the backend does not know."""
        return self._conversation.model.ops.memory().peak or None

    def details(self) -> str:
        """For people who asked for it, under that line: how fast the prompt was read, and the peak of memory."""
        session, speed, peak = self._conversation.session, self.prompt_tokens_per_second, self.peak_bytes
        parts = [f"prompt {counted(self._conversation.prompt_tokens - session.reused)}"]
        parts += [] if speed is None else [f"{speed:.1f}/s"]
        parts += [f"{session.reused} reused"] if session.reused else []
        parts += [] if peak is None else [f"peak memory {memory_size(peak)}"]
        return " · ".join(parts)

    def line(self) -> str:
        """For people, under the reply."""
        session = self._conversation.session
        slots, spec = session.cache.slots(), session.cache.spec
        thoughts = f", {self.thought_tokens} of them thoughts" if self.thought_tokens else ""
        parts = [f"{counted(len(self.tokens))}{thoughts}"]
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.1f}/s")
        if self.first_token_seconds is not None:
            parts.append(f"first {duration(self.first_token_seconds)}")
        parts.append(f"context {slots.sinks + slots.window}/{spec.context}")
        parts.append(f"cache {memory_size(session.cache.nbytes)}")
        if session.forgotten > 0:
            parts.append(f"{session.forgotten} forgotten")
        if self.finish_reason == "length":
            parts.append(f"cut at {self._conversation.settings.max_tokens} tokens (max_tokens)")
        if self._conversation.draft is not None:
            found = self._conversation.draft.acceptance
            parts.append(f"drafts {found.accepted}/{found.proposed} accepted")
        return " · ".join(parts)

    def document(self, seed: int | None, trace: bool) -> dict[str, Any]:
        """Everything, for programs. sizes in bytes, times in seconds, the trace's in milliseconds."""
        model, session = self._conversation.model, self._conversation.session
        spec = session.cache.spec
        found = {
            "text": self.text,
            "reasoning": self.thought or None,
            "tool_calls": [described(call) for call in self.calls],
            "tokens": self.tokens,
            "prompt_tokens": self._conversation.prompt_tokens,
            "finish_reason": self.finish_reason,
            "model": model.name,
            "adapter": None if not model.adapter else self._conversation.adapters.current,
            "backend": model.ops.name,
            "device": model.ops.device,
            "dtype": model.ops.dtype,
            "kv": str(spec.kv),
            "context": spec.context,
            "sinks": spec.sinks,
            "cache_bytes": session.cache.nbytes,
            "first_token_seconds": self.first_token_seconds,
            "tokens_per_second": self.tokens_per_second,
            "prompt_tokens_per_second": self.prompt_tokens_per_second,
            "peak_bytes": self.peak_bytes,
            "seed": seed,
            "forgotten_tokens": max(session.forgotten, 0),
            "reused_tokens": session.reused,
            "draft": self._draft(),
        }
        return {**found, "trace": self.trace} if trace else found

    def _draft(self) -> dict[str, Any] | None:
        if self._conversation.draft is None:
            return None
        found = self._conversation.draft.acceptance
        counts = {"proposed": found.proposed, "accepted": found.accepted, "steps": found.steps}
        return {**counts, "acceptance_rate": found.rate}


def described(call: ToolCall) -> dict[str, Any]:
    """A tool call as OpenAI's API has it. One that is not understood has no function, but an error and its text."""
    if call.error is not None:
        return {"type": "error", "error": call.error, "written": call.written}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def counted(tokens: int) -> str:
    return f"{tokens} token{'s' * (tokens != 1)}"
