"""What the cache is worth: each token's time with it and without it, and far beyond the ring."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..options import load_model
from .charts import Line, draw
from .report import row


def run(
    *,
    model: Path,
    tokens: int,
    context: int,
    far: bool,
    plot: str | None,
    runs: int,
    threads: int | None,
    **backend: Any,
) -> list[dict[str, Any]]:
    language_model = load_model(str(model), threads=threads or 1, **backend)
    prompt = language_model.tokenizer.encode("The history of bread begins with")
    cached, with_cache = decode_cached(language_model, prompt, tokens)
    recomputed, without = decode_recomputed(language_model, prompt, tokens)
    if plot is not None:
        drawn = {"recomputing the whole sequence": without, "with the cache": with_cache}
        lines = [Line(name, range(1, tokens + 1), [s * 1000 for s in each]) for name, each in drawn.items()]
        draw(plot, lines, across="token", up="milliseconds", title="Time of each new token", marks=False)
    same = next((i for i, (a, b) in enumerate(zip(cached, recomputed, strict=True)) if a != b), tokens)
    last = slice(-max(tokens // 10, 1), None)
    name = f"{language_model.ops.name}, "
    rows = [
        row(f"{name}token {tokens}, cached / recomputed", ms(with_cache[last]), ms(without[last]), "ms"),
        row(f"{name}all {tokens} tokens, cached / recomputed", sum(with_cache), sum(without), "s", same_tokens=same),
    ]
    if far:
        before, beyond = beyond_the_ring(language_model, context, runs)
        rows.append(row(f"{name}token at 5,000 / at 1,100, context {context}", beyond, before, "ms"))
    return rows


def ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1000


def decode_cached(model: Any, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy tokens and the seconds each took."""
    ops, session = model.ops, model.session()
    feed, tokens, seconds = prompt, [], []
    for _ in range(count):
        begun = time.perf_counter()
        logits = model.decoder(ops, ops.array(np.array([feed], np.int32)), session.cache)
        tokens.append(int(ops.to_numpy(ops.argmax(logits, -1))[0]))
        seconds.append(time.perf_counter() - begun)
        feed = tokens[-1:]
    return tokens, seconds


def decode_recomputed(model: Any, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The same by feeding the whole sequence to an empty cache for every token."""
    from partita.inference.decode import prefill

    ops, tokens, seconds = model.ops, [], []
    for _ in range(count):
        begun = time.perf_counter()
        logits = prefill(model.session().runner, prompt + tokens)
        tokens.append(int(ops.to_numpy(ops.argmax(logits, -1))[0]))
        seconds.append(time.perf_counter() - begun)
    return tokens, seconds


def beyond_the_ring(model: Any, context: int, runs: int) -> tuple[float, float]:
    """Milliseconds of one token at position 1,100 and at 5,000: medians of `runs` rounds of 16, taken in turns."""
    from partita.inference.decode import prefill

    ops, text = model.ops, [(i * 7) % 4000 + 100 for i in range(5000)]
    sessions = []
    for length in (1100, 5000):
        session = model.session(context=min(context, model.config.max_positions))
        sessions.append((session, prefill(session.runner, text[:length])))
    seconds: list[list[float]] = [[], []]
    for _ in range(runs):
        for i, (session, logits) in enumerate(sessions):
            token = ops.argmax(logits, -1)[:, None]
            for _ in range(16):
                begun = time.perf_counter()
                ops.to_numpy(model.decoder(ops, token, session.cache))
                seconds[i].append(time.perf_counter() - begun)
    return ms(seconds[0]), ms(seconds[1])
