"""Our side of a measurement, as `children` says it: a process that loads, reads, decodes and answers.

The loop is that of `inference.decode` without a tokenizer, drafts or sampling: greedy, every row one token a step, the
next step built before a token is read where the device computes by itself.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from partita.errors import PartitaError


def answer(
    *, model: str, rows: list[list[int]], tokens: int, warm: int, threads: int, dtype: str, device: str, backend: str
) -> dict[str, Any]:
    from partita.language_model import load
    from partita_backends import process_memory

    notes: list[str] = []
    loaded = load(model, backend=backend, device=device, dtype=dtype, threads=threads, on_fallback=notes.append)
    for _ in range(warm):
        once(loaded, rows, 2)
    found = once(loaded, rows, tokens)
    ops = loaded.ops
    about = {"backend": ops.name, "device": ops.device, "dtype": ops.dtype, "notes": [*notes, *loaded.notes]}
    return {**found, **about, "peak": process_memory.read().peak, "cpu": time.process_time()}


def once(model: Any, rows: list[list[int]], tokens: int) -> dict[str, Any]:
    """Seconds for the prompts (B, T) with each row's first token, and for the other tokens."""
    from partita.cache.state import Cache
    from partita.inference.runner import ModelRunner

    context = min(len(rows[0]) + tokens + 8, model.config.max_positions)
    cache = Cache(model.ops, model.cache_spec(context=context), batch=len(rows))
    ops, runner = model.ops, ModelRunner(model.ops, model.decoder, cache)
    begun = clock()
    token = ops.argmax(read(runner, rows), -1)
    reads = [ops.fetch(token)]
    ids = [reads.pop()()]
    between, consumed = clock(), min(cache.offsets)
    for _ in range(tokens - 1):
        token = ops.argmax(runner.decode(token), -1)
        if reads:
            ids.append(reads.pop()())
        reads.append(ops.fetch(token))
    ids += [waiting() for waiting in reads]
    seconds = {"prefill": (between - begun).tolist(), "decode": (clock() - between).tolist()}
    return {"prompt": consumed, "tokens": np.stack(ids, 1).tolist(), **seconds}


def clock() -> np.ndarray:
    """By the wall and by the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def read(runner: Any, rows: list[list[int]]) -> Any:
    """Feed prompts of one length in chunks; logits (B, V) after their last tokens."""
    for row in rows:
        runner.model.check(row)
    prompts, chunk = np.asarray(rows, np.int32), runner.cache.spec.chunk
    last = (prompts.shape[1] - 1) // chunk * chunk
    for start in range(0, last, chunk):
        runner.feed(prompts[:, start : start + chunk])
    return runner.logits(prompts[:, last:])


if __name__ == "__main__":
    try:
        print(json.dumps(answer(**json.loads(sys.stdin.readline()))))
    except PartitaError as error:
        sys.exit(str(error))
