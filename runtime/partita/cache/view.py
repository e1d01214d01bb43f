"""What a step of a cache writes where, and what its queries see: data, made once a step for each kind of layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..arrays import Array
from ..backend import MASKED, Backend, Rule
from ..brief import Brief
from ..model.config import RopeConfig
from .spec import LayerSpec


@dataclass(frozen=True)
class Kind:
    """What a step does to one kind of layer, as far as it decides which operations run.

    anchored: whether a row is, or has been, beyond the anchor.
    """

    writes_sinks: bool
    writes_ring: bool
    anchored: bool


@dataclass(frozen=True)
class Step:
    """What the host knows of a step: equal steps on equal shapes run the same operations.

    lengths: real tokens of each row, None where all are. kinds, reach: in the order of the cache's spans; reach: how
    many slots behind the sinks there is anything in, None where all are looked at.
    """

    tokens: int
    lengths: tuple[int, ...] | None
    kinds: tuple[Kind, ...]
    reach: tuple[int | None, ...]


@dataclass(frozen=True)
class Seen(Brief):
    """What queries see of some slots, as a rule and as what is added to scores: mask, float32 (B, T, C)."""

    rule: Rule[Array]
    mask: Array


@dataclass(frozen=True)
class View(Brief):
    """Where a step writes and what its queries see, for one kind of layer. None: nothing to write there, or to see.

    index: slots of `Buffers.kv`; sink_index: places of the sinks alone. reach: how many slots of `Buffers.kv` are
    looked at, None for all; kv: what is seen of them; first: of the sinks, where they are scored apart, and both masks
    side by side. turned: the sinks' keys for a step's one query (`SinkKeys.turned`). anchored: angles of a longer
    step's queries to the sinks, and of the sinks. centres: of layers whose sinks are as they were (`Centres.of_all`).
    """

    index: Array | None
    sink_index: Array | None
    reach: int | None
    kv: Seen
    first: tuple[Seen, Array] | None
    turned: Mapping[LayerSpec, Array]
    anchored: Mapping[RopeConfig, tuple[tuple[Array, Array], tuple[Array, Array]]]
    centres: Mapping[LayerSpec, Array]


def seen(ops: Backend, rule: Rule[Array], start: int = 0, stop: int | None = None, *, spare: bool = False) -> Seen:
    """Of some of the rule's slots. spare: with one behind them that nobody sees."""
    slots, visible = rule.slots[:, start:stop], rule.seen[:, :, start:stop]
    if spare:
        slots = ops.concat([slots, ops.full((slots.shape[0], 1), -1, "int32")], 1)
        visible = ops.concat([visible, ops.full((*visible.shape[:2], 1), False, "bool")], 2)
    return Seen(replace(rule, slots=slots, seen=visible), ops.where(visible, 0.0, MASKED))
