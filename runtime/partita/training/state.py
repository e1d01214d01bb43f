"""Checkpoints of a training run: everything that decides the next step, in a folder that is there whole or not at all.

    checkpoints/step-00000120/state.json              step, position in the data, best evaluation, identity, checksums
                              trainables.safetensors  the trained values
                              optimizer.safetensors   "m.NAME" and "v.NAME", the moments
    checkpoints/best.safetensors                      the values of the best evaluation, where one is kept

Numbers are float32 and backends agree on names, so a run may go on on another one. Not here: when to save, and what an
adapter looks like to others. Invariants: a folder appears by a rename, after its bytes are on the disk; the last two
are kept; a damaged one is reported and the one before is taken. One process writes to a folder at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec import field as named

from ..brief import Brief
from ..errors import CheckpointError, DataError
from ..files.atomic import remove_leftovers, whole_file, whole_folder
from ..files.bounded import INDEX, read_object
from ..files.safetensors import open_file
from ..files.safetensors_writer import write_tensors
from ..files.typed import Misfit, typed

FORMAT = 1
KEPT = 2
STATE, TRAINABLES, OPTIMIZER, BEST = "state.json", "trainables.safetensors", "optimizer.safetensors", "best.safetensors"
_FOLDER = re.compile(r"step-(\d{8,})")
_NAMED = {"adapter_seed": "`seed`", "dtype": "`dtype`"}  # parts of an identity that are settings

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Best:
    """The lowest evaluation so far. since: evaluations after it."""

    step: int
    loss: float
    since: int = 0


@dataclass(frozen=True)
class TrainState(Brief):
    """After `step` optimizer steps. values, m, v: float32 by name. position: of the data, as its `state()` gave it.

    random: what numbers the random draws to come. identity: of model, data and settings: `refuse_other`.
    """

    step: int
    values: Values
    m: Values
    v: Values
    position: Any
    identity: Mapping[str, Any]
    random: Mapping[str, Any] = field(default_factory=dict[str, Any])
    best: Best | None = None
    tokens: int = 0
    """Trained so far."""


class _Sums(Struct, frozen=True):
    """SHA-256 of the files beside it."""

    trainables: str = named(name=TRAINABLES)
    optimizer: str = named(name=OPTIMIZER)


@dataclass(frozen=True)
class _Described:
    """What state.json says beside its format and checksum."""

    step: int
    tokens: int
    position: Any
    random: dict[str, Any]
    best: Best | None
    identity: dict[str, Any]
    files: _Sums


def save(folder: Path, state: TrainState) -> Path:
    """Write `folder`/step-N, then remove all but the last KEPT. DataError where the disk refuses; all else stays."""
    target = folder / f"step-{state.step:08d}"
    remove_leftovers(folder)
    # what stands there already is damaged, or of a run that went on from an earlier step
    with whole_folder(target) as partial:
        moments = {f"{kind}.{name}": x for kind, part in (("m", state.m), ("v", state.v)) for name, x in part.items()}
        sums = {TRAINABLES: _write(partial / TRAINABLES, state.values), OPTIMIZER: _write(partial / OPTIMIZER, moments)}
        (partial / STATE).write_text(_description(state, sums), encoding="utf-8")
    _prune(folder, state.step)
    return target


def latest(
    folder: Path, on_damage: Callable[[str], None] | None = None, *, before: int | None = None
) -> TrainState | None:
    """The newest checkpoint that is whole, None where there is none. on_damage(line): called for every damaged one.
    before: of steps below this one only.

    Raises CheckpointError when every one is damaged.
    """
    found = [path for path in _checkpoints(folder) if before is None or _step(path) < before]
    for path in reversed(found):
        try:
            return load(path)
        except CheckpointError as error:
            if path == found[0]:
                raise
            if on_damage is not None:
                on_damage(f"{error}: going on from the checkpoint before it")
    return None


def load(path: Path) -> TrainState:
    """One checkpoint folder. CheckpointError, naming the file, for anything that is not as it was written."""
    if not (path / STATE).is_file():
        raise CheckpointError(f"{path.name}/{STATE} is missing")
    described = read_object(path / STATE, INDEX)
    where = f"{path.name}/{STATE}"
    if described.get("format") != FORMAT:
        raise CheckpointError(f"{where}: format {described.get('format')!r} is not {FORMAT}, which this version reads")
    if described.get("sha256") != _checksum(described):
        raise CheckpointError(f"{where} does not match its checksum")
    try:
        found = typed(described, _Described)
    except Misfit as error:
        raise CheckpointError(f"{where} is damaged: {error}") from None
    values = _read(path / TRAINABLES, found.files.trainables)
    moments = _read(path / OPTIMIZER, found.files.optimizer)
    return TrainState(
        found.step,
        values,
        {name[2:]: x for name, x in moments.items() if name.startswith("m.")},
        {name[2:]: x for name, x in moments.items() if name.startswith("v.")},
        found.position,
        found.identity,
        found.random,
        found.best,
        found.tokens,
    )


def refuse_other(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """DataError that names what differs, where a run would not go on with the mathematics it began with."""
    mine = json.loads(json.dumps(dict(mine)))  # as it would be read
    for key in (*saved, *mine):
        if saved.get(key) != mine.get(key):
            if key == "model":
                raise DataError(
                    "this run cannot be resumed: the model is not the one that it began with, or has changed since; "
                    "give that one, or begin a new run in another `out`"
                )
            what = _NAMED.get(key, key.replace("_", " "))
            raise DataError(
                f"this run cannot be resumed: {what} was {saved.get(key)} when it began and is "
                f"{mine.get(key)} now; resume with the same settings, or begin a new run in another `out`"
            )


def save_best(folder: Path, values: Mapping[str, np.ndarray]) -> None:
    """Replace `folder`/best.safetensors, whole or not at all."""
    with whole_file(folder / BEST) as partial:
        _write(partial, values)


def load_best(folder: Path) -> Values | None:
    """What `save_best` wrote last, None where there is nothing."""
    return _read(folder / BEST, None) if (folder / BEST).is_file() else None


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _FOLDER.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    """Of a checkpoint folder."""
    return int(path.name.removeprefix("step-"))


def _prune(folder: Path, step: int) -> None:
    """Keep the last KEPT up to this step; later ones are of a future that was given up."""
    found = _checkpoints(folder)
    kept = [path for path in found if _step(path) <= step][-KEPT:]
    for path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _description(state: TrainState, sums: Mapping[str, str]) -> str:
    best = state.best
    described = {
        "format": FORMAT,
        "step": state.step,
        "tokens": state.tokens,
        "position": state.position,
        "random": dict(state.random),
        "best": None if best is None else {"step": best.step, "loss": best.loss, "since": best.since},
        "identity": dict(state.identity),
        "files": dict(sums),
    }
    described = json.loads(json.dumps(described))
    return json.dumps({**described, "sha256": _checksum(described)}, indent=1) + "\n"


def _checksum(described: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in described.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _write(path: Path, values: Mapping[str, np.ndarray]) -> str:
    """A safetensors file; the SHA-256 of its bytes."""
    write_tensors(path, values)
    return _sum_of(path)


def _read(path: Path, sum_of_file: str | None) -> Values:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise CheckpointError(f"{where} is missing")
    if sum_of_file is not None and _sum_of(path) != sum_of_file:
        raise CheckpointError(f"{where} does not match its checksum")
    try:
        found = open_file(path)
    except CheckpointError as error:
        raise CheckpointError(f"{where} is damaged: {error}") from error
    return {name: found.read(name).copy() for name in found.tensors}  # the file may be replaced while they are used


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
