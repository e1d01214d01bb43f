"""A finished adapter on a loaded decoder, beside its weights: packed ones stay packed, and one base serves several.

Not here: reading adapters (`adapters`), training them (`lora`), fusing (`adapters.fused`). Invariants: the base decoder
is not changed and shares every weight with what is made of it; what cannot be done beside the weights is refused and
the way to fuse it named.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from ..backend import Backend
from ..checkpoint.names import Index, is_beside_text
from ..errors import CheckpointError, UnsupportedModel
from ..model.config import ModelConfig
from ..model.decoder import Decoder
from ..model.layers import Linear
from ..model.tree import replace_at, walk
from .lora import LoraLinear, projection_shapes, projections, row_squares
from .read import Adapter, LowRank, resolved


def with_adapter(ops: Backend, decoder: Decoder, adapter: Adapter) -> Decoder:
    """The decoder with its adapted projections. It must have been loaded with stack=False.

    CheckpointError: a module or a shape that this model does not have. UnsupportedModel: a change of something that is
    no projection (embeddings, whole layers, experts). What it changes in a part that sees does not matter to a text.
    """
    paths = {f"{linear.name}.weight": path for path, linear in projections(decoder)}
    if not decoder.config.tie_embeddings:
        paths[f"{decoder.head.name}.weight"] = "head"
    nodes, present, changes = dict(walk(decoder)), Index(paths), {}
    for name in (*adapter.replaced, *adapter.changes):
        if is_beside_text(name):  # adapted along with the text decoder, as its projections are called alike
            continue
        change = adapter.changes.get(name)
        if change is None or change.a.ndim != 2 or not name.endswith(("_proj.weight", "lm_head.weight")):
            raise UnsupportedModel(_only_fused(name, adapter))
        if name.endswith("lm_head.weight") and decoder.config.tie_embeddings:
            raise UnsupportedModel(_only_fused(name, adapter))
        path = paths[resolved(name, present, adapter)]
        changes[path] = _layer(ops, decoder.config, nodes[path], change, adapter)
    return replace_at(decoder, changes)


def identity(adapter: Adapter) -> str:
    """A stable identity of what an adapter does, in hexadecimal: every byte of it counts."""
    digest = hashlib.sha256()
    for name, change in sorted(adapter.changes.items()):
        digest.update(f"{name}\0{change.scale!r}\0".encode())
        for part in (change.a, change.b, change.magnitude):
            digest.update(b"" if part is None else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:32]


def _only_fused(name: str, adapter: Adapter) -> str:
    return (
        f"{adapter.path.name}: the adapter changes {name}, which is no single projection of this model: fuse it with "
        f"`partita convert MODEL DEST --adapter {adapter.path}` and use DEST"
    )


def _layer(ops: Backend, config: ModelConfig, base: Linear, change: LowRank, adapter: Adapter) -> LoraLinear:
    shape = projection_shapes(config).get(base.name.rpartition(".")[2], (config.vocab_size, config.hidden_size))
    if change.shape != shape:
        raise CheckpointError(
            f"{adapter.path.name}: {base.name} is {shape} in this model and {change.shape} in the adapter, which was "
            f"made for {adapter.base_model or 'another model'}"
        )
    parts = [x.astype(np.float32) for x in (change.a, change.b, change.magnitude) if x is not None]
    if not all(np.isfinite(part).all() for part in parts):
        raise CheckpointError(f"{adapter.path.name}: {base.name} has values that are not finite")
    a, b, *magnitude = (ops.array(part, "float32") for part in parts)
    layer = LoraLinear(base, a, b, change.scale)
    if magnitude:
        layer = replace(layer, magnitude=magnitude[0], base_squares=row_squares(ops, base, shape[0])).for_inference(ops)
    return replace(layer, a=ops.cast(a, ops.dtype), b=ops.cast(b, ops.dtype))
