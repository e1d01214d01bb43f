"""What every dialect of the API boils a request down to, and what comes back of it. Data; no HTTP, no model.

The way of a request: a dialect (`api/…`) reads its body into an `Ask`; `replies.reply` turns that into ids, has a
loaded model compute, and yields what became certain: `Waiting` any number of times, `Started` once, `Delta`s, `Ended`
once, and where the reply is traced `Spoken` and `Held` between them. The dialect writes these as its own JSON or
stream. What cannot be done raises `Refused`, before `Started` wherever possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from partita.engine.request import Held
from partita.inference.sampling import Sampling
from partita.printable import printable
from partita.text.reply.called import ToolCall

Message = Mapping[str, Any]
Kind = Literal[
    "invalid",
    "context",
    "unauthorized",
    "forbidden",
    "not_found",
    "method",
    "too_large",
    "media_type",
    "busy",
    "conflict",
    "memory",
    "engine",
    "internal",
]
"""method, media_type: of HTTP. conflict: with what is under way. memory: with `retry_after` there may be room later,
without it never."""


class Refused(Exception):
    """Why a request is not done, in a line that a person can act on; each dialect words it in its own error format. The
    line may quote the client: it is made printable, and cut, here.

    field: of the body, as the client wrote it. retry_after: seconds, for what is only busy now. needed, limit: tokens
    of the prompt and of the context, of the kind "context", whose wording clients parse.
    """

    def __init__(
        self,
        message: str,
        kind: Kind = "invalid",
        *,
        field: str | None = None,
        retry_after: int | None = None,
        needed: int | None = None,
        limit: int | None = None,
    ) -> None:
        message = printable(message)
        super().__init__(message)
        self.kind: Kind = kind
        self.message, self.field, self.retry_after = message, field, retry_after
        self.needed, self.limit = needed, limit


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. parameters: its arguments' JSON schema. namespace: of a tool that came inside
    one, which its calls are given back with."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    strict: bool = False
    namespace: str | None = None


@dataclass(frozen=True)
class ToolChoice:
    """mode: "required" is at least one call, of `name` where that is given."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None


@dataclass(frozen=True)
class Format:
    """What the speech of a reply must be: any JSON object, or JSON of a schema."""

    kind: Literal["json_object", "json_schema"]
    schema: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Ask:
    """One reply that is asked for. Exactly one of messages, text and ids is given.

    model: a name of the registry, `model:adapter` with an adapter. messages: in the form that chat templates take
    (roles system, user, assistant, tool; texts; `tool_calls` with arguments as objects; `reasoning_content`). text:
    completed as it is; control tokens' literals are those tokens. ids: the same, as tokens. sampling: what the client
    gave, by fields of `Sampling`, over what is usual for the model. max_tokens: None for as many as the context has
    room for. logprobs: how many alternatives to report with each token, 0 for its own probability alone, None for
    nothing. trace: of how many runners-up each token, and what the cache holds, is reported as it comes (`Spoken`,
    `Held`), None for nothing of this. parallel_tool_calls: whether there may be several calls, else the reply ends with
    the first. variables: for the chat template. begins: tokens that the reply begins with: they are said first and
    count as said, and max_tokens is of what follows; behind a stop token among them nothing is computed. endless:
    whether a conversation that outgrows the context goes on without its oldest tokens; None: as the model is served.
    """

    model: str
    messages: Sequence[Message] | None = None
    text: str | None = None
    ids: Sequence[int] | None = None
    sampling: Mapping[str, float | int | None] = field(default_factory=dict[str, Any])
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    trace: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    format: Format | None = None
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    begins: Sequence[int] = ()
    endless: bool | None = None


@dataclass(frozen=True)
class Logprob:
    """A token that was chosen, as text and bytes, with its natural log probability; top: the most probable ones."""

    token: int
    text: str
    bytes: bytes
    logprob: float
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """A model is being loaded, a place in the queue is awaited, or the prompt is being read: a sign of life.

    done, total: layers or tokens, where they are known. reused: tokens that were not read again; seconds: that the last
    chunk of the prompt took.
    """

    what: Literal["loading", "queue", "prompt"]
    done: int = 0
    total: int = 0
    reused: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Started:
    """The prompt has been accepted. prompt_tokens: BOS included, without what the reply begins with; cached_tokens: of
    them, not read again. ids: its own. sampling: what is asked, over what is usual for the model.
    """

    prompt_tokens: int
    cached_tokens: int
    ids: Sequence[int] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Delta:
    """What became certain of a reply: speech, a thought, or one whole tool call. logprobs: of the tokens that it came
    with."""

    kind: Literal["speech", "thought", "tool_call"]
    text: str = ""
    call: ToolCall | None = None
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Spoken:
    """A token as it was chosen, the one that ends a reply too (`ends`); of a traced reply, in front of what follows
    from it.

    probability, top (token, bytes, probability): before any sampling rule. seconds: since the token before it, None for
    the first. thought: whether it belongs to a thought, as far as is certain when it comes. control: a control token.
    """

    token: int
    bytes: bytes
    probability: float
    top: tuple[tuple[int, bytes, float], ...] = ()
    seconds: float | None = None
    thought: bool = False
    control: bool = False
    ends: bool = False


@dataclass(frozen=True)
class Ended:
    """stop: the stop string that ended it, if one did. Tokens: of the reply, without its stop token; of them thoughts'.

    warnings: what was asked for and not done, a line each. ids: of the reply's tokens.
    """

    reason: Literal["stop", "length", "tool_calls"]
    completion_tokens: int
    thought_tokens: int = 0
    stop: str | None = None
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    ids: Sequence[int] = ()


Event = Waiting | Started | Delta | Spoken | Held | Ended
