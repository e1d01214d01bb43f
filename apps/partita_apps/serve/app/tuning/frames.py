"""What the server and the process of a fine-tuning run say to each other: typed frames over `serve.channel`.

Not here: what is done with them. Invariants: both ends run the same version, said in the first frame of the process; a
`Train` goes no further than `Predicted` until the server has answered `Go`. Sizes are bytes, losses nats a token.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...frames import Hello

VERSION = 1


class Check(msgspec.Struct, frozen=True, tag=True):
    """Read a file of data with the readers of a run. name: what people call it, for messages."""

    path: str
    name: str


class Predict(msgspec.Struct, frozen=True, tag=True):
    """Say what a run would take. settings: fields of `partita.finetuning.settings.Settings`; name: of its data."""

    settings: dict[str, Any]
    name: str


class Train(msgspec.Struct, frozen=True, tag=True):
    """Run. out: its folder; resume: go on with what is there. The rest as in `Predict`."""

    settings: dict[str, Any]
    name: str
    out: str
    resume: bool = False


class Look(msgspec.Struct, frozen=True, tag=True):
    """Look at the memory again, of which the server says that so much is free."""

    free: int


class Go(msgspec.Struct, frozen=True, tag=True):
    """There is room: load and train."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Finish the step at hand, save, and end; before the first step, end at once."""


class Example(msgspec.Struct, frozen=True):
    """A record as people read it: who says what. role: "text" of plain text, "prompt" and "completion" of a pair."""

    turns: list[tuple[str, str]]


class Checked(msgspec.Struct, frozen=True, tag=True):
    """kind: of the first record: chat, completion or text. rows: records, of a text file its lines."""

    kind: str
    rows: int
    characters: int
    examples: list[Example]


class Predicted(msgspec.Struct, frozen=True, tag=True):
    """needs: of memory, as it runs fastest; least: with gradient checkpointing; weights to batches: its parts. process:
    what the process holds without all of that. refusal: why it does not fit into what is free, with what would help.
    steps, data, notes: None and empty where the data was not read."""

    backend: str
    device: str
    dtype: str
    max_length: int
    needs: int
    least: int
    weights: int
    values: int
    optimizer: int
    activations: int
    logits: int
    batches: int
    free: int
    process: int
    refusal: str | None = None
    steps: int | None = None
    data: dict[str, dict[str, int]] | None = None
    notes: list[str] = []


class Phase(msgspec.Struct, frozen=True, tag=True):
    """What goes on; done of total parts, None where nobody knows."""

    what: str
    done: int = 0
    total: int | None = None


class Note(msgspec.Struct, frozen=True, tag=True):
    lines: list[str]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Everything stands. step: the last one that was made before. words: the run in a few lines."""

    step: int
    steps: int
    trained: int
    parameters: int
    backend: str
    device: str
    dtype: str
    memory: int
    """What training is estimated to take, with the weights."""
    chats: bool
    settings: dict[str, Any]
    data: dict[str, dict[str, int]]
    words: list[str]


class Step(msgspec.Struct, frozen=True, tag=True):
    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float
    memory: int


class Valid(msgspec.Struct, frozen=True, tag=True):
    step: int
    loss: float
    best: bool


class Saved(msgspec.Struct, frozen=True, tag=True):
    step: int


class Sample(msgspec.Struct, frozen=True):
    """Replies by greedy sampling. after: None until the run is through. expected: how the data goes on."""

    prompt: str
    before: str
    after: str | None = None
    expected: str | None = None


class Samples(msgspec.Struct, frozen=True, tag=True):
    samples: list[Sample]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """reason: "steps", "patience" or "stopped". best: the step whose values the adapter has, None for the last."""

    reason: str
    step: int
    best: int | None
    test_loss: float | None
    peak: int
    tokens_per_second: float | None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It cannot be done, or went wrong, in a line. memory: it may go once there is more room."""

    message: str
    field: str | None = None
    memory: bool = False


Down = Check | Predict | Train | Look | Go | Stop
"""From the server to the process."""
Up = Hello | Checked | Predicted | Phase | Note | Ready | Step | Valid | Saved | Samples | Ended | Failed
"""From the process to the server."""
