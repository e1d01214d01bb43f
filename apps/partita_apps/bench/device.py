"""A device's decode steps, judged before they are timed: by context, by format, beside what its memory can do.

The same ids go through a CPU in float32 first. Where the device's predictions are not those, nothing is timed. A figure
without compiled steps, and one whose tokens are read before the next step is built, show what each of these gives.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..options import load_model
from .children import prompts
from .growth import listed, runner
from .report import row

GB = 1e9
JUDGED, STEPS = 48, 16  # tokens of the prompt and steps behind it by which a device is judged
LARGEST_KL = 0.05  # nats: sixteen bits lose a tenth of it
READ = 2**28  # bytes


def run(
    *, model: Path, contexts: tuple[int, ...], kv: str, ring: int, tokens: int, runs: int, **backend: Any
) -> list[dict[str, Any]]:
    """Rows of tokens/s; each with the bytes that a step reads, and how much of the memory's speed that is.

    DataError: the device's predictions are not those of a CPU.
    """
    from partita.checkpoint.open import open_checkpoint
    from partita.errors import DataError
    from partita.model.load import weight_bytes

    loaded = load_model(str(model), **backend)
    text = prompts(model, max(*contexts, 2 * ring) + 2)[0]
    divergence = _divergence(loaded, model, text)
    about = f"{loaded.ops.name} {loaded.ops.dtype} on {loaded.ops.device}"
    if not divergence < LARGEST_KL:
        raise DataError(
            f"{about} predicts other tokens than a CPU in float32 (KL {divergence:.3g} nats, at most {LARGEST_KL}): "
            "nothing is timed"
        )
    rows = [row(f"KL to a CPU in float32, {about}", divergence, None, "nats")]
    speed = _read_speed(loaded.ops)
    rows.append(row(f"memory read, {about}", speed / GB, None, "GB/s"))
    weights = weight_bytes(loaded.ops, open_checkpoint(model))
    for name in listed(kv):
        for length, context in [*((length, None) for length in contexts), (ring + ring // 8, ring)]:
            for compiled, ahead in ((True, True), (False, True), (True, False)):
                seconds, held = _timed(
                    loaded, name, text, length, context, tokens, runs, compiled=compiled, ahead=ahead
                )
                where = f"beyond a ring of {context}" if context else f"after {length}"
                how = "" if compiled and ahead else ", not compiled" if ahead else ", read before the next"
                read = weights + held
                used = {"bytes": read, "bandwidth": read / seconds / GB, "of_memory": read / seconds / speed}
                rows.append(row(f"decode {where}, kv {name}{how}, {about}", 1 / seconds, None, "tokens/s", **used))
    return rows


def _divergence(loaded: Any, model: Path, text: Sequence[int]) -> float:
    """Mean KL in nats of a CPU's predictions to the device's, behind a prompt and steps of the same ids."""
    exact = load_model(str(model), backend="torch", device="cpu", dtype="float32")
    theirs, own = (_predictions(each, text) for each in (exact, loaded))
    return float(np.mean((np.exp(theirs) * (theirs - own)).sum(-1)))


def _predictions(loaded: Any, text: Sequence[int]) -> np.ndarray:
    """Logarithms of probabilities, float64 (steps + 1, V)."""
    ops, one = loaded.ops, runner(loaded, "auto", JUDGED + STEPS + 8)
    found = [one.logits(np.asarray([text[:JUDGED]], np.int32))]
    for token in text[JUDGED : JUDGED + STEPS]:
        found.append(one.decode(ops.array(np.asarray([token], np.int32))))
    logits = np.concatenate([np.asarray(ops.to_numpy(each), np.float64) for each in found])
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


def _read_speed(ops: Any) -> float:
    """Bytes a second of a sum over memory that no cache holds: what a step can reach at most."""
    x, seconds = ops.full((READ // 4,), 1, "float32"), []
    for _ in range(5):
        ops.sync()
        begun = time.perf_counter()
        ops.to_numpy(ops.sum(x, 0))
        seconds.append(time.perf_counter() - begun)
    return READ / statistics.median(seconds)


def _timed(
    loaded: Any,
    kv: str,
    text: Sequence[int],
    length: int,
    context: int | None,
    tokens: int,
    runs: int,
    *,
    compiled: bool,
    ahead: bool,
) -> tuple[float, int]:
    """Seconds of a token, the median of some runs, and bytes of the cache."""
    ops = loaded.ops
    one = runner(loaded, kv, context or length + runs * tokens + 8)
    for start in range(0, length, one.cache.spec.chunk):
        one.feed(np.asarray([text[start : min(start + one.cache.spec.chunk, length)]], np.int32))
        ops.sync()
    step = one.decode if compiled else lambda token: one.model(ops, token[:, None], one.cache)
    token, seconds = ops.array(np.asarray([text[length]], np.int32)), []
    for turn in range(runs + 1):
        begun = time.perf_counter()
        token = _decoded(ops, step, token, tokens, ahead=ahead)
        if turn:  # in the first, steps are compiled
            seconds.append((time.perf_counter() - begun) / tokens)
    return statistics.median(seconds), one.cache.nbytes


def _decoded(ops: Any, step: Callable[[Any], Any], token: Any, tokens: int, *, ahead: bool) -> Any:
    """The last of so many tokens, each read; a step is built before the last token is read, or after it."""
    waiting = None
    for _ in range(tokens):
        token = ops.argmax(step(token), -1)
        if waiting is not None:
            waiting()
        waiting = ops.fetch(token)
        if not ahead:
            waiting()
            waiting = None
    if waiting is not None:
        waiting()
    return token
