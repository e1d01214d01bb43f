"""What a second turn waits for: its first token beside that of the first turn, in one conversation."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from ..options import load_model
from .report import row


def run(
    *, model: Path, prompt: int, tokens: int, runs: int, threads: int | None, **backend: Any
) -> list[dict[str, Any]]:
    """prompt: tokens of the first turn. tokens: of its reply, kept as ids, before the second turn."""
    language_model = load_model(str(model), threads=threads or 1, **backend)
    text = [(i * 7919) % 4000 + 100 for i in range(prompt)]
    question = language_model.tokenizer.encode("\n\nWhat was said next?", bos=False)
    firsts, seconds, fed = [], [], 0
    for _ in range(runs):
        session = language_model.session(prefixes=None)
        reply, waited = turn(session, text, tokens)
        firsts.append(waited)
        second = [*text, *reply, *question]
        _, waited = turn(session, second, 1)
        seconds.append(waited)
        fed = len(second) - session.reused
    name = f"{language_model.ops.name}, first token of turn 2 / of turn 1 ({prompt} tokens)"
    return [row(name, statistics.median(seconds), statistics.median(firsts), "s", fed=fed)]


def turn(session: Any, prompt: list[int], count: int) -> tuple[list[int], float]:
    """Ids of the reply without a stop token, and seconds to its first."""
    begun, waited, ids = time.perf_counter(), 0.0, []
    for piece in session.generate(prompt, max_tokens=count):
        waited = waited or time.perf_counter() - begun
        if piece.token is not None and piece.token.id not in session.model.tokenizer.stop_ids:
            ids.append(piece.token.id)
    return ids, waited
