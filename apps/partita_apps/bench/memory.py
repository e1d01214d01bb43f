"""What a long prompt costs in memory above the weights, by format of the cache, each in a process of its own; beside a
peer, what a process takes for the weights, a prompt and some tokens.

A process keeps pages that it has freed, so a second format measured in the same one would be told the first one's peak.
Only keys and values are computed, never logits. Layers can be cut and positions extended beyond what the model was
trained on: memory is measured here, not sense.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from partita.errors import DataError, PartitaError

from .charts import Line, draw
from .children import measured, prompts
from .report import row

MIB = 2**20
DECODED = 16


def run(
    *,
    model: Path,
    tokens: tuple[int, ...],
    layers: int | None,
    kv: str,
    runs: int,
    threads: int | None,
    plot: str | None,
    **backend: Any,
) -> list[dict[str, Any]]:
    """Rows of peak above weights, ours: the format named, peer: 16 bits in the same run. Lowest of `runs`."""
    names = ["16", *(name.strip() for name in kv.split(","))]
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[float]] = {name: [] for name in names}
    for count in tokens:
        wanted = {"model": str(model), "tokens": count, "layers": layers, "threads": threads or 1, **backend}
        found = {name: _lowest(name, wanted, runs) for name in curves}
        dense = found["16"]
        for name in curves:
            curves[name].append(found[name]["peak"] / MIB)
        rows += [
            row(
                f"{dense['backend']}, --kv {name}, {count} tokens, {dense['layers']} layers",
                found[name]["peak"] / MIB,
                dense["peak"] / MIB,
                "MiB",
                cache_mib=found[name]["cache"] / MIB,
                seconds=found[name]["seconds"],
            )
            for name in names[1:]
        ]
    if plot is not None:
        lines = [Line(f"kv {name}", tokens, curve) for name, curve in curves.items()]
        draw(plot, lines, across="tokens read", up="MiB above the weights", title="Peak memory of a prompt")
    return rows


def beside(
    *, model: Path, tokens: tuple[int, ...], against: str, threads: int | None, plot: str | None, **sides: Any
) -> list[dict[str, Any]]:
    """Rows of what a process holds at most, files that it has mapped included, ours and the peer's."""
    rows = []
    for count in tokens:
        sides |= {"warm": 0, "cold": 1}  # the first process may compile kernels, which takes memory too
        found = measured(model, prompts(model, count), DECODED, against=against, threads=threads, **sides)
        ours, theirs = found.medians("peak")
        name = f"peak resident, {count} tokens read, {DECODED} decoded, {found.about} / {against}"
        rows.append(row(name, ours / MIB, theirs / MIB if theirs else None, "MiB", **found.beside))
    if plot is not None:
        lines = [Line(name, tokens, [r[key] for r in rows]) for name, key in (("partita", "ours"), (against, "peer"))]
        draw(plot, lines, across="tokens read", up="MiB resident", title="Peak memory of a process")
    return rows


def _lowest(kv: str, wanted: dict[str, Any], runs: int) -> dict[str, Any]:
    """Noise only adds to a high-water mark, so the lowest of several counts."""
    return min((_child({**wanted, "kv": kv}) for _ in range(runs)), key=lambda found: found["peak"])


def _child(wanted: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "partita_apps.bench.memory", json.dumps(wanted)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DataError(f"measuring --kv {wanted['kv']} in a process of its own failed: {last}")
    return json.loads(found.stdout.splitlines()[-1])


def measure(*, model: str | None, tokens: int, layers: int | None, kv: str, **backend: Any) -> dict[str, Any]:
    """Bytes above the loaded weights at the peak of a prefill of `tokens`, and bytes of its cache. In this process."""
    from partita.cache.spec import plan
    from partita.cache.state import Cache
    from partita.language_model import load

    language_model = load(model, **backend)
    ops, decoder = language_model.ops, language_model.decoder
    kept = decoder.config.layers[:layers]
    config = replace(decoder.config, layers=kept, max_positions=max(tokens, decoder.config.max_positions))
    decoder = replace(decoder, config=config, blocks=decoder.blocks[: len(kept)])
    cache = Cache(ops, plan(config, language_model.kv_format(kv), context=tokens))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, tokens)).astype(np.int32)
    decoder.feed(
        ops, ops.array(ids[:, :1]), warm := Cache(ops, cache.spec)
    )  # what is made at the first use is a weight
    ops.to_numpy(warm.arrays()[-1])
    del warm
    weights = ops.memory().active
    ops.reset_peak()
    begun = time.perf_counter()
    for start in range(0, tokens, cache.spec.chunk):
        decoder.feed(ops, ops.array(ids[:, start : start + cache.spec.chunk]), cache)
        ops.launch(*cache.arrays())
        ops.sync()
    seconds = time.perf_counter() - begun
    peak = max(ops.memory().peak - weights, 0)
    return {"peak": peak, "cache": cache.nbytes, "seconds": seconds, "layers": len(kept), "backend": ops.name}


if __name__ == "__main__":
    try:
        print(json.dumps(measure(**json.loads(sys.argv[1]))))
    except PartitaError as error:
        sys.exit(str(error))
