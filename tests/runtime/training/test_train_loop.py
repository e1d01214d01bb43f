"""The loop's events, its stops and its refusals; checkpoints that are damaged, missing, or of another run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import partita_backends
from partita.backend import Backend
from partita.data.batches import Batch
from partita.errors import CheckpointError, DataError, TrainingError
from partita.training.optim import AdamW
from partita.training.state import Best, TrainState, latest, load, save
from partita.training.trainable import Trainable
from partita.training.trainer import Evaluation, Finished, Saved, Step, TrainConfig, Trainer

from .runs import Fixed, batch_of, documents, lora


@pytest.fixture(params=["torch", "mlx"])
def ops(request: pytest.FixtureRequest) -> Backend:
    return partita_backends.load(request.param, dtype="float32")


def batches(count: int = 3) -> list[Batch]:
    return [batch_of([[document]]) for document in documents(count, 12, 280)]


def trainer(ops: Backend, path: Path, config: TrainConfig, **options: Any) -> Trainer:
    model, values = lora(ops, path)
    return Trainer(ops, model, values, config, Fixed(batches()), **options)


def test_events_come_in_order(ops: Backend, tiny_model: Path, tmp_path: Path) -> None:
    config = TrainConfig(5, warmup=2, evaluate_every=2, checkpoint_every=3)
    run = trainer(ops, tiny_model, config, validation=batches, folder=tmp_path)
    events = list(run.run())
    kinds = [(type(event).__name__, event.step) for event in events]
    assert kinds == [
        ("Evaluation", 0),
        ("Step", 1),
        ("Step", 2),
        ("Evaluation", 2),
        ("Step", 3),
        ("Saved", 3),
        ("Step", 4),
        ("Evaluation", 4),
        ("Step", 5),
        ("Evaluation", 5),
        ("Saved", 5),
        ("Finished", 5),
    ]
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.learning_rate for step in steps] == [config.rates.rate(step) for step in range(1, 6)]
    assert all(step.tokens == step.trained > 0 and step.seconds > 0 and step.memory > 0 for step in steps)
    assert run.tokens == sum(step.trained for step in steps)
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    assert run.best is not None
    assert run.best.loss == min(event.loss for event in evaluations)
    assert [event.best for event in evaluations] == [
        event.loss < min([before.loss for before in evaluations[:i]], default=np.inf)
        for i, event in enumerate(evaluations)
    ]


def test_a_step_and_an_evaluation_say_how_far_they_are(ops: Backend, tiny_model: Path) -> None:
    reported: list[tuple[str, int, int | None]] = []
    config = TrainConfig(2, accumulate=3, evaluate_every=2)
    list(trainer(ops, tiny_model, config, validation=batches).run(lambda *part: reported.append(part)))
    evaluation = [("validation", i, None) for i in range(len(batches()))]
    step = [("step", i, 3) for i in range(4)]
    assert reported == [*evaluation, *step, *step, *evaluation]


def test_stopping_saves_and_the_rest_follows(ops: Backend, tiny_model: Path, tmp_path: Path) -> None:
    config = TrainConfig(4, 1e-2)
    whole = [event.loss for event in trainer(ops, tiny_model, config).run() if isinstance(event, Step)]
    run, found = trainer(ops, tiny_model, config, folder=tmp_path), []
    for event in run.run():
        found.append(event)
        if isinstance(event, Step) and event.step == 2:
            run.stop()
    assert found[-2:] == [Saved(2, tmp_path / "step-00000002"), Finished(2, "stopped")]
    rest = trainer(ops, tiny_model, config, folder=tmp_path)
    assert rest.resume()
    losses = [event.loss for event in [*found, *rest.run()] if isinstance(event, Step)]
    assert losses == whole


@dataclass(frozen=True)
class Poisoned(Trainable):
    """A model whose loss of one batch is spoiled."""

    spoil: Callable[[Any, Any], Any] = lambda loss, value: loss
    when: int = 0

    def loss(self, ops: Backend, values: dict[str, Any], batch: Batch, *rest: Any, **options: Any) -> Any:
        total = super().loss(ops, values, batch, *rest, **options)
        return self.spoil(total, next(iter(values.values()))) if batch.tokens[0, 0] == self.when else total


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda loss, value: loss * float("nan"), r"step 2, batch 1 of 2: the loss is nan .*index 4"),
        (lambda loss, value: loss * float("inf"), r"step 2, batch 1 of 2: the loss is inf"),
        (lambda loss, value: loss + ((value[0, 0] * 0.0) ** 0.5), r"step 2: the norm of the gradients is (nan|inf)"),
    ],
    ids=["nan", "inf", "gradient"],
)
def test_what_is_not_finite_stops_before_the_update(
    ops: Backend, tiny_model: Path, tmp_path: Path, spoil: Any, said: str
) -> None:
    model, values = lora(ops, tiny_model)
    data = batches()
    fields = {name: getattr(model, name) for name in ("decoder", "places", "identity")}
    bad = Poisoned(**fields, spoil=spoil, when=int(data[2].tokens[0, 0]))
    config = TrainConfig(5, accumulate=2, checkpoint_every=1)
    run = Trainer(ops, bad, values, config, Fixed(data), folder=tmp_path)
    with pytest.raises(TrainingError, match=said):
        list(run.run())
    assert run.step == 1
    saved = latest(tmp_path)
    assert saved is not None
    assert saved.step == 1
    assert all(np.array_equal(value, run.state().values[name]) for name, value in saved.values.items())


def test_a_validation_loss_that_is_not_finite_stops(ops: Backend, tiny_model: Path) -> None:
    model, values = lora(ops, tiny_model)
    fields = {name: getattr(model, name) for name in ("decoder", "places", "identity")}
    bad = Poisoned(**fields, spoil=lambda loss, value: loss * float("nan"), when=int(batches()[0].tokens[0, 0]))
    run = Trainer(ops, bad, values, TrainConfig(2), Fixed(batches()), validation=batches)
    with pytest.raises(TrainingError, match="after step 0 the validation loss is nan"):
        list(run.run())


def test_nothing_trained_is_refused(ops: Backend, tiny_model: Path) -> None:
    empty = [replace(batch, weights=np.zeros_like(batch.weights)) for batch in batches()]
    model, values = lora(ops, tiny_model)
    with pytest.raises(DataError, match="step 1: none of its tokens is trained"):
        list(Trainer(ops, model, values, TrainConfig(2), Fixed(empty)).run())
    with pytest.raises(DataError, match="validation data has no token"):
        list(Trainer(ops, model, values, TrainConfig(2), Fixed(batches()), validation=lambda: empty).run())


def test_rows_beyond_the_trained_maximum_are_refused(ops: Backend, tiny_model: Path) -> None:
    model, values = lora(ops, tiny_model)
    long = Fixed([batch_of([documents(1, 514, 280)])])
    with pytest.raises(DataError, match="`max_length` 512"):
        list(Trainer(ops, model, values, TrainConfig(1), long).run())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 1e-3}, "learning rate was 0.0002 .* is 0.001"),
        ({"steps": 9}, "steps was 3"),
        ({"optimizer": AdamW(weight_decay=0.5)}, "weight decay was 0.01"),
        ({"accumulate": 2}, "accumulate was 1"),
        ({"clip": None}, "clip was 1.0 when it began and is None"),
    ],
)
def test_other_mathematics_cannot_resume(tiny_model: Path, tmp_path: Path, change: dict, said: str) -> None:
    ops = partita_backends.load("torch", dtype="float32")
    list(trainer(ops, tiny_model, TrainConfig(3), folder=tmp_path, identity={"model": "a"}).run())
    other = trainer(ops, tiny_model, replace(TrainConfig(3), **change), folder=tmp_path, identity={"model": "a"})
    with pytest.raises(DataError, match=said):
        other.resume()
    with pytest.raises(DataError, match="the model is not the one that it began with"):
        trainer(ops, tiny_model, TrainConfig(3), folder=tmp_path, identity={"model": "b"}).resume()


def test_how_often_one_looks_may_change(tiny_model: Path, tmp_path: Path) -> None:
    ops = partita_backends.load("torch", dtype="float32")
    list(trainer(ops, tiny_model, TrainConfig(3, schedule="constant"), folder=tmp_path).run())
    longer = TrainConfig(5, schedule="constant", evaluate_every=1, checkpoint_every=2, grad_checkpoint=True)
    more = trainer(ops, tiny_model, longer, folder=tmp_path, validation=batches)
    assert more.resume()
    assert [event.step for event in more.run() if isinstance(event, Step)] == [4, 5]
    assert not trainer(ops, tiny_model, longer, folder=tmp_path / "empty").resume()
    assert not trainer(ops, tiny_model, longer).resume()


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"clip": 0.0}, "`clip`"),
        ({"accumulate": 0}, "`accumulate`"),
        ({"evaluate_every": 0}, "`eval_every`"),
        ({"patience": 0}, "`patience`"),
        ({"checkpoint_every": -1}, "`save_every`"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict, flag: str) -> None:
    with pytest.raises(DataError, match=f"{flag} must be"):
        TrainConfig(3, **change)


# Checkpoints


def state(step: int, scale: float = 1.0) -> TrainState:
    values = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3) * scale, "b": np.ones(2, np.float32)}
    half = {name: value / 2 for name, value in values.items()}
    return TrainState(
        step, values, half, half, {"epoch": 1, "index": step}, {"rate": 0.1}, {"seed": 3}, Best(2, 1 / 3), 77
    )


def same(a: TrainState, b: TrainState) -> bool:
    arrays = all(
        np.array_equal(x, mine[name])
        for mine, yours in ((a.values, b.values), (a.m, b.m), (a.v, b.v))
        for name, x in yours.items()
    )
    return arrays and replace(a, values={}, m={}, v={}) == replace(b, values={}, m={}, v={})


def test_a_checkpoint_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None
    for step in (1, 2, 9, 10):
        path = save(tmp_path, state(step, 1 / step))
        found = latest(tmp_path)
        assert found is not None
        assert same(found, state(step, 1 / step))
        assert same(load(path), found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000009", "step-00000010"]


@pytest.mark.parametrize("file", ["state.json", "trainables.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_taken(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, state(1))
    path = save(tmp_path, state(2)) / file
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    reported: list[str] = []
    found = latest(tmp_path, reported.append)
    assert found is not None
    assert same(found, state(1))
    assert len(reported) == 1
    assert f"step-00000002/{file}" in reported[0] or file in reported[0]
    save(tmp_path, state(2))  # the run comes by again
    assert same(latest(tmp_path) or state(0), state(2))
    for folder in tmp_path.iterdir():
        (folder / file).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"state\.json|safetensors"):
        latest(tmp_path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"step": "1"}, "step: expected an integer, got '1'"),
        ({"best": {"step": 1, "loss": None}}, "best.loss: expected a number, got null"),
        ({"files": {"trainables.safetensors": "00"}}, "files.optimizer.safetensors is missing"),
    ],
)
def test_a_state_of_another_shape_is_one_line(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    """With the right checksum, as another program may have written it."""
    file = save(tmp_path, state(1)) / "state.json"
    described = {key: value for key, value in json.loads(file.read_text()).items() if key != "sha256"} | change
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({**described, "sha256": digest}))
    with pytest.raises(CheckpointError) as caught:
        latest(tmp_path)
    assert str(caught.value) == f"step-00000001/state.json is damaged: {line}"


def test_what_a_killed_run_left_is_never_taken_and_goes(tmp_path: Path) -> None:
    save(tmp_path, state(3))
    left = tmp_path / ".step-00000004.partial-0123abcd"
    left.mkdir()
    (left / "state.json").write_text("{")
    assert same(latest(tmp_path) or state(0), state(3))
    save(tmp_path, state(4))
    assert not left.exists()


def test_a_future_that_was_given_up_does_not_come_back(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, state(step))
    save(tmp_path, state(15))
    assert same(latest(tmp_path) or state(0), state(15))


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, state(1))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.rename", full)
    with pytest.raises(DataError, match="step-00000002 cannot be written: No space left"):
        save(tmp_path, state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert json.loads((tmp_path / "step-00000001/state.json").read_text())["tokens"] == 77
