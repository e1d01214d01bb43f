"""The training loop: batches in, trained values out. It prints nothing and reads no files but its own checkpoints.

A step: the losses of its micro-batches, each divided by the trained tokens of the whole step, so that one batch of four
equals four accumulated batches of one; their gradients; one host read of losses and gradient norm; clipping; AdamW.
Invariants: a non-finite loss or norm stops the run before anything is updated; the next step depends on a
`TrainState` and the settings alone, so a run that was resumed equals one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ..arrays import Array
from ..backend import Backend
from ..data.batches import Batch
from ..errors import DataError, TrainingError
from ..group import Alone, Group
from . import state as train_state
from .buckets import buckets_of
from .data_parallel import DataParallel
from .optim import AdamW, Arrays, Moments, clip_factor, global_norm, moments_of, update
from .packed import Sequences
from .schedule import Schedule
from .state import Best, TrainState
from .trainable import Trainable


@dataclass(frozen=True)
class TrainConfig:
    """steps: of the optimizer. accumulate: batches a step. clip: limit of the gradients' norm, None for none.

    grad_checkpoint: activations are computed again instead of kept. evaluate_every, checkpoint_every: steps, None for
    only at the end. patience: evaluations without a new best before the run stops, None to go on.
    """

    steps: int
    learning_rate: float = 2e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: int = 0
    floor: float = 0.0
    optimizer: AdamW = field(default_factory=AdamW)
    clip: float | None = 1.0
    accumulate: int = 1
    grad_checkpoint: bool = False
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        _ = self.rates
        if self.clip is not None and not self.clip > 0:
            raise DataError(f"`clip` must be > 0, got {self.clip}", field="clip")
        counts = {
            "accumulate": self.accumulate,
            "eval_every": self.evaluate_every,
            "save_every": self.checkpoint_every,
            "patience": self.patience,
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise DataError(f"`{name}` must be >= 1, got {count}", field=name)

    @property
    def rates(self) -> Schedule:
        return Schedule(self.learning_rate, self.steps, self.warmup, self.schedule, self.floor)

    @property
    def identity(self) -> dict[str, Any]:
        """What changes the mathematics of a run, for JSON; how often it is looked at does not."""
        optimizer = self.optimizer
        shape = {} if self.schedule == "constant" else {"steps": self.steps, "floor": self.floor}
        return {
            "learning_rate": self.learning_rate,
            "schedule": self.schedule,
            "warmup": self.warmup,
            **shape,
            "betas": [optimizer.beta1, optimizer.beta2],
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
            "clip": self.clip,
            "accumulate": self.accumulate,
        }


@dataclass(frozen=True)
class Step:
    """An optimizer step. loss: a trained token's mean. tokens: fed, padding left out; trained: those with a loss.

    seconds: wall clock. memory: bytes, the peak so far.
    """

    step: int
    loss: float
    tokens: int
    trained: int
    seconds: float
    learning_rate: float
    grad_norm: float
    memory: int


@dataclass(frozen=True)
class Evaluation:
    """loss: mean over the trained tokens of the validation data, after `step` steps. best: the lowest so far."""

    step: int
    loss: float
    best: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Finished:
    """Always the last event. reason: "steps", "patience" or "stopped" (by `Trainer.stop`)."""

    step: int
    reason: Literal["steps", "patience", "stopped"]


Event = Step | Evaluation | Saved | Finished

OnBatch = Callable[[str, int, int | None], None]
"""Told ("step" or "validation", batches done, of how many or None), from 0 on. Where a backend computes later than it
is asked to (MLX), this is ahead of what is computed."""


def _unheard(what: str, done: int, total: int | None) -> None:
    """An `OnBatch` for nobody."""


class Source(Protocol):
    """Batches without end that can go on where they stopped: `batches.Batches`."""

    def __next__(self) -> Batch: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class Trainer:
    """One run. values: initial ones, which the trainer takes over. validation: its batches, made again each time.

    folder: of checkpoints, None for none. identity: of model and data, to be resumed only with the same; the settings
    are added to it. group: the processes that train together; each has its share of the batches, the first alone has a
    folder.
    """

    def __init__(
        self,
        ops: Backend,
        model: Trainable,
        values: Arrays,
        config: TrainConfig,
        batches: Source,
        *,
        validation: Callable[[], Iterable[Batch]] | None = None,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        group: Group | None = None,
    ):
        self.ops, self.model, self.config, self.batches = ops, model, config, batches
        self._buckets = buckets_of(values)
        self._flat = self._buckets.flat(ops, values)
        self.moments = moments_of(ops, self._flat)
        self.step, self.tokens = 0, 0
        self.best: Best | None = None
        self._validation, self._folder = validation, folder
        self._identity = {**(identity or {}), **model.identity, **config.identity}
        self._processes = DataParallel(ops, group or Alone())
        self._sequences = Sequences(ops, model.decoder.config)
        self._stopped, self._saved = False, 0
        self._on_batch: OnBatch = _unheard

    @property
    def values(self) -> Arrays:
        """What is trained, by name: float32 arrays that the next step may change."""
        return self._buckets.named(self.ops, self._flat)

    def stop(self) -> None:
        """Finish the step at hand, save, and end, in all processes: safe to call from a signal handler."""
        self._stopped = True

    def run(self, on_batch: OnBatch = _unheard) -> Iterator[Event]:
        """Steps, evaluations and checkpoints as they happen, from where this run stands to its end. on_batch: how far
        a step or an evaluation is.

        Evaluates before the first step, at intervals, and at the end. Raises TrainingError, naming step and batch, for
        a non-finite loss or gradient: the values are then those of the step before.
        """
        self._on_batch = on_batch
        reason: Literal["steps", "patience", "stopped"] = "steps"
        self._processes.agree([self._identity, self.batches.state(), self.config.steps, self.step])
        if self.step == 0 and self._validation is not None:
            yield self._evaluate()
        while self.step < self.config.steps and not self._impatient():
            if any(self._processes.counts(self._stopped)):
                reason = "stopped"
                break
            yield self._step()
            if self._validation is not None and self._due(self.config.evaluate_every):
                yield self._evaluate()
            if self._folder is not None and self._due(self.config.checkpoint_every):
                yield self._save(self._folder)
        if reason == "steps" and self.step < self.config.steps:
            reason = "patience"
        if self._folder is not None and self.step != self._saved:
            yield self._save(self._folder)
        yield Finished(self.step, reason)

    def _due(self, every: int | None) -> bool:
        last = self.step == self.config.steps or self._impatient()
        return last or (every is not None and self.step % every == 0)

    def _impatient(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.best is not None and self.best.since >= patience

    # A step

    def _step(self) -> Step:
        begun, number, config = time.perf_counter(), self.step + 1, self.config
        batches = [next(self.batches) for _ in range(config.accumulate)]
        trained = sum(batch.trained for batch in batches)
        whole, filled = self._processes.counts(trained, sum(batch.filled for batch in batches))
        if not whole:
            raise DataError(f"step {number}: none of its tokens is trained; look at what the data's masks leave")
        losses, grads = self._gradients(batches, number, trained)
        self._processes.gradients(grads, trained / whole)
        norm = global_norm(self.ops, grads)
        *read, norm = (float(x) for x in self.ops.fetch(self.ops.concat([*losses, norm.reshape(1)], 0))())
        loss = self._processes.number(sum(read) * trained / whole)
        self._refuse_nonsense(number, read, loss, norm)
        rate = config.rates.rate(number)
        factor, decayed = clip_factor(norm, config.clip), self._buckets.decayed
        update(self.ops, self._flat, grads, self.moments, config.optimizer, rate, factor, decayed)
        self.ops.launch(*self._flat.values(), *self.moments.m.values(), *self.moments.v.values())
        self.step, self.tokens = number, self.tokens + whole
        memory = self.ops.memory().peak
        return Step(number, loss, filled, whole, time.perf_counter() - begun, rate, norm, memory)

    def _gradients(self, batches: list[Batch], step: int, trained: int) -> tuple[list[Array], Arrays]:
        """Each batch's share of the step's mean loss, float32 (1,), and the gradients of their sum."""
        losses: list[Array] = []
        grads: Arrays = {}
        share = self.ops.array(np.array([1 / max(trained, 1)], np.float32))  # an argument: it is another in each step
        for i, batch in enumerate(batches):
            self._on_batch("step", i, len(batches))
            if not batch.trained:
                losses.append(self.ops.zeros((1,), "float32"))
                continue
            if self.model.dropout is not None:
                self.model.dropout.draw = (step, i, self._processes.group.rank)
            view = self._sequences.view(batch.positions, batch.segments)

            def loss(
                ops: Backend, flat: Arrays, share: Any, batch: Batch = batch, view: Any = view
            ) -> tuple[Any, tuple[()]]:
                return self._loss(ops, flat, batch, view, checkpoint=self.config.grad_checkpoint) * share[0], ()

            (value, _), new = self.ops.value_and_grad(loss)(self._flat, share)
            grads = {name: grads[name] + new[name] for name in new} if grads else new
            losses.append(value.reshape(1))
            self.ops.launch(losses[-1], *grads.values())
        self._on_batch("step", len(batches), len(batches))
        if self.model.dropout is not None:
            self.model.dropout.draw = None
        if not grads:  # this process has nothing but padding
            grads = {name: self.ops.zeros(tuple(x.shape), "float32") for name, x in self._flat.items()}
        return losses, grads

    def _loss(self, ops: Backend, flat: Arrays, batch: Batch, view: Any, *, checkpoint: bool = False) -> Array:
        values = self._buckets.named(ops, flat, ops.dtype if self.model.narrow else "float32")
        return self.model.loss(ops, values, batch, view, checkpoint=checkpoint)

    def _refuse_nonsense(self, step: int, losses: list[float], whole: float, norm: float) -> None:
        """whole: the loss of all processes. They see the same whole and norm, so all of them stop."""
        advice = "nothing was updated; try a lower `learning_rate` or `dtype` float32"
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"step {step}, batch {i + 1} of {len(losses)}: the loss is {loss} ({self._place()}): {advice}"
                )
        if not math.isfinite(whole):
            raise TrainingError(f"step {step}: the loss of another process is {whole} ({self._place()}): {advice}")
        if not math.isfinite(norm):
            raise TrainingError(
                f"step {step}: the norm of the gradients is {norm} ({self._place()}): {advice}, or `method` lora, "
                "which leaves embeddings as they are: behind one near zero, norms make gradients too large"
            )

    def _place(self) -> str:
        state = self.batches.state()
        return ", ".join(f"{key} {state[key]}" for key in ("epoch", "index") if key in state) or "place unknown"

    # Evaluation

    def _evaluate(self) -> Evaluation:
        loss = self.evaluate()
        best = self.best
        if best is None or loss < best.loss:
            self.best = Best(self.step, loss)
            if self.config.patience is not None and self._folder is not None:
                train_state.save_best(self._folder, self._host(self.values))
        else:
            self.best = replace(best, since=best.since + 1)
        return Evaluation(self.step, loss, self.best.since == 0)

    def evaluate(self) -> float:
        """The mean loss over the trained tokens of the validation data, of all processes together."""
        if self._validation is None:
            raise DataError("there is no validation data")
        return self.measure(self._validation(), "validation", self._on_batch)

    def measure(self, batches: Iterable[Batch], what: str, on_batch: OnBatch = _unheard) -> float:
        """The mean loss over the trained tokens of these batches, of all processes together. what: for messages."""
        total, trained = 0.0, 0
        for i, batch in enumerate(batches):
            on_batch(what, i, None)
            if not batch.trained:
                continue
            view = self._sequences.view(batch.positions, batch.segments)

            def loss(ops: Backend, flat: Arrays, batch: Batch = batch, view: Any = view) -> tuple[Any, tuple[()]]:
                return self._loss(ops, flat, batch, view), ()

            value, _ = self.ops.value(loss)(self._flat)
            total += float(self.ops.to_numpy(value))
            trained += batch.trained
        total, (trained,) = self._processes.number(total), self._processes.counts(trained)
        if not trained:
            raise DataError(f"the {what} data has no token to be predicted")
        if not math.isfinite(total):
            raise TrainingError(f"after step {self.step} the {what} loss is {total}: try a lower `learning_rate`")
        return total / trained

    def take_best(self) -> int | None:
        """Put the values of the best evaluation in place of the latest, in all processes: of a run with patience, at
        its end. The step they are of; None where the latest are the ones."""
        best = self.best
        if self.config.patience is None or best is None or best.step >= self.step:
            return None
        values = None if self._folder is None else train_state.load_best(self._folder)
        state = None if values is None else TrainState(best.step, values, {}, {}, None, {})
        state = self._processes.state(state)
        if state is None:
            return None
        self._flat = self._device(state.values)
        return best.step

    # State

    def state(self) -> TrainState:
        """Everything that decides the next step, on the host, in arrays that no later step changes."""
        state = self._state()
        parts = {part: _copied(getattr(state, part)) for part in ("values", "m", "v")}
        return replace(state, **parts)

    def _state(self) -> TrainState:
        """`state`, in arrays that the next step may change: to be written at once, without a second copy."""
        moments = self.moments
        return TrainState(
            self.step,
            self._host(self.values),
            self._host(self._buckets.named(self.ops, moments.m)),
            self._host(self._buckets.named(self.ops, moments.v)),
            self.batches.state(),
            self._identity,
            {"dropout": [self.model.dropout.seed, self.step + 1] if self.model.dropout else None},
            self.best,
            self.tokens,
        )

    def restore(self, state: TrainState) -> None:
        """Go on from a state, of this or another backend. DataError where settings, model or data are others."""
        train_state.refuse_other(state.identity, self._identity)
        for part in (state.values, state.m, state.v):
            if {name: x.shape for name, x in part.items()} != self._buckets.shapes:
                raise DataError("this run cannot be resumed: what it trained has other names or shapes")
        self.batches.restore(state.position)
        self._flat = self._device(state.values)
        self.moments = Moments(self._device(state.m), self._device(state.v), state.step)
        self.step, self.best, self.tokens, self._saved = state.step, state.best, state.tokens, state.step

    def resume(self, on_damage: Callable[[str], None] | None = None) -> bool:
        """Go on from the newest whole checkpoint of the first process's folder; False where there is none."""
        state = self._processes.state(None if self._folder is None else train_state.latest(self._folder, on_damage))
        if state is not None:
            self.restore(state)
        return state is not None

    def _save(self, folder: Path) -> Saved:
        path, self._saved = train_state.save(folder, self._state()), self.step
        return Saved(self.step, path)

    def _host(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: self.ops.to_numpy(x) for name, x in values.items()}

    def _device(self, values: Mapping[str, np.ndarray]) -> Arrays:
        """Flat, in memory of their own."""
        named = {name: self.ops.copy(self.ops.array(x, "float32")) for name, x in values.items()}
        return self._buckets.flat(self.ops, named)


def _copied(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x.copy() for name, x in values.items()}
