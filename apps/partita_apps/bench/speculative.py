"""What drafts are worth where a reply repeats: prompt lookup beside plain decoding of the same prompt, in turns.

The text is a form with blanks filled in alike over and over, raw, so that any model goes on with it.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from ..options import load_model
from .report import row

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
ENTRY = (
    "Log of {day}\nThe lighthouse was lit at dusk. The wind came from the north-west and the sea was calm. Two ships "
    "passed the point on their way to the harbour, and both answered the signal. The lamp was trimmed at midnight and "
    "put out at dawn. Nothing else to report.\n\n"
)


def run(
    *, model: Path, tokens: int, count: int | None, runs: int, threads: int | None, **backend: Any
) -> list[dict[str, Any]]:
    """Rows of tokens/s (ours: with lookup, peer: without) and of the share of drafts that were accepted."""
    from partita.inference.speculative import DEFAULT_COUNT, PromptLookup

    threads = threads or 1
    language_model = load_model(str(model), threads=threads, **backend)
    prompt = language_model.encode("".join(ENTRY.format(day=day) for day in WEEKDAYS), raw=True)
    lookup = PromptLookup(count=count or DEFAULT_COUNT)
    drafted: list[float] = []
    plain: list[float] = []
    said = expected = [0]
    for i in range(runs + 1):  # the first is for warming up
        said, fast = decode(language_model, prompt, tokens, lookup)
        expected, slow = decode(language_model, prompt, tokens, None)
        if i:
            drafted.append(fast)
            plain.append(slow)
    same = next(
        (i for i, (a, b) in enumerate(zip(said, expected, strict=False)) if a != b), min(len(said), len(expected))
    )
    ops, found = language_model.ops, lookup.acceptance
    name = f"{ops.name} {ops.dtype}, {threads} thread{'s' * (threads > 1)}"
    return [
        row(
            f"decode, {name}, lookup / plain",
            statistics.median(drafted),
            statistics.median(plain),
            "tokens/s",
            same_tokens=same,
            tokens=len(said),
        ),
        row(
            f"accepted of {found.proposed} drafted, {same} of {len(expected)} tokens the same",
            found.rate,
            None,
            "share",
            steps=found.steps,
        ),
    ]


def decode(model: Any, prompt: list[int], count: int, draft: Any) -> tuple[list[int], float]:
    """Greedy tokens, and how many a second after the first."""
    pieces = model.session().generate(prompt, max_tokens=count, draft=draft, continues=True)
    found, begun = [], 0.0
    for piece in pieces:
        if piece.token is not None:
            begun = begun or time.perf_counter()
            found.append(piece.token.id)
    return found, (len(found) - 1) / (time.perf_counter() - begun)
