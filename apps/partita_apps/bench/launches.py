"""How many kernels a decode step launches: structure, which can be counted where it cannot be timed.

Each side counts in a process of its own, since what is counted replaces functions of the library. As on Metal: the step
is compiled, and the stream and a 16-bit cache have one dtype. What torch does on a GPU is counted in `gpu_steps`.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .children import answer
from .report import row

Rows = list[dict[str, Any]]
PEERS = {"mlx-lm": "mlx", "transformers": "torch"}
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


def run(*, backend: str | None, against: str | None, kv: str | None, dtype: str | None, **about: Any) -> Rows:
    """Rows of what is counted on the backend, or on the one that the peer has: in all, and by name.

    DataError: the peer has another backend.
    """
    from partita.errors import DataError

    own = PEERS.get(against or "", "mlx")
    if against is not None and backend not in (None, own):
        raise DataError(f"{against} is counted beside {own}, not {backend}: leave out --backend")
    if (backend or own) == "mlx":
        return _on_mlx(against=against, kv=kv or "16", dtype=dtype or "float16", **about)
    from .gpu_steps import run
    from .growth import listed

    return run(against=against, formats=tuple(listed(kv or "16,k8v4")), dtype=dtype or "auto", **about)


def _on_mlx(
    *, model: Path, kv: str, context: int | None, batch: int, dtype: str, against: str | None, peer_python: str | None
) -> Rows:
    from . import mlx_graph
    from .peers import write_for

    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        write_for("mlx-lm", model, folder)
        task = {"model": str(folder), "prompt": PROMPT, "batch": batch, "dtype": dtype, "kv": kv, "context": context}
        ours = answer(sys.executable, ["-m", "partita_apps.bench.launches"], task, None)
        theirs = None
        if against is not None:
            source = inspect.getsource(mlx_graph) + _MLX_LM
            theirs = answer(peer_python or sys.executable, ["-c", source], task, against)
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


def count(*, model: str, prompt: int, batch: int, dtype: str, kv: str, context: int | None) -> dict[str, int]:
    """Of ours, in this process: as `mlx_graph.counted`."""
    import mlx.core as mx

    from partita.cache.state import Cache
    from partita.inference.compiled_step import DecodeStep
    from partita.language_model import load

    from . import mlx_graph

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
