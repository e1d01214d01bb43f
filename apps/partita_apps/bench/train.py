"""Training speed and memory with adapters, ours and a peer's on the same weights, tokens and settings.

Each in a process of its own, so that neither pays for what the other left behind, and steps in turns, so that both meet
the same load of the machine. A step is forward, backward, clipping (mlx-lm has none) and AdamW over full rows without
padding; the first, in which libraries make and compile things, is left out. Memory is counted above what a process
holds when its model is loaded and has seen a few tokens: gradients, moments, activations.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
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
    model: Path,
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
    from partita.checkpoint.open import open_checkpoint
    from partita.model.load import read_config

    from .peers import write_for

    path, threads = model, threads or 1
    vocabulary = min(read_config(open_checkpoint(path)).vocab_size, 4000)
    tokens = np.random.default_rng(0).integers(vocabulary // 40, vocabulary, (batch_size, length + 1)).tolist()
    task = {"tokens": tokens, "rank": rank, "alpha": 2 * rank, "rate": RATE, "threads": threads}
    if against is None:
        with closing(Child(None, None, {**task, **backend, "model": str(path)})) as child:
            (found,) = _measured([child], runs)
        return _rows(_name(found, task), found, None)
    if backend["backend"] == "auto":
        backend["backend"] = BACKENDS[against]
    if backend["dtype"] == "auto":
        backend["dtype"] = "float32"
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        folder = Path(work) / "model"
        write_for(against, path, folder)
        ours = (folder, path) if against == "peft" else (folder,)
        tasks = [(None, None, {**task, **backend, "model": str(each)}) for each in ours]
        children = [stack.enter_context(closing(Child(*each))) for each in tasks]
        theirs = (against, peer_python, {**task, "model": str(folder), "device": children[0].about["device"]})
        children.append(stack.enter_context(closing(Child(*theirs))))
        found, *packed, theirs = _measured(children, runs)
    rows = _rows(f"{_name(found, task)} / {against}", found, theirs)
    for each in packed:
        rows += _rows(f"{_name(each, task)}, weights as in {path.name} / {against}", each, theirs)
    return rows


def _measured(children: list[Child], runs: int) -> list[dict[str, Any]]:
    """What each child found, after `runs` steps and one."""
    for _ in range(runs + 1):
        for child in children:
            child.step()
    return [child.end() for child in children]


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
    losses = {"loss": ours["loss"][0], "peer_loss": theirs["loss"][0] if theirs else None}
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


class Child:
    """A process that trains, ours or a peer's program, one step when it is told. about: what it says of itself."""

    def __init__(self, peer: str | None, python: str | None, task: Mapping[str, Any]):
        python = python or sys.executable
        self.peer, self.python = peer, python
        self.tokens = len(task["tokens"]) * (len(task["tokens"][0]) - 1)
        self.steps: list[dict[str, Any]] = []
        self._told = tempfile.TemporaryFile("w+")  # noqa: SIM115
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(task["threads"]))
        self._process = subprocess.Popen(
            [python, "-m", "partita_apps.bench.train"] if peer is None else [python, "-c", PROGRAMS[peer]],
            env=os.environ | threads,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            text=True,
        )
        self.about = self._asked(json.dumps(task))

    def step(self) -> None:
        self.steps.append(self._asked(""))

    def end(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.close()
        found = {name: [step[name] for step in self.steps] for name in ("loss", "seconds", "cpu_seconds")}
        return {**self.about, **found, **self._answer(), "tokens": self.tokens}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._told):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def _asked(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and says why below
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self._process.wait()
        self._told.seek(0)
        reason = (self._told.read().strip().splitlines() or ["it said nothing"])[-1]
        self.close()
        raise _failed(self.peer, self.python, reason)


def _failed(peer: str | None, python: str, reason: str) -> Exception:
    from partita.errors import BackendUnavailable, DataError

    if peer is None:
        return DataError(f"measuring the training in a process of its own failed: {reason}")
    return BackendUnavailable(f"{peer} does not run in {python}: {reason} (see --peer-python)")


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


def training(
    *, model: str, tokens: list[list[int]], rank: int, alpha: float, rate: float, **backend: Any
) -> Iterator[dict[str, Any]]:
    """In this process: what is loaded, each step, and without an end; as in `train_peers`."""
    import partita_backends
    from partita.adapters.lora import LoraConfig
    from partita.checkpoint.open import open_checkpoint
    from partita.model.load import load_decoder
    from partita.training.packed import Sequences
    from partita.training.trainable import adapted
    from partita.training.trainer import Step, TrainConfig, Trainer

    ops = partita_backends.load(
        backend["backend"], device=backend["device"], dtype=backend["dtype"], threads=backend["threads"]
    )
    decoder = load_decoder(ops, open_checkpoint(Path(model)), stack=False)
    trainable, values = adapted(ops, decoder, LoraConfig(rank=rank, alpha=alpha))
    batch = full_rows(np.asarray(tokens, np.int32))
    few = full_rows(np.asarray(tokens, np.int32)[:1, :9])
    view = Sequences(ops, decoder.config).view(few.positions, few.segments)

    def loss(ops: Any, values: Any) -> tuple[Any, tuple[()]]:
        return trainable.loss(ops, values, few, view), ()

    ops.to_numpy(ops.value(loss)(values)[0])
    del decoder
    ops.reset_peak()
    yield {"loaded": ops.memory().active, "backend": ops.name, "device": ops.device, "dtype": ops.dtype}
    trainer = Trainer(ops, trainable, values, TrainConfig(2**30, rate, schedule="constant"), Repeated(batch))
    del values
    used, events = time.process_time(), trainer.run()
    while isinstance(event := next(events), Step):
        now = time.process_time()
        yield {"loss": event.loss, "seconds": event.seconds, "cpu_seconds": now - used, "peak": ops.memory().peak}
        used = time.process_time()


def serve() -> None:
    """The child: `train_peers` says how it is talked to."""
    steps = training(**json.loads(sys.stdin.readline()))
    print(json.dumps(next(steps)), flush=True)
    found: dict[str, Any] = {"peak": 0}
    for _ in sys.stdin:
        found = next(steps)
        print(json.dumps(found), flush=True)
    print(json.dumps({"peak": found["peak"]}))


def full_rows(tokens: np.ndarray) -> Any:
    """A batch of rows (B, T + 1) in which every token but the first is predicted."""
    from partita.data.batches import Batch

    inputs = np.ascontiguousarray(tokens[:, :-1])
    positions = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
    targets, ones = np.ascontiguousarray(tokens[:, 1:]), np.ones(inputs.shape, np.float32)
    return Batch(inputs, targets, ones, np.ascontiguousarray(positions), np.zeros(inputs.shape, np.int32))


if __name__ == "__main__":
    from partita.errors import PartitaError

    try:
        serve()
    except PartitaError as error:
        sys.exit(str(error))
