"""What a token costs as the context grows, by format of the cache; a ring costs the same however much went through it.

Every cache is filled with a real prompt in chunks, or restored from a snapshot that is made up (`generated`). At each
length tokens of all caches, and of a 16-bit one that holds no more than the first length, are timed in turns: their
ratio is what counts. One thread of a CPU is timed by the processor's clock, which other work on the machine does not
move. Positions may go beyond those that the model was trained on: time is measured here, not sense.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..options import load_model
from .charts import Line, draw
from .children import prompts, threads_of
from .report import row

MIB = 2**20
TURN = 8  # tokens of one cache before the next one's turn
ROOM = 1024  # tokens decoded beyond a length, at most: 50 runs


@dataclass
class Grown:
    """A cache being filled. seconds: of its tokens at the present length."""

    name: str
    runner: Any
    clock: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)

    def fill(self, text: Sequence[int], length: int) -> None:
        cache, ops = self.runner.cache, self.runner.ops
        while (held := cache.offsets[0]) < length:
            chunk = text[held : min(held + cache.spec.chunk, length)]
            self.runner.feed(np.asarray([chunk], np.int32))
            ops.sync()

    def restore(self, length: int) -> None:
        self.runner.cache.restore(generated(self.runner.cache, length))

    def decode(self, token: int) -> None:
        ops = self.runner.ops
        following = ops.array(np.asarray([token], np.int32))
        for _ in range(TURN):
            begun = self.clock()
            following = ops.argmax(self.runner.decode(following), -1)
            ops.to_numpy(following)
            self.seconds.append(self.clock() - begun)


def run(
    *,
    model: Path,
    contexts: tuple[int, ...],
    kv: str,
    ring: str,
    context: int,
    snapshots: bool,
    runs: int,
    plot: str | None,
    threads: int | None,
    **backend: Any,
) -> list[dict[str, Any]]:
    """Rows of ms a token beside one of 16 bits at the first length. kv, ring: formats that keep everything, and those
    that keep `context` tokens. snapshots: caches are restored and not filled."""
    loaded = load_model(str(model), threads=threads or 1, **backend)
    contexts = tuple(sorted(contexts))
    longest = contexts[-1] + ROOM
    text = prompts(model, longest)[0]
    alone = loaded.ops.device == "cpu" and (threads or 1) == 1
    clock = time.process_time if alone else time.perf_counter
    caches = [Grown(f"kv {name}", runner(loaded, name, longest), clock) for name in listed(kv)]
    caches += [Grown(f"kv {name}, ring of {context}", runner(loaded, name, context), clock) for name in listed(ring)]
    rows = []
    for length in contexts:
        first = Grown("", runner(loaded, "16", longest), clock)
        for each, tokens in ((first, contexts[0]), *((each, length) for each in caches)):
            each.restore(tokens) if snapshots else each.fill(text, tokens)
            each.seconds.clear()
        for turn in range(runs + 1):
            for each in (first, *caches):
                each.decode(text[length])
                if not turn:
                    each.seconds.clear()  # warmed up
        base = statistics.median(first.seconds) * 1000
        about = f"{loaded.ops.name} {loaded.ops.dtype}, {threads_of(threads)}{', processor time' if alone else ''}"
        for each in caches:
            each.curve.append(statistics.median(each.seconds) * 1000)
            name = f"token at {length}, {each.name} / at {contexts[0]}, kv 16, {about}"
            held = each.runner.cache.nbytes / MIB
            rows.append(row(name, each.curve[-1], base, "ms", cache_mib=held))
    if plot is not None:
        lines = [Line(each.name, contexts, each.curve) for each in caches]
        draw(plot, lines, across="tokens read before", up="ms a token", title="Time of a token by context")
    return rows


def generated(cache: Any, tokens: int) -> Any:
    """A snapshot of a row of so many tokens, whose keys, values and states are random numbers: what counts for time is
    how many there are and where they stand."""
    from partita.cache.session_file import layout, positions_of
    from partita.cache.snapshot import Snapshot

    rng, spec, arrays = np.random.default_rng(1), cache.spec, list[Any]()
    places = iter(positions_of(spec, tokens))
    for name, shape, dtype in layout(spec, cache.dense, tokens):
        if name == "next":
            arrays.append(cache.ops.array(np.asarray([tokens], np.int32)))
        elif name.startswith("positions."):
            arrays.append(cache.ops.array(next(places)))
        elif dtype == "uint32":
            arrays.append(cache.ops.array(rng.integers(0, 2**32, shape, np.uint32)))
        else:
            arrays.append(cache.ops.array(rng.standard_normal(shape, np.float32) * 0.1, dtype))
    return Snapshot(spec, (tokens,), (tokens,), arrays)


def listed(names: str) -> list[str]:
    return [] if names == "none" else [name.strip() for name in names.split(",")]


def runner(model: Any, kv: str, context: int) -> Any:
    """A decoder on an empty cache that keeps `context` tokens, trained on so many or not."""
    from partita.cache.spec import plan
    from partita.cache.state import Cache
    from partita.inference.runner import ModelRunner

    decoder = model.decoder
    config = replace(decoder.config, max_positions=max(context, decoder.config.max_positions))
    spec = plan(config, model.kv_format(kv), context=context)
    return ModelRunner(model.ops, replace(decoder, config=config), Cache(model.ops, spec))
