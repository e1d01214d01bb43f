"""How many kernels a decode step launches: structure, which can be counted where it cannot be timed.

Each side counts in a process of its own, since what is counted replaces functions of the library. As on Metal: the step
is compiled, and the stream and a 16-bit cache have one dtype.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import mlx_graph
from .report import row

PROMPT = 24  # tokens before the step that is counted; with --context, enough to be beyond its anchor

_MLX_LM = """
from mlx_lm import load
from mlx_lm.models.cache import make_prompt_cache
import json, sys
task = json.loads(sys.stdin.readline())
mx.set_default_device(mx.cpu)
model, _ = load(task["model"])
model.set_dtype(getattr(mx, task["dtype"]))
cache = make_prompt_cache(model)
rows = mx.array([list(range(100, 100 + task["prompt"]))] * task["batch"])
mx.eval(model(rows, cache=cache), [(layer.keys, layer.values) for layer in cache])
def step():
    logits = model(rows[:, :1], cache=cache)
    return [logits[:, -1], *(x for layer in cache for x in (layer.keys, layer.values))]
print(json.dumps(counted(step)))
"""


def run(
    *, model: Path, kv: str, context: int | None, batch: int, dtype: str, against: str | None, peer_python: str | None
) -> list[dict[str, Any]]:
    """Rows of launches: in all, and each primitive with what a layer or a step has of it."""
    from .peers import write_for

    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        write_for("mlx-lm", model, folder)
        task = {"model": str(folder), "prompt": PROMPT, "batch": batch, "dtype": dtype, "kv": kv, "context": context}
        ours = _answer(sys.executable, ["-m", "partita_apps.bench.launches"], task, None)
        theirs = None
        if against is not None:
            source = inspect.getsource(mlx_graph) + _MLX_LM
            theirs = _answer(peer_python or sys.executable, ["-c", source], task, against)
    name = (
        f"mlx {dtype}, kv {kv}"
        + (f", beyond a context of {context}" if context else "")
        + f", {batch} rows" * (batch > 1)
    )
    peer = theirs or {}
    rows = [row(name, sum(ours.values()), sum(peer.values()) if theirs else None, "launches")]
    names = sorted({*ours, *peer}, key=lambda each: -max(ours.get(each, 0), peer.get(each, 0)))
    return rows + [
        row(f"  {each}", ours.get(each, 0), peer.get(each, 0) if theirs else None, "launches") for each in names
    ]


def _answer(python: str, command: list[str], task: Mapping[str, Any], peer: str | None) -> dict[str, int]:
    from partita.errors import BackendUnavailable, DataError

    done = subprocess.run([python, *command], input=f"{json.dumps(task)}\n", capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if peer is None:
            raise DataError(f"counting in a process of its own failed: {reason}")
        raise BackendUnavailable(f"{peer} does not run in {python}: {reason} (see --peer-python)")
    return json.loads(lines[-1])


def count(*, model: str, prompt: int, batch: int, dtype: str, kv: str, context: int | None) -> dict[str, int]:
    """Of ours, in this process: as `mlx_graph.counted`."""
    import mlx.core as mx

    from partita.cache.state import Cache
    from partita.inference.compiled_step import DecodeStep
    from partita.language_model import load

    loaded = load(model, backend="mlx", device="cpu", dtype=dtype)
    cache = Cache(loaded.ops, loaded.cache_spec(context=context, kv=kv), batch=batch)
    ids = np.tile(np.arange(100, 100 + prompt, dtype=np.int32), (batch, 1))
    mx.eval(loaded.decoder(loaded.ops, loaded.ops.array(ids), cache), *cache.arrays())  # weights too are lazy
    step = DecodeStep(loaded.ops, loaded.decoder, cache)
    return mlx_graph.counted(lambda: [step(loaded.ops.array(ids[:, :1])), *cache.arrays()])


if __name__ == "__main__":
    from partita.errors import PartitaError

    try:
        print(json.dumps(count(**json.loads(sys.stdin.readline()))))
    except PartitaError as error:
        sys.exit(str(error))
