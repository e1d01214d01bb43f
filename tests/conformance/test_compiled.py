"""A compiled decode step gives the eager step's logits; its shapes and operations do not change from token to token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import partita
from partita.backend import Backend
from partita.cache.state import Cache
from partita.inference.compiled_step import DecodeStep

from .. import bounds


@pytest.mark.parametrize("kv", ["32", "k8v4"])
def test_equals_the_eager_step_across_the_wrap(ops: Backend, tiny_model: Path, kv: str) -> None:
    model = partita.load(tiny_model, backend=ops)
    spec = model.cache_spec(context=24, sinks=2, kv=kv, chunk=8)
    eager, held = Cache(ops, spec), Cache(ops, spec)
    step = DecodeStep(ops, model.decoder, held)
    prompt = ops.array(np.array([[5, 6, 7]], np.int32))
    for cache in (eager, held):
        model.decoder.feed(ops, prompt, cache)
    for i in range(40):
        token = ops.array(np.array([[(7 * i) % 50]], np.int32))
        expected = ops.to_numpy(model.decoder(ops, token, eager))
        bounds.assert_near(ops.to_numpy(step(token)), expected, bounds.logits(tiny_model))
    assert held.offsets == eager.offsets == [43]
    assert len(step._functions) == 2  # before the anchor, and beyond it


def test_torch_runs_the_same_operations_on_the_same_shapes_and_reads_nothing(tiny_model: Path) -> None:
    """What a CUDA graph needs: beyond the anchor every step is one fixed sequence of operations, none of which waits
    for the device."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Record(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            shapes = [tuple(a.shape) if hasattr(a, "shape") else None for a in args]
            self.seen.append((str(function), *shapes))
            return function(*args, **(kwargs or {}))

    model = partita.load(tiny_model, backend="torch", dtype="float32")
    cache = Cache(model.ops, model.cache_spec(context=24, sinks=2, kv="k8v4", chunk=8))
    token = model.ops.array(np.array([[9]], np.int32))
    for _ in range(30):
        model.decoder(model.ops, token, cache)
    records = []
    for _ in range(3):
        with Record() as record:
            model.decoder(model.ops, token, cache)
        records.append(record.seen)
    assert len(records[0]) > 50
    assert records[0] == records[1] == records[2]
    assert not [name for name, *_ in records[0] if "_local_scalar_dense" in name or "nonzero" in name]
