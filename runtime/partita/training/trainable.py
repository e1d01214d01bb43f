"""A decoder some of whose arrays are trained: which, where they belong, and the pass that training needs.

`adapted` trains adapters, `full` every weight. What is trained is a flat dict of float32 arrays by name, held by
whoever trains; the decoder here has None in their places, so no second copy lives.
Invariant: whatever is differentiated is an argument of the seam's transforms, never closed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np

from ..adapters.lora import Dropout, LoraConfig, attach, for_inference
from ..arrays import Array
from ..backend import Backend
from ..brief import Brief
from ..cache.spec import LayerSpec
from ..checkpoint.base import Checkpoint
from ..errors import UnsupportedModel
from ..model.decoder import Decoder, through
from ..model.layers import Linear, Parameter, RMSNorm
from ..model.tree import at, replace_at, walk
from ..quantization import Packed, dequantize
from .initialize import untrained
from .loss import chunk_rows, cross_entropy
from .packed import PackedSequences, PackedView


@dataclass(frozen=True)
class Trainable(Brief):
    """decoder: with None where a trained array belongs. places: the paths in it of each trainable's name.

    plus_one: trainables that stand for 1 + themselves (norms of some families). identity: what decides the mathematics,
    for JSON. narrow: matrices may come to the loss in the residual dtype, which all that reads them computes in.
    """

    decoder: Decoder
    places: Mapping[str, tuple[str, ...]]
    identity: Mapping[str, Any]
    plus_one: frozenset[str] = frozenset()
    dropout: Dropout | None = field(default=None, compare=False)
    narrow: bool = False

    def bind(self, ops: Backend, values: Mapping[str, Array]) -> Decoder:
        """The decoder with these values, for generation."""
        shifted = {name: self._shifted(name, values[name]) for name in self.places}
        return for_inference(ops, self.decoder, shifted, self.places)

    def loss(
        self,
        ops: Backend,
        values: dict[str, Array],
        batch: Any,
        view: PackedView,
        *,
        checkpoint: bool = False,
        rows: int | None = None,
    ) -> Array:
        """Sum of the trained tokens' cross-entropies: float32 scalar, differentiable in `values`.

        ops: what the loss was handed. batch: a `batches.Batch`, and its view. checkpoint: blocks are computed again in
        the backward pass. rows: of logits that are computed together.
        """
        self.decoder.check(batch.tokens, batch.targets)
        hidden = self.hidden(ops, values, batch.tokens, view, checkpoint=checkpoint)
        decoder, head = self.decoder, self._own("head", values)

        def logits(head: Mapping[str, Array], x: Array) -> Array:
            return replace(decoder, head=self._bound("head", head)).logits(ops, x)

        rows = rows or chunk_rows(decoder.config.vocab_size)
        return cross_entropy(ops, logits, head, hidden, batch.targets, batch.weights, rows)

    def hidden(
        self,
        ops: Backend,
        values: dict[str, Array],
        tokens: np.ndarray,
        view: PackedView,
        *,
        checkpoint: bool = False,
    ) -> Array:
        """(B, T, E) after the last norm, of int32 tokens (B, T)."""
        embedding = self._bound("embedding", self._own("embedding", values))
        ids = ops.array(tokens)
        x = replace(self.decoder, embedding=embedding).embedded(ops, ids)
        told = None
        if self.decoder.per_layer is not None:
            told = self._bound("per_layer", self._own("per_layer", values))(ops, ids, x)

        def block(ops: Backend, x: Array, state: PackedSequences, i: int, *told: Array) -> Array:
            layer = view.layers[i]
            source = layer.shares if isinstance(layer, LayerSpec) else None
            lent = () if source is None else state.kept[source]

            def run(own: dict[str, Array], x: Array, *arrays: Array) -> Any:
                # keys and values that other layers read are arguments and results: nothing else is differentiated
                k_v = arrays[len(told) :]
                inner = replace(state, kept={} if source is None else {source: (k_v[0], k_v[1])})
                y = self._bound(f"blocks.{i}", own)(ops, x, inner, i, *arrays[: len(told)])
                return (y, *inner.kept[i]) if i in view.shared else y

            own = self._own(f"blocks.{i}", values)
            y = (ops.checkpoint(run) if checkpoint else run)(own, x, *told, *lent)
            if i not in view.shared:
                return y
            state.kept[i] = y[1], y[2]
            return y[0]

        x = through(ops, repeat(block, len(self.decoder.blocks)), x, view.state(ops), told=told)
        return self._bound("norm", self._own("norm", values))(ops, x)

    @cached_property
    def _parts(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Part of the decoder to its trainables and their paths within it. A tied embedding is in two parts."""
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for name, paths in self.places.items():
            for path in paths:
                part, inner = _split(path)
                own = found.setdefault(part, {})
                own[name] = (*own.get(name, ()), inner)
        return found

    def _own(self, part: str, values: Mapping[str, Array]) -> dict[str, Array]:
        return {name: values[name] for name in self._parts.get(part, {})}

    def _bound(self, part: str, own: Mapping[str, Array]) -> Any:
        """A part of the decoder with its trainables in place."""
        paths = self._parts.get(part, {})
        return replace_at(
            at(self.decoder, part),
            {path: self._shifted(name, own[name]) for name in paths for path in paths[name]} if paths else {},
        )

    def _shifted(self, name: str, value: Array) -> Array:
        return value + 1.0 if name in self.plus_one else value


def _split(path: str) -> tuple[str, str]:
    """ "blocks.3.mixer.out.a" to ("blocks.3", "mixer.out.a"); "embedding" to ("embedding", "")."""
    keys = path.split(".")
    count = 2 if keys[0] == "blocks" else 1
    return ".".join(keys[:count]), ".".join(keys[count:])


def adapted(ops: Backend, decoder: Decoder, config: LoraConfig) -> tuple[Trainable, dict[str, Array]]:
    """Adapters on a decoder that was loaded with stack=False, and their initial values. Errors as in `lora.attach`."""
    dropout = Dropout(config.dropout, config.seed) if config.dropout else None
    hollow, values, places = attach(ops, decoder, config, dropout)
    identity = {
        "method": "dora" if config.dora else "lora",
        "rank": config.rank,
        "alpha": config.alpha,
        "rslora": config.rslora,
        "dropout": config.dropout,
        "targets": ",".join(sorted({name.split(".")[-3] for name in values if "lora_A" in name})),
        "layers": config.layers,
        "adapter_seed": config.seed,
    }
    return Trainable(hollow, places, identity, dropout=dropout, narrow=not config.dora), values


def full(ops: Backend, decoder: Decoder, checkpoint: Checkpoint) -> tuple[Trainable, dict[str, Array]]:
    """Every weight in float32, as the checkpoint has it (packed ones unpacked). The decoder is the checkpoint's, loaded
    with stack=False. Raises UnsupportedModel for a model of which a part cannot be trained."""
    if part := untrained(decoder.config):
        raise UnsupportedModel(
            f"`method` full: the {part} of a {decoder.config.model_type} model cannot be trained: use `method` lora",
            field="method",
        )
    places, plus_one = _weights(decoder)
    values: dict[str, Array] = {}
    for name in places:
        value = checkpoint.read(name)
        dense = dequantize(value) if isinstance(value, Packed) else value.astype(np.float32)
        values[name] = ops.array(dense, "float32")
    hollow = replace_at(decoder, {path: None for paths in places.values() for path in paths})
    return Trainable(hollow, places, {"method": "full"}, plus_one), values


def _weights(decoder: Decoder) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """Names in the checkpoint of all weights and biases with their paths; and of the norms that add one."""
    places: dict[str, tuple[str, ...]] = {f"{decoder.embedding_name}.weight": ("embedding",)}
    if decoder.per_layer is not None:
        places[f"{decoder.per_layer.name}.weight"] = ("per_layer.table",)
    norms: set[str] = set()
    for path, node in walk(decoder):
        if not isinstance(node, Linear | RMSNorm | Parameter):
            continue
        if not node.name and isinstance(node, RMSNorm):
            continue  # it has no weight that is learned
        if not node.name:
            raise ValueError("full training needs a decoder loaded with stack=False")
        if isinstance(node, Parameter):
            places[node.name] = (f"{path}.value",)
            continue
        name = f"{node.name}.weight"
        places[name] = (*places.get(name, ()), f"{path}.weight")
        if isinstance(node, RMSNorm) and node.plus_one:
            norms.add(name)
        elif isinstance(node, Linear) and node.bias is not None:
            places[f"{node.name}.bias"] = (f"{path}.bias",)
    return places, frozenset(norms)
