"""Prefill and decode speed, ours and a peer's on the same weights and the same token ids."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from ..options import load_model
from .peers import model_for, start
from .report import row


def run(
    what: str,
    *,
    model: str | None,
    prompt: int,
    tokens: int,
    runs: int,
    against: str | None,
    peer_python: str | None,
    threads: int | None,
    dtype: str,
    **backend: Any,
) -> list[dict[str, Any]]:
    threads = threads or 1
    ours = load_model(model, threads=threads, dtype=dtype, **backend)
    ids = [(i * 7) % 4000 + 100 for i in range(prompt)]
    timed = [once(ours, ids, tokens) for _ in range(runs + 1)][1:]
    theirs: list[dict[str, float]] = []
    if against is not None:
        task = {"prompt": ids, "tokens": tokens, "threads": threads, "runs": runs}
        task["dtype"] = None if dtype == "auto" else dtype
        with model_for(against, ours.path) as path:
            theirs = list(start(against, peer_python, {**task, "model": str(path)}))
    count = prompt if what == "prefill" else tokens - 1
    speed = count / statistics.median(t[what] for t in timed)
    peer = count / statistics.median(t[what] for t in theirs) if theirs else None
    name = f"{what}, {ours.ops.name} {ours.ops.dtype}, {threads} thread{'s' * (threads > 1)}"
    return [row(name if against is None else f"{name} / {against}", speed, peer, "tokens/s")]


def once(model: Any, ids: list[int], tokens: int) -> dict[str, float]:
    """Seconds for the prompt with its first token, and for the others."""
    ops, session = model.ops, model.session()
    begun = time.perf_counter()
    token = ops.argmax(prefill(model, session, ids), -1)
    read = ops.fetch(token)
    read()
    between = time.perf_counter()
    for _ in range(tokens - 1):
        token = ops.argmax(model.decoder(ops, token[:, None], session.cache), -1)
        read = ops.fetch(token)
        if not ops.asynchronous:
            read()
    read()
    return {"prefill": between - begun, "decode": time.perf_counter() - between}


def prefill(model: Any, session: Any, ids: list[int]) -> Any:
    from partita.inference.decode import prefill

    assert np.all(np.asarray(ids) < model.config.vocab_size)
    return prefill(session.runner, ids)
