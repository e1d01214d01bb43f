"""A checkpoint in the names that a reader elsewhere looks for: only experts have more than one way to be kept, what
goes into Qwen3-Next's recurrent layers, which GGUF splits and every folder has in two matrices, and what mlx-lm merely
calls otherwise than it was published (`renames`).

    as_mlx          stacks (experts, out, in): `mlp.switch_mlp.gate_proj.weight`; in gpt-oss `mlp.experts.gate_proj...`,
                    in Gemma 4 `experts.switch_glu.gate_proj...`
    as_huggingface  one matrix an expert, `mlp.experts.3.gate_proj.weight`, in LFM2-MoE
                    `feed_forward.experts.3.w1.weight`; in gpt-oss `mlp.experts.gate_up_proj`,
                    dense, (experts, in, 2 * out) with gate and up taking turns; in Gemma 4
                    `experts.gate_up_proj`, (experts, 2 * out, in), gate above up

Invariants: tensors are read when they are asked for; a checkpoint without experts, or with
its experts in that form already, is returned as it is; integers stay as they are wherever the form can hold them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from partita.checkpoint import experts
from partita.checkpoint.base import Checkpoint, shares
from partita.checkpoint.experts import NUMBERED, PROJECTIONS, StoredExperts, Value
from partita.checkpoint.gguf.arrangement import rows_by_key_heads
from partita.checkpoint.gguf.parts import BY_KEY_HEADS, QWEN3_NEXT
from partita.checkpoint.overlay import Derived
from partita.quantization import Packed, dequantize, joined
from partita.small_floats import exact_dtype

from .renames import as_of_mlx, as_published


@dataclass(frozen=True)
class _Tensor:
    """One tensor under its new name, named and read on demand. sources: the base's tensors that it is made of."""

    shape: Callable[[], tuple[int, ...]]
    read: Callable[[], Value]
    stored_as: Callable[[], str]
    sources: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Relaid(Derived):
    """A checkpoint with some of its tensors replaced. tensors: the new ones. order: all names."""

    tensors: Mapping[str, _Tensor]
    order: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        return self.order

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape() if name in self.tensors else self._inner(name).shape(name)

    def read(self, name: str) -> Value:
        return self.tensors[name].read() if name in self.tensors else self._inner(name).read(name)

    def stored_as(self, name: str) -> str:
        return self.tensors[name].stored_as() if name in self.tensors else self._inner(name).stored_as(name)

    def weight_bytes(self) -> Mapping[str, int]:
        made_of = {name: self.tensors[name].sources if name in self.tensors else (name,) for name in self.order}
        return shares(made_of, self.base.weight_bytes())

    def _inner(self, name: str) -> Checkpoint:
        if name not in self.order:
            raise self.missing(name)
        return self.base


Layer = Callable[[str, StoredExperts, frozenset[str]], Iterator[tuple[str, _Tensor]]]
"""(the MLP's name, its experts, every name there is) to its tensors in the new form."""


def as_mlx(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint in mlx-lm's names. Raises CheckpointError for experts that do not go together."""
    module = "experts" if _is_gpt_oss(checkpoint) else "experts.switch_glu" if _is_beside(checkpoint) else "switch_mlp"

    def layer(mlp: str, stored: StoredExperts, present: frozenset[str]) -> Iterator[tuple[str, _Tensor]]:
        for projection in PROJECTIONS:
            yield f"{mlp}.{module}.{projection}.weight", _whole(stored, projection)
            if stored.bias_sources(projection)[0] in present:
                yield f"{mlp}.{module}.{projection}.bias", _whole_bias(stored, projection)

    checkpoint = by_key_heads(as_of_mlx(checkpoint))
    return _relaid(
        checkpoint, lambda mlp, stored: stored.module == f"{mlp}.{module}" and stored.form == "stacked", layer
    )


def as_huggingface(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint in the names that transformers loads, as published models have them. Errors as for `as_mlx`.

    gpt-oss's experts are dequantized, to float32; those of small floats to what holds
    them (`small_floats.exact_dtype`).
    """
    if _is_gpt_oss(checkpoint):
        return _relaid(checkpoint, lambda _, stored: stored.form == "fused", _fused)
    if _is_beside(checkpoint):
        return _relaid(checkpoint, lambda _, stored: stored.form == "fused", _above)
    return _relaid(by_key_heads(as_published(checkpoint)), lambda _, stored: stored.form == "each", _each)


def by_key_heads(checkpoint: Checkpoint, parts: Sequence[str] = tuple(BY_KEY_HEADS)) -> Checkpoint:
    """Qwen3-Next with its matrices whose rows go by key heads, as it was published. parts: which, by GGUF's names.

    Integers of one format stay; parts of several become dense."""
    if checkpoint.config.get("model_type") != "qwen3_next":
        return checkpoint
    tensors: dict[str, _Tensor] = {}
    order, present, gone = list[str](), frozenset(checkpoint.names()), set[str]()
    for name in checkpoint.names():
        layer, _, rest = name.partition("linear_attn.")
        for part in parts:
            pieces = [f"{layer}{called}.weight" for called in BY_KEY_HEADS[part]]
            if rest and name in pieces and present.issuperset(pieces) and name not in gone:
                name = f"{layer}{QWEN3_NEXT[part]}.weight"
                tensors[name] = _by_key_heads(checkpoint, pieces, part)
                gone.update(pieces)
        if name not in gone:
            order.append(name)
    return _Relaid.of(checkpoint, tensors=tensors, order=tuple(order)) if tensors else checkpoint


def _by_key_heads(checkpoint: Checkpoint, pieces: Sequence[str], part: str) -> _Tensor:
    types = dict.fromkeys(map(checkpoint.stored_as, pieces))
    count = sum(checkpoint.shape(name)[0] for name in pieces)

    def read() -> Value:
        rows = np.argsort(np.concatenate(rows_by_key_heads(part, checkpoint.config, count, pieces[0])))
        values = [checkpoint.read(name) for name in pieces]
        packed = [value for value in values if isinstance(value, Packed)]
        if len(packed) == len(values) and len({(value.format, value.scales.dtype) for value in packed}) == 1:
            return joined(packed, np.concatenate).map(lambda part: part[rows])
        return np.concatenate([dequantize(value) if isinstance(value, Packed) else value for value in values])[rows]

    def shape() -> tuple[int, ...]:
        return (count, *checkpoint.shape(pieces[0])[1:])

    return _Tensor(shape, read, lambda: " and ".join(types), pieces)


def _is_gpt_oss(checkpoint: Checkpoint) -> bool:
    return experts.is_interleaved(checkpoint)


def _is_beside(checkpoint: Checkpoint) -> bool:
    """Whether experts stand beside a dense MLP, as Gemma 4's, which have names of their own."""
    return checkpoint.config.get("model_type") in ("gemma4", "gemma4_text")


def _relaid(checkpoint: Checkpoint, fits: Callable[[str, StoredExperts], bool], layer: Layer) -> Checkpoint:
    """New tensors stand where the first of the old ones of their layer stood."""
    found = {mlp: stored for mlp, stored in experts.find(checkpoint).items() if not fits(mlp, stored)}
    if not found:
        return checkpoint
    present = frozenset(checkpoint.names())
    owner: dict[str, str] = {}
    for mlp, stored in found.items():
        for projection in PROJECTIONS:
            names = (*stored.sources(projection), *stored.bias_sources(projection))
            owner |= {name: mlp for name in names if name in present}
    order: list[str] = []
    tensors: dict[str, _Tensor] = {}
    for name in checkpoint.names():
        if name not in owner:
            order.append(name)
        elif owner[name] in found:
            mlp = owner[name]
            new = dict(layer(mlp, found.pop(mlp), present))
            tensors |= new
            order += new
    return _Relaid.of(checkpoint, tensors=tensors, order=tuple(order))


def _whole(stored: StoredExperts, projection: str) -> _Tensor:
    return _Tensor(
        lambda: stored.shape(projection),
        lambda: stored.weight(projection),
        lambda: stored.stored_as(projection),
        stored.sources(projection),
    )


def _whole_bias(stored: StoredExperts, projection: str) -> _Tensor:
    names = stored.bias_sources(projection)
    return _Tensor(
        lambda: stored.shape(projection)[:2],
        lambda: stored.bias(projection),
        lambda: stored.checkpoint.stored_as(names[0]),
        names,
    )


def _each(mlp: str, stored: StoredExperts, present: frozenset[str]) -> Iterator[tuple[str, _Tensor]]:
    """One matrix an expert; all experts of a projection before the next one, so that each stack is read once."""
    called = NUMBERED if experts.calls_by_number(stored.checkpoint) else {}
    for projection in PROJECTIONS:
        kept = _Last(lambda projection=projection: stored.weight(projection))
        biases = _Last(lambda projection=projection: stored.bias(projection))
        for expert in range(stored.shape(projection)[0]):
            module = f"{mlp}.experts.{expert}.{called.get(projection, projection)}"
            yield f"{module}.weight", _slice(_whole(stored, projection), kept, expert)
            if stored.bias_sources(projection)[0] in present:
                yield f"{module}.bias", _slice(_whole_bias(stored, projection), biases, expert)


class _Last:
    """A stack while its slices are read one after another: dropped with the last of them, which is asked for last."""

    def __init__(self, read: Callable[[], Value]):
        self._read = read
        self._value: Value | None = None

    def slice(self, expert: int, count: int) -> Value:
        value = self._read() if self._value is None else self._value
        self._value = None if expert == count - 1 else value
        return value.map(lambda part: part[expert]) if isinstance(value, Packed) else value[expert]


def _slice(whole: _Tensor, kept: _Last, expert: int) -> _Tensor:
    return _Tensor(
        lambda: whole.shape()[1:], lambda: kept.slice(expert, whole.shape()[0]), whole.stored_as, whole.sources
    )


def _fused(mlp: str, stored: StoredExperts, present: frozenset[str]) -> Iterator[tuple[str, _Tensor]]:
    """gpt-oss's dense tensors: gate and up of one matrix, each expert's matrix transposed."""
    for name, parts in (("gate_up_proj", PROJECTIONS[:2]), ("down_proj", PROJECTIONS[2:])):
        first = parts[0]
        yield (
            f"{mlp}.experts.{name}",
            _Tensor(
                lambda parts=parts: _fused_shape(stored, parts),
                lambda parts=parts: _interleaved(stored, parts),
                lambda first=first: stored.stored_as(first),
                [name for part in parts for name in stored.sources(part)],
            ),
        )
        if (bias := stored.bias_sources(first)[0]) in present:
            yield (
                f"{mlp}.experts.{name}_bias",
                _Tensor(
                    lambda parts=parts: (_fused_shape(stored, parts)[0], _fused_shape(stored, parts)[2]),
                    lambda parts=parts: _turns([stored.bias(part) for part in parts]),
                    lambda bias=bias: stored.checkpoint.stored_as(bias),
                    [name for part in parts for name in stored.bias_sources(part)],
                ),
            )


def _above(mlp: str, stored: StoredExperts, present: frozenset[str]) -> Iterator[tuple[str, _Tensor]]:
    """Gemma 4's dense tensors, (experts, out, in): gate above up."""
    for name, parts in (("gate_up_proj", PROJECTIONS[:2]), ("down_proj", PROJECTIONS[2:])):

        def shape(parts: tuple[str, ...] = parts) -> tuple[int, ...]:
            count, out, size = stored.shape(parts[0])
            return count, out * len(parts), size

        def read(parts: tuple[str, ...] = parts) -> Value:
            values = [(part, stored.weight(part)) for part in parts]
            dtype = np.result_type(*(_exact_dtype(stored, part, value) for part, value in values))
            dense = (dequantize(value) if isinstance(value, Packed) else value for _, value in values)
            return np.concatenate([value.astype(dtype, copy=False) for value in dense], 1)

        sources = [source for part in parts for source in stored.sources(part)]
        yield f"{mlp}.experts.{name}", _Tensor(shape, read, lambda first=parts[0]: stored.stored_as(first), sources)


def _fused_shape(stored: StoredExperts, parts: tuple[str, ...]) -> tuple[int, int, int]:
    count, out, size = stored.shape(parts[0])
    return count, size, out * len(parts)


def _interleaved(stored: StoredExperts, parts: tuple[str, ...]) -> np.ndarray:
    """(experts, in, parts * out), the parts' columns taking turns; one part at a time is in memory beside it."""
    whole: np.ndarray | None = None
    for turn, part in enumerate(parts):
        value = stored.weight(part)
        dtype = _exact_dtype(stored, part, value)
        if whole is None:
            whole = np.empty(_fused_shape(stored, parts), dtype)
        whole = whole.astype(np.promote_types(whole.dtype, dtype), copy=False)
        for expert in range(whole.shape[0]):
            one = dequantize(value.map(lambda x, e=expert: x[e]), dtype) if isinstance(value, Packed) else value[expert]
            whole[expert, :, turn :: len(parts)] = one.T
    assert whole is not None  # there is at least one part
    return whole


def _exact_dtype(stored: StoredExperts, part: str, value: Value) -> Any:
    """A dense tensor's own; of a packed one, a dtype that holds its values exactly."""
    if not isinstance(value, Packed):
        return value.dtype
    return exact_dtype(value)


def _turns(vectors: list[np.ndarray]) -> np.ndarray:
    """Biases (experts, out) of each part to (experts, parts * out), taking turns."""
    return np.stack(vectors, -1).reshape(vectors[0].shape[0], -1)
