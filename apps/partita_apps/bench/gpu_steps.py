"""Operations of our decode step as a GPU gets it, beside transformers', without a GPU: structure, not time.

Ours takes the path of CUDA with its Triton kernels. The peer is a model of the same shape in transformers, uncompiled,
in bfloat16, with a StaticCache. Each side counts in a process of its own. What counts: `torch_graph`.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.base import Checkpoint
from partita.inference.compiled_step import DecodeStep
from partita.model.load import load_decoder, weight_bytes
from partita_backends import torch as backend
from partita_backends.torch import gpu, weights

from . import torch_graph
from .children import answer
from .report import row

Tensor = torch.Tensor

READ, SLOTS, RING, CHUNK = 600, 768, 256, 64
"""Tokens read before the step, in chunks; slots of the cache that keeps all of them; a context that is exceeded."""

_TRANSFORMERS = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache
task = json.loads(sys.stdin.readline())
config = AutoConfig.for_model(**task["config"])
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
placed = {}
def place(x):
    if id(x) not in placed:  # tied weights stay tied
        y = torch.empty(x.shape, dtype=x.dtype, device="cuda")
        placed[id(x)] = torch.nn.Parameter(y, requires_grad=False) if isinstance(x, torch.nn.Parameter) else y
    return placed[id(x)]
with without_numbers():
    for module in model.modules():
        for own in module._parameters, module._buffers:
            own.update({name: place(x) for name, x in own.items() if x is not None})
    cache = StaticCache(config=config, max_cache_len=task["slots"])
    rows = torch.empty(task["batch"], 16, dtype=torch.long, device="cuda")
    model(rows, past_key_values=cache, use_cache=True, logits_to_keep=1)
    with Followed() as followed:
        model(rows[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
print(json.dumps(followed.summary()))
"""


@dataclass(frozen=True)
class Model:
    """On a GPU that is not there, with a cache that has read some tokens, as far as the host knows."""

    ops: Any
    decoder: Any
    cache: Cache

    def step(self) -> tuple[torch_graph.Followed, tuple[Any, ...]]:
        """Its next step as it would be captured, followed; and what that gives, logits and the cache's arrays."""
        kind, state = self.cache.reserve(1), self.cache.arrays()
        tokens = torch.empty(self.cache.batch, 1, dtype=torch.int32, device="cuda")
        with torch_graph.Followed() as followed:
            found = DecodeStep(self.ops, self.decoder, self.cache)._pure(kind)(tokens, *state)
        return followed, found


@contextmanager
def gpu_with(kernels: Any) -> Iterator[None]:
    """This process's torch with a GPU that is not there and with kernels for it (`partita_backends.torch.cuda`).
    Tensors have no numbers."""
    found = mock.patch.object(weights, "_found_on_gpu", return_value=(kernels, None))
    with torch_graph.without_numbers(), found, mock.patch.object(gpu, "open_device"):
        yield


@contextmanager
def sent() -> Iterator[None]:
    """Within `gpu_with`: what is sent to the GPU arrives there, as a shape. A step is followed outside of this."""
    with mock.patch.object(weights, "from_numpy", _on_gpu), mock.patch.object(Tensor, "to", _moved):
        yield


def loaded(checkpoint: Checkpoint, dtype: str = "auto") -> tuple[Any, Any]:
    """A backend and a decoder, within `gpu_with`."""
    with sent():
        ops: Any = backend.TorchBackend("cuda", dtype)
        return ops, load_decoder(ops, checkpoint)


def with_cache(ops: Any, decoder: Any, *, kv: str, context: int | None, read: int, batch: int = 1) -> Model:
    """With a new cache that has room for one token more than it has read."""
    with sent():
        cache = Cache(ops, plan(decoder.config, KVFormat.parse(kv), context=context, chunk=CHUNK), batch)
        for start in range(0, read, CHUNK):
            cache.reserve(min(CHUNK, read - start))
        cache.reserve(1)
    return Model(ops, decoder, cache)


def _on_gpu(x: np.ndarray) -> Tensor:
    signed = {"uint32": torch.int32, "uint16": torch.int16}.get(str(x.dtype))
    return torch.empty(x.shape, dtype=signed or getattr(torch, str(x.dtype)), device="cuda")


def _moved(x: Tensor, device: Any, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=device)


def run(
    *,
    model: Path,
    formats: tuple[str, ...],
    context: int | None,
    batch: int,
    dtype: str,
    against: str | None,
    peer_python: str | None,
) -> list[dict[str, Any]]:
    """Rows of operations, in all and by name, and of bytes that they read, for each format; with a cache that keeps
    everything, and beyond the anchor of a ring. context: the latter alone."""
    from partita.checkpoint.open import open_checkpoint
    from partita_convert.config_files import huggingface_config
    from partita_convert.layouts import as_huggingface

    peer = None
    if against is not None:
        config, _ = huggingface_config(as_huggingface(open_checkpoint(model)))
        source = inspect.getsource(torch_graph) + _TRANSFORMERS
        task = {"config": config, "batch": batch, "slots": SLOTS}
        peer = answer(peer_python or sys.executable, ["-c", source], task, against)
    steps = [(kv, ring) for kv in formats for ring in ((context,) if context else (None, RING))]
    task = {"model": str(model), "steps": steps, "batch": batch, "dtype": dtype}
    found = answer(sys.executable, ["-m", "partita_apps.bench.gpu_steps"], task, None)
    rows: list[dict[str, Any]] = []
    for (kv, ring), ours in zip(steps, found["steps"], strict=True):
        name = f"cuda {found['dtype']}, kv {kv}" + (f", beyond a context of {ring}" if ring else "")
        rows += _rows(name + f", {batch} rows" * (batch > 1), ours, peer)
    return rows


def _rows(name: str, ours: dict[str, Any], peer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    own, other = ours["operations"], peer["operations"] if peer else {}
    yield row(name, sum(own.values()), sum(other.values()) if peer else None, "operations")
    for each in sorted({*own, *other}, key=lambda each: -max(own.get(each, 0), other.get(each, 0))):
        yield row(f"  {each}", own.get(each, 0), other.get(each, 0) if peer else None, "operations")
    yield row("  read by all of them", ours["read"] / 1e6, peer["read"] / 1e6 if peer else None, "MB")
    yield row("  weights and cache, as they are stored", ours["stored"] / 1e6, None, "MB")


def count(*, model: str, steps: list[tuple[str, int | None]], batch: int, dtype: str) -> dict[str, Any]:
    """Of ours, in this process, a step for each format and ring: as `torch_graph.Followed.summary`, with the bytes of
    weights and cache. BackendUnavailable: triton cannot be imported.
    """
    from partita.checkpoint.open import open_checkpoint
    from partita.errors import BackendUnavailable

    try:
        from partita_backends.torch import cuda
    except ImportError as error:
        raise BackendUnavailable(f"operations of a GPU are counted with triton's kernels: {error}") from error
    checkpoint, found = open_checkpoint(model), []
    with gpu_with(cuda):
        ops, decoder = loaded(checkpoint, dtype)
        for kv, ring in steps:
            read = READ if ring else min(READ, decoder.config.max_positions - 2)
            one = with_cache(ops, decoder, kv=kv, context=ring, read=read, batch=batch)
            followed, _ = one.step()
            found.append({**followed.summary(), "stored": weight_bytes(ops, checkpoint) + one.cache.nbytes})
    return {"dtype": ops.dtype, "steps": found}


if __name__ == "__main__":
    from partita.errors import PartitaError

    try:
        print(json.dumps(count(**json.loads(sys.stdin.readline()))))
    except PartitaError as error:
        sys.exit(str(error))
