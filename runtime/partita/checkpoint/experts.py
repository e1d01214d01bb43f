"""The experts of a layer, however a checkpoint keeps them, as stacks (experts, out, in) with one bias (experts, out).

    each         experts.3.gate_proj.weight                 one matrix an expert (published Qwen3-MoE)
                 experts.3.w1.weight, w3, w2                the same for gate, up and down (published LFM2-MoE)
    stacked      switch_mlp.gate_proj.weight                (experts, out, in): mlx-lm, and GGUF as it is read here;
                 experts.gate_proj.weight                   mlx-lm's name in gpt-oss
                 experts.switch_glu.gate_proj.weight        mlx-lm's name in Gemma 4
    fused        experts.gate_up_proj, experts.down_proj    dense. gpt-oss: (experts, in, out), gate and up interleaved;
                                                            Qwen3-MoE: (experts, out, in), gate above up
    mxfp4        experts.gate_up_proj_blocks, _scales       4-bit floats (published gpt-oss), gate and up interleaved

Invariants: integers arrive as stored; one projection of one layer is in memory at a time;
tensors that do not go together are one CheckpointError that names the layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import CheckpointError
from ..quantization import Packed, Stored, joined
from .base import Checkpoint
from .schemes import mxfp4

Value = np.ndarray | Packed
Form = Literal["each", "stacked", "fused", "mxfp4"]

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
NUMBERED = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""What some families call them."""
# the layer's MLP, what tells the form, and for `each` the expert
_SIGNS: tuple[tuple[Form, re.Pattern[str]], ...] = (
    ("each", re.compile(r"(?P<mlp>.*)\.(?P<module>experts)\.(?P<expert>\d{1,5})\.(?P<gate>gate_proj|w1)\.weight")),
    ("stacked", re.compile(r"(?P<mlp>.*)\.(?P<module>switch_mlp|experts\.switch_glu|experts)\.gate_proj\.weight")),
    ("fused", re.compile(r"(?P<mlp>.*)\.(?P<module>experts)\.gate_up_proj")),
    ("mxfp4", re.compile(r"(?P<mlp>.*)\.(?P<module>experts)\.gate_up_proj_blocks")),
)


def is_interleaved(checkpoint: Checkpoint) -> bool:
    """Whether fused tensors of this checkpoint are gpt-oss's: transposed, rows of gate and up taking turns."""
    return checkpoint.config.get("model_type") == "gpt_oss"


def calls_by_number(checkpoint: Checkpoint) -> bool:
    """Whether the family's published files call gate, up and down of an MLP w1, w3 and w2."""
    return checkpoint.config.get("model_type") == "lfm2_moe"


def find(checkpoint: Checkpoint) -> dict[str, StoredExperts]:
    """The experts of every layer that has some, by the name of its MLP ("model.layers.3.mlp"), in the file's order.

    Raises CheckpointError for a layer that keeps them in two forms.
    """
    found: dict[str, tuple[Form, str, bool]] = {}
    counts: dict[str, int] = {}
    for name in checkpoint.names():
        for form, sign in _SIGNS:
            if (match := sign.fullmatch(name)) is None:
                continue
            mlp = match["mlp"]
            numbered = match.groupdict().get("gate") == NUMBERED["gate_proj"]
            how: tuple[Form, str, bool] = (form, f"{mlp}.{match['module']}", numbered)
            if found.setdefault(mlp, how) != how:
                raise CheckpointError(f"{checkpoint.path.name}: {mlp} keeps its experts in two forms")
            if form == "each":
                counts[mlp] = max(counts.get(mlp, 0), int(match["expert"]) + 1)
    return {
        mlp: StoredExperts(
            checkpoint, form, module, is_interleaved(checkpoint), counts.get(mlp, 0), NUMBERED if numbered else {}
        )
        for mlp, (form, module, numbered) in found.items()
    }


@dataclass(frozen=True)
class StoredExperts:
    """One layer's experts in a checkpoint. module: what their names begin with. expected: their number, for `each`.
    called: names of projections there, where they are others."""

    checkpoint: Checkpoint
    form: Form
    module: str
    interleaved: bool
    expected: int
    called: Mapping[str, str]

    def shape(self, projection: str) -> tuple[int, ...]:
        """(experts, out, in) that `weight` will have, without reading. CheckpointError if tensors cannot give it."""
        if self.form == "each":
            shapes = {self.checkpoint.shape(name) for name in self.sources(projection)}
            if len(shapes) > 1:
                raise self._error(f"experts have {projection} of different shapes: {sorted(shapes)}")
            return (self.expected, *shapes.pop())
        if self.form == "stacked":
            return self.checkpoint.shape(f"{self.module}.{projection}.weight")
        stored = self.checkpoint.shape(self.sources(projection)[0])
        if len(stored) != (4 if self.form == "mxfp4" else 3):
            raise self._error(f"{_fused(projection)} has shape {stored}")
        if self.form == "mxfp4":
            count, out, size = stored[0], stored[1], stored[2] * mxfp4.GROUP
        else:
            count, out, size = (stored[0], stored[2], stored[1]) if self.interleaved else stored
        if projection == "down_proj":
            return (count, out, size)
        if out % 2:
            raise self._error(f"gate_up_proj has {out} rows, which gate and up cannot share")
        return (count, out // 2, size)

    def weight(self, projection: str, smallest_group: int | None = None) -> Value:
        """One projection of every expert: (experts, out, in), dense as stored, or Packed. smallest_group: for who takes
        smaller groups of integers than `Checkpoint.read` gives."""
        names = self.sources(projection)
        if self.form == "each":
            self.shape(projection)  # reported before anything is read
            return self._stack([self.checkpoint.read(name) for name in names])
        if self.form == "stacked":
            return self._stacked(names[0], smallest_group)
        self.shape(projection)
        rows = self._rows(projection)
        first, *more = (self._dense(name) for name in names)
        if self.form == "mxfp4":
            return mxfp4.repack(first[:, rows], more[0][:, rows], what=f"{self.checkpoint.path.name}: {names[0]}")
        return (first.swapaxes(1, 2) if self.interleaved else first)[:, rows]

    def _stacked(self, name: str, smallest_group: int | None) -> Value:
        value = self.checkpoint.read(name) if smallest_group is None else self.checkpoint.read_stored(name)
        if not isinstance(value, Stored):
            return value
        assert smallest_group is not None
        rows = value.repacked(smallest_group)
        value.release()
        leading = self.checkpoint.shape(name)[:-1]
        if isinstance(rows, Packed):
            return rows.map(lambda part: part.reshape(*leading, -1))
        return rows.reshape(*leading, -1)

    def bias(self, projection: str) -> np.ndarray:
        """One projection's biases, (experts, out)."""
        names = self.bias_sources(projection)
        values = [self._dense(name) for name in names]
        if self.form == "each":
            if len({value.shape for value in values}) > 1:
                raise self._error(f"experts have {projection} biases of different shapes")
            return np.stack(values)
        if values[0].ndim != 2:
            raise self._error(f"{names[0]} has shape {values[0].shape}")
        return values[0] if self.form == "stacked" else values[0][:, self._rows(projection)]

    def sources(self, projection: str) -> list[str]:
        """Names of the tensors that hold a projection, in the checkpoint's own words."""
        if self.form == "each":
            called = self.called.get(projection, projection)
            return [f"{self.module}.{expert}.{called}.weight" for expert in range(self.expected)]
        if self.form == "stacked":
            return [f"{self.module}.{projection}.weight"]
        fused = f"{self.module}.{_fused(projection)}"
        return [f"{fused}_blocks", f"{fused}_scales"] if self.form == "mxfp4" else [fused]

    def bias_sources(self, projection: str) -> list[str]:
        """Names of the tensors that would hold a projection's biases."""
        if self.form == "each":
            called = self.called.get(projection, projection)
            return [f"{self.module}.{expert}.{called}.bias" for expert in range(self.expected)]
        if self.form == "stacked":
            return [f"{self.module}.{projection}.bias"]
        return [f"{self.module}.{_fused(projection)}_bias"]

    def stored_as(self, projection: str) -> str:
        """How the file keeps a projection, for reports."""
        return "MXFP4" if self.form == "mxfp4" else self.checkpoint.stored_as(self.sources(projection)[0])

    def _rows(self, projection: str) -> slice:
        """Rows of a fused tensor that are this projection's, once it is (experts, out, in)."""
        if projection == "down_proj":
            return slice(None)
        _, half, _ = self.shape(projection)
        first = projection == "gate_proj"
        if self.interleaved or self.form == "mxfp4":
            return slice(0 if first else 1, None, 2)
        return slice(0, half) if first else slice(half, None)

    def _dense(self, name: str) -> np.ndarray:
        value = self.checkpoint.read(name)
        if isinstance(value, Packed):
            raise self._error(f"{name} is packed where a dense tensor belongs")
        return value

    def _stack(self, values: Sequence[Value]) -> Value:
        dense = [value for value in values if isinstance(value, np.ndarray)]
        if len(dense) == len(values):
            return np.stack(dense)
        packed = [value for value in values if isinstance(value, Packed)]
        if dense or len({value.format for value in packed}) > 1:
            raise self._error("its experts are stored in different formats")
        return joined(packed, np.stack)

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.checkpoint.path.name}: {self.module}: {what}")


def _fused(projection: str) -> str:
    return "down_proj" if projection == "down_proj" else "gate_up_proj"
