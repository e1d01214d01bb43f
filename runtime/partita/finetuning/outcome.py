"""What came of a run: `Outcome` while it is being put together, `TrainingReport` for whoever asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .metrics import Row
from .prepare import Prepared
from .samples import Prompt


@dataclass
class Outcome:
    """reason: how it ended, as `Finished` has it. step: after which. best: whose values the result has. test: the loss
    of the test data with these values. asked, before, after: prompts, and replies by their texts."""

    reason: str
    step: int
    rows: list[Row]
    peak: int
    result: Path
    best: int | None = None
    test: float | None = None
    asked: list[Prompt] = field(default_factory=list[Prompt])
    before: dict[str, str] = field(default_factory=dict[str, str])
    after: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def tokens_per_second(self) -> float | None:
        seconds = sum(row["seconds"] for row in self.rows if "seconds" in row)
        return sum(row["tokens"] for row in self.rows if "tokens" in row) / seconds if seconds else None

    def column(self, name: str) -> list[list[Any]]:
        return [[row["step"], row[name]] for row in self.rows if name in row]


@dataclass(frozen=True)
class Sample:
    """A reply before and after training, each the most probable one. expected: how the data goes on, if it is known."""

    prompt: str
    before: str
    after: str
    expected: str | None = None


@dataclass(frozen=True)
class TrainingReport:
    """What a run did and left. Losses in nats a token, sizes in bytes.

    adapter: the folder of a PEFT adapter; model: that of a whole model, after full training; the other one is None.
    train_loss, valid_loss: (step, loss) of every step and every evaluation. ended: "steps", "patience" (no better
    validation loss came) or "stopped" (by a signal; `resume` goes on). best_step: whose values the result has, None
    where they are the last ones. data: numbers of each split; data_notes: lines on what was not read as it stands.
    """

    adapter: Path | None
    model: Path | None
    ended: str
    steps: int
    train_loss: list[tuple[int, float]]
    valid_loss: list[tuple[int, float]]
    test_loss: float | None
    best_step: int | None
    tokens_per_second: float | None
    peak_bytes: int
    trained_parameters: int
    parameters: int
    weights_bytes: int
    estimated_bytes: int
    data: Mapping[str, Mapping[str, int]]
    data_notes: tuple[str, ...]
    backend: str
    device: str
    dtype: str
    samples: tuple[Sample, ...] = ()

    @classmethod
    def of(cls, prepared: Prepared, outcome: Outcome) -> TrainingReport:
        full, before, after = prepared.lora is None, outcome.before, outcome.after
        samples = [
            Sample(prompt.text, before[prompt.text], after[prompt.text], prompt.expected)
            for prompt in outcome.asked
            if prompt.text in before and prompt.text in after
        ]
        return cls(
            adapter=None if full else outcome.result,
            model=outcome.result if full else None,
            ended=outcome.reason,
            steps=outcome.step,
            train_loss=[(step, loss) for step, loss in outcome.column("train_loss")],
            valid_loss=[(step, loss) for step, loss in outcome.column("valid_loss")],
            test_loss=outcome.test,
            best_step=outcome.best,
            tokens_per_second=outcome.tokens_per_second,
            peak_bytes=outcome.peak,
            trained_parameters=prepared.trained,
            parameters=prepared.parameters,
            weights_bytes=prepared.weights,
            estimated_bytes=prepared.rest.total,
            data=prepared.splits.statistics(),
            data_notes=tuple(prepared.splits.notes),
            backend=prepared.ops.name,
            device=prepared.ops.device,
            dtype=prepared.ops.dtype,
            samples=tuple(samples),
        )

    def as_json(self) -> dict[str, Any]:
        """The document of `partita finetune --json`, which has no samples: they stand in report.md."""
        found = {name: value for name, value in vars(self).items() if name != "samples"}
        for name in ("adapter", "model"):
            found[name] = None if found[name] is None else str(found[name])
        return {**found, "data_notes": list(self.data_notes)}
