"""What an engine is asked and what it answers: ids in, ids out. Plain data, for a wire or a queue; no array library.

Invariants: an id names one request from its submission to its one `Finished` or `Failed`, and is not used again while
the engine lives. Tokens of a request come in order. Everything here is bounded by `MAX_…` before the engine sees it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..inference.sampling import Sampling

MAX_ALTERNATIVES = 20
MAX_BIASES = 1024
MAX_GRAMMAR = 64 << 10  # characters of a schema or a grammar


class Constraint(msgspec.Struct, frozen=True):
    """What a reply, or a part of it, must look like.

    kind: what `grammar` is: a JSON schema, or a grammar in llguidance's Lark. triggers: literals (control tokens by
    their own) behind which the constraint begins, each time one appears, while all else is free; none: it begins with
    the first token, and the reply ends with it. first: literals that are triggers, too, where the reply begins with
    one. thought: the literals around a thought that may stand in front, unconstrained. thinking: whether the prompt has
    opened that thought already. between: what stands between a thought and what follows it, an expression in Lark, ""
    for nothing. once: the reply ends with the first constrained part, where there are triggers. warning: what of the
    wish the grammar leaves out, in a line; it is given out as `Warned`.
    """

    kind: Literal["json_schema", "lark"]
    grammar: str
    triggers: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    thought: tuple[str, str] | None = None
    thinking: bool = False
    between: str = ""
    once: bool = False
    warning: str = ""


class Request(msgspec.Struct, frozen=True, tag=True):
    """One reply to compute. prompt: ids, at least one. stop_ids: each ends the reply, as its last token.

    alternatives: how many of the most probable tokens to report with each one. logit_bias: added to logits, by token.
    adapter: the name of a loaded one, "" for none. endless: go on when the context is full, forgetting the oldest
    tokens behind the sinks; else the reply ends there with "length". trace: report also the time of each token, and
    what the cache holds (`Held`).
    """

    id: int
    prompt: list[int]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop_ids: tuple[int, ...] = ()
    alternatives: int = 0
    logit_bias: dict[int, float] = {}
    constraint: Constraint | None = None
    adapter: str = ""
    endless: bool = False
    trace: bool = False


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The request is of no use to anybody any more. It finishes with "cancelled", or had finished before."""

    id: int


class Progress(msgspec.Struct, frozen=True, tag=True):
    """done of total tokens of the prompt are in the cache, of which the first `reused` were there before. seconds: that
    the last chunk of them took."""

    id: int
    done: int
    total: int
    reused: int
    seconds: float = 0.0


class Token(msgspec.Struct, frozen=True, tag=True):
    """One new token. probability, alternatives (token, probability): before any sampling rule, where asked for.
    seconds: since the token before it, where the request is traced; the first comes with the end of its prompt."""

    id: int
    token: int
    probability: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    seconds: float | None = None


class Ring(msgspec.Struct, frozen=True):
    """What the cache of one kind of layer has slots for. layers: how many there are of it.

    sinks: slots of the first tokens, kept for ever. window: tokens behind them that a query sees, its own included.
    turns: slots that tokens go round, the one at p in slot (p - sinks) % turns; None where nothing is overwritten.
    slots: of those, what there is memory for now.
    """

    layers: int
    sinks: int
    window: int | None
    turns: int | None
    slots: int


class Held(msgspec.Struct, frozen=True, tag=True):
    """What the cache of a traced request holds: after each chunk of its prompt, a few times a second while tokens come,
    and before its end.

    seen: tokens written so far, from the first one on. reached: the most there ever were, which is more where some were
    taken back. sinks, window, free: of the layers that see farthest, as in `Slots`. context: tokens that those keep.
    bytes: of the row. kv: the name of the format. The sinks are kept with sink_bits a number, all others with
    key_bits and value_bits, of which those below 16 are packed in groups of `group`. rings: those layers' first.
    """

    id: int
    seen: int
    reached: int
    sinks: int
    window: int
    free: int
    context: int | None
    bytes: int
    kv: str
    key_bits: int
    value_bits: int
    sink_bits: int
    group: int
    rings: tuple[Ring, ...]


class Warned(msgspec.Struct, frozen=True, tag=True):
    """Something that was asked for is not done, in a line; the reply goes on (a tool's schema that cannot be
    enforced)."""

    id: int
    message: str


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The end of a reply: a stop id (or the end of its constraint), its length or the context's, or a cancellation."""

    id: int
    reason: Literal["stop", "length", "cancelled"]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The end of a request that cannot be done, in a line for a person.

    kind: whose fault it is: "input" the request's (a grammar that does not compile, a prompt longer than the
    context), "memory" it can never fit, "busy" the queue is full, "internal" the engine's. field: the setting, as in
    PartitaError.
    """

    id: int
    message: str
    kind: Literal["input", "memory", "busy", "internal"] = "internal"
    field: str | None = None


Event = Progress | Token | Held | Warned | Finished | Failed
