"""Training speed and memory with adapters, ours and a peer's on the same weights, tokens and settings.

Each in a process of its own, so that neither pays for what the other left behind. A step is forward, backward, clipping
and AdamW over full rows without padding; the first, in which libraries make and compile things, is left out. Memory is
counted above what a process holds when its model is loaded and has seen a few tokens: gradients, moments, activations.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .report import row
from .train_peers import PROGRAMS

MIB = 2**20
BACKENDS = {"mlx-lm": "mlx", "peft": "torch"}
RATE = 1e-4


def run(
    *,
    model: str | None,
    batch_size: int,
    length: int,
    rank: int,
    runs: int,
    against: str | None,
    peer_python: str | None,
    threads: int | None,
    **backend: Any,
) -> list[dict[str, Any]]:
    """Rows of speed and memory; against a peer, ours has the folder that was written for it.

    peft cannot train packed weights on a CPU, so the folder is dense; ours with them packed is measured beside it.
    """
    from partita.sources import resolve

    from ..progress import TerminalProgress
    from .peers import write_for

    path = resolve(model, progress=TerminalProgress())
    threads = threads or 1
    tokens = np.random.default_rng(0).integers(100, 4000, (batch_size, length + 1)).tolist()
    task = {"tokens": tokens, "rank": rank, "alpha": 2 * rank, "steps": runs + 1, "rate": RATE, "threads": threads}
    if against is None:
        found = _child(None, None, {**task, **backend, "model": str(path)})
        return _rows(_name(found, task), found, None)
    if backend["backend"] == "auto":
        backend["backend"] = BACKENDS[against]
    if backend["dtype"] == "auto":
        backend["dtype"] = "float32"
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        write_for(against, path, folder)
        found = _child(None, None, {**task, **backend, "model": str(folder)})
        theirs = _child(against, peer_python, {**task, "model": str(folder), "device": found["device"]})
        rows = _rows(f"{_name(found, task)} / {against}", found, theirs)
        if against == "peft":
            packed = _child(None, None, {**task, **backend, "model": str(path)})
            rows += _rows(f"{_name(packed, task)}, weights as in {path.name} / {against}", packed, theirs)
    return rows


def _name(found: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    tokens, threads = np.asarray(task["tokens"]), task["threads"]
    shape = f"{tokens.shape[0]} × {tokens.shape[1] - 1} tokens, rank {task['rank']}"
    return f"train, {found['backend']} {found['dtype']}, {shape}, {threads} thread{'s' * (threads > 1)}"


def _rows(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Speed by wall clock, with that by processor time beside it, which other work on the machine does not change."""
    peer = theirs or {}
    above, peer_above = ((x["peak"] - x["loaded"]) / MIB if x else None for x in (ours, peer))
    total, peer_total = (x["peak"] / MIB if x else None for x in (ours, peer))
    wall = [_speed(x, "seconds") for x in (ours, peer)]
    cpu = [_speed(x, "cpu_seconds") for x in (ours, peer)]
    losses = {"loss": ours["loss"], "peer_loss": peer.get("loss")}
    assert wall[0] is not None
    assert cpu[0] is not None
    assert above is not None
    assert total is not None
    return [
        row(name, wall[0], wall[1], "tokens/s", **losses),
        row(f"{name}, by processor time", cpu[0], cpu[1], "tokens/s"),
        row(f"{name}, memory above the loaded model", above, peer_above, "MiB"),
        row(f"{name}, memory of the process", total, peer_total, "MiB"),
    ]


def _speed(found: Mapping[str, Any], clock: str) -> float | None:
    return found["tokens"] / statistics.median(found[clock][1:]) if found else None


def _child(peer: str | None, python: str | None, task: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own measured: ours, or the peer's program."""
    from partita.errors import BackendUnavailable, DataError

    python = python or sys.executable
    command = [python, "-m", "partita_apps.bench.train"] if peer is None else [python, "-c", PROGRAMS[peer]]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(task["threads"]))
    done = subprocess.run(
        command, input=json.dumps(task), capture_output=True, text=True, check=False, env=os.environ | threads
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if peer is None:
            raise DataError(f"measuring the training in a process of its own failed: {reason}")
        raise BackendUnavailable(f"{peer} does not run in {python}: {reason} (see --peer-python)")
    count = len(task["tokens"]) * (len(task["tokens"][0]) - 1)
    return {"tokens": count, **json.loads(lines[-1])}


class Repeated:
    """The same batch for ever."""

    def __init__(self, batch: Any):
        self.batch = batch

    def __next__(self) -> Any:
        return self.batch

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass


def measure(
    *, model: str, tokens: list[list[int]], rank: int, alpha: float, steps: int, rate: float, **backend: Any
) -> dict[str, Any]:
    """In this process: losses, seconds and bytes of `steps` steps, as in `train_peers`."""
    import partita_backends
    from partita.checkpoint import open_checkpoint
    from partita.loading import load_decoder
    from partita.lora import LoraConfig
    from partita.sequences import Sequences
    from partita.train import Step, TrainConfig, Trainer
    from partita.trainable import adapted

    ops = partita_backends.load(
        backend["backend"], device=backend["device"], dtype=backend["dtype"], threads=backend["threads"]
    )
    decoder = load_decoder(ops, open_checkpoint(Path(model)), stack=False)
    trainable, values = adapted(ops, decoder, LoraConfig(rank=rank, alpha=alpha))
    batch = full_rows(np.asarray(tokens, np.int32))
    few = full_rows(np.asarray(tokens, np.int32)[:1, :9])
    view = Sequences(ops, decoder.config).view(few.positions, few.segments)

    def loss(values: Any) -> tuple[Any, tuple[()]]:
        return trainable.loss(ops, values, few, view), ()

    ops.to_numpy(ops.value(loss)(values)[0])
    del decoder
    ops.reset_peak()
    loaded = ops.memory().active
    trainer = Trainer(ops, trainable, values, TrainConfig(steps, rate, schedule="constant"), Repeated(batch))
    del values
    found: dict[str, Any] = {"seconds": [], "cpu_seconds": []}
    used = time.process_time()
    for event in trainer.run():
        if isinstance(event, Step):
            found.setdefault("loss", event.loss)
            found["seconds"].append(event.seconds)
            found["cpu_seconds"].append(time.process_time() - used)
            used = time.process_time()
    about = {"backend": ops.name, "device": ops.device, "dtype": ops.dtype}
    return {**found, **about, "loaded": loaded, "peak": ops.memory().peak}


def full_rows(tokens: np.ndarray) -> Any:
    """A batch of rows (B, T + 1) in which every token but the first is predicted."""
    from partita.data_batches import Batch

    inputs = np.ascontiguousarray(tokens[:, :-1])
    positions = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
    targets, ones = np.ascontiguousarray(tokens[:, 1:]), np.ones(inputs.shape, np.float32)
    return Batch(inputs, targets, ones, np.ascontiguousarray(positions), np.zeros(inputs.shape, np.int32))


if __name__ == "__main__":
    from partita.errors import PartitaError

    try:
        print(json.dumps(measure(**json.load(sys.stdin))))
    except PartitaError as error:
        sys.exit(str(error))
