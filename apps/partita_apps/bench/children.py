"""Ours and a peer, each measurement in a fresh process, in turns: A B A B, so that both meet the same load.

One protocol for all. A process reads its task as a line of JSON:

    {model, rows: [[ids]], tokens, warm, threads, dtype, device, backend}

It loads the model, reads and decodes `warm` times without a clock, then once with it, and answers with a line of JSON:

    {prompt, tokens: [[ids]], prefill: [wall, processor], decode: [wall, processor], cpu, peak}

prompt: how many tokens its cache held when the first new token was there. prefill includes that token; decode is the
others, len(tokens) - 1 of them. cpu: processor time of the whole process. Times in seconds; peak: bytes resident. Ours
also answers {backend, device, dtype, notes}, a peer {version}. Invariant: figures are compared only where both sides
consumed prompts of the given length and decoded as many tokens as were asked for.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .peers import PROGRAMS, model_for

Answer = dict[str, Any]
NUMBERS, SPANS = ("prompt", "peak", "cpu"), ("prefill", "decode")


@dataclass(frozen=True)
class Side:
    """Who is measured, by which Python. peer: None for ours."""

    peer: str | None
    python: str
    task: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.peer or "partita"

    def measure(self) -> Answer:
        """What one fresh process answers, with `wall`: seconds from its start to its end."""
        command = ["-m", "partita_apps.bench.ours"] if self.peer is None else ["-c", PROGRAMS[self.peer]]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), self.task["threads"])
        own = os.environ | {name: str(count) for name, count in threads.items()} | {"HF_HUB_OFFLINE": "1"}
        begun = time.perf_counter()
        try:
            done = subprocess.run(
                [self.python, *command], input=f"{json.dumps(self.task)}\n", capture_output=True, text=True, env=own
            )
        except OSError as error:
            raise self._failed(error.strerror or str(error)) from error
        wall = time.perf_counter() - begun
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            raise self._failed((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
        return self._checked(lines[-1]) | {"wall": wall}

    def _checked(self, line: str) -> Answer:
        from partita.errors import DataError

        try:
            answer = json.loads(line)
            rows = [list(map(int, row)) for row in answer["tokens"]]
            answer |= {name: float(answer[name]) for name in NUMBERS}
            for name in SPANS:
                answer[name], answer[f"{name}_cpu"] = map(float, answer[name])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._failed(f"its answer is no measurement ({error!r})") from error
        asked = self.task["rows"]
        if len(rows) != len(asked):
            raise DataError(f"{self.name} decoded {len(rows)} rows, {len(asked)} were given: nothing can be compared")
        if answer["prompt"] != len(asked[0]):
            raise DataError(
                f"{self.name} consumed a prompt of {answer['prompt']:.0f} tokens, {len(asked[0])} were given: nothing "
                "can be compared"
            )
        for row in rows:
            if len(row) != self.task["tokens"]:
                raise DataError(
                    f"{self.name} decoded {len(row)} tokens, {self.task['tokens']} were asked for: nothing can be "
                    "compared"
                )
        return answer

    def _failed(self, reason: str) -> Exception:
        from partita.errors import BackendUnavailable, DataError

        if self.peer is None:
            return DataError(f"measuring in a process of its own failed: {reason}")
        return BackendUnavailable(f"{self.peer} does not run in {self.python}: {reason} (see --peer-python)")


@dataclass(frozen=True)
class Measured:
    """Answers of both sides, a pair a run. theirs: empty without a peer."""

    ours: Sequence[Answer]
    theirs: Sequence[Answer]
    threads: int

    def medians(self, what: str) -> tuple[float, float | None]:
        """(ours, the peer's) of one number, "decode_cpu" by the processor's clock."""
        ours, theirs = ([answer[what] for answer in side] for side in (self.ours, self.theirs))
        return statistics.median(ours), statistics.median(theirs) if theirs else None

    @property
    def beside(self) -> dict[str, Any]:
        """The peer's version, and how many greedy tokens of the first row are the same before the first that differs;
        the weights being the same, two tokens nearly as probable may fall to either side."""
        if not self.theirs:
            return {}
        ours, theirs = self.ours[-1]["tokens"][0], self.theirs[-1]["tokens"][0]
        pairs = enumerate(zip(ours, theirs, strict=True))
        same = next((i for i, (a, b) in pairs if a != b), len(ours))
        return {"same_tokens": same, "tokens": len(ours), "peer_version": self.theirs[-1].get("version")}

    @property
    def by_processor(self) -> bool:
        """Whether processor time is the time of the work: other work on the machine does not change it."""
        return self.ours[0]["device"] == "cpu" and self.threads == 1

    @property
    def about(self) -> str:
        """What ours computed with: "torch bfloat16"."""
        return f"{self.ours[0]['backend']} {self.ours[0]['dtype']}"


def measured(
    path: Path,
    rows: Sequence[Sequence[int]],
    tokens: int,
    *,
    runs: int,
    against: str | None,
    peer_python: str | None,
    threads: int | None,
    warm: int = 1,
    cold: int = 0,
    dtype: str,
    device: str | None,
    backend: str,
) -> Measured:
    """`runs` pairs of processes. warm: passes of each before the one that counts. cold: pairs that do not count."""
    from ..options import tell

    task = {"rows": [list(row) for row in rows], "tokens": tokens, "warm": warm, "threads": threads or 1}
    own = Side(None, sys.executable, {**task, "model": str(path), "dtype": dtype, "device": device, "backend": backend})
    found: tuple[list[Answer], list[Answer]] = ([], [])
    with model_for(against, path) as theirs:
        for turn in range(cold + runs):
            ours = own.measure()
            if not turn:
                tell(*ours["notes"])
            pair = [ours]
            if against is not None:
                given = {"model": str(theirs), "dtype": None if dtype == "auto" else dtype, "device": ours["device"]}
                pair.append(Side(against, peer_python or sys.executable, {**task, **given}).measure())
            if turn >= cold:
                for answers, answer in zip(found, pair, strict=False):
                    answers.append(answer)
    return Measured(*found, threads or 1)


def answer(python: str, command: list[str], task: Mapping[str, Any], peer: str | None) -> dict[str, Any]:
    """What a process of its own prints as JSON, given a task as JSON. peer: whose it is, if not ours."""
    from partita.errors import BackendUnavailable, DataError

    try:
        done = subprocess.run([python, *command], input=f"{json.dumps(task)}\n", capture_output=True, text=True)
    except OSError as error:
        raise BackendUnavailable(f"{python} does not run: {error.strerror} (see --peer-python)") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if peer is None:
            raise DataError(f"counting in a process of its own failed: {reason}")
        raise BackendUnavailable(f"{peer} does not run in {python}: {reason} (see --peer-python)")
    return json.loads(lines[-1])


def prompts(path: Path, length: int, rows: int = 1) -> list[list[int]]:
    """Token ids of a text, over and over; each row begins elsewhere in it."""
    from partita.checkpoint.open import open_checkpoint
    from partita.text.load import load_tokenizer
    from partita_convert.calibration import SAMPLE

    ids = load_tokenizer(open_checkpoint(path)).encode(SAMPLE)
    return [[ids[(61 * row + i) % len(ids)] for i in range(length)] for row in range(rows)]


def threads_of(threads: int | None) -> str:
    return f"{threads or 1} thread{'s' * ((threads or 1) > 1)}"
