"""One checkpoint to another form: the one function behind `partita convert`.

Not here: how a form is written (`write_*`), how weights are rounded (`quantize`) or how many bits they get (`recipes`,
`measure`). Invariants: the source is never touched; the output is there whole or not at all; what can be refused is
refused before anything is read; the same request on the same machine gives the same bytes; memory beyond the tensor in
hand is that of one block, but for `measured:`, which runs the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from partita.adapters import Adapter, fused, is_adapter, open_adapter
from partita.backend import Backend
from partita.checkpoint import Checkpoint
from partita.errors import DataError, PartitaError, UnsupportedModel
from partita.quantization import Packed

from .activations import Importance, importance
from .adapters import fuse_quantized, retained_share, write_mlx_lm, write_peft
from .calibration import SAMPLE, written_tokens
from .card import card
from .changed import Changed, Value
from .check import check
from .layouts import as_huggingface, as_mlx
from .measure import allocate, measure, other_bits
from .planning import (
    Options,
    Request,
    check_room,
    checked,
    gguf_kind,
    predicted_bytes,
    source_bytes,
)
from .quantize import quantize
from .recipes import Format, Formats, Recipe, formats, quantizable
from .report import Report
from .write_folder import OnTensor, WrittenTensor, cast, is_floating, numpy_dtype, relative_error, write_huggingface
from .write_folder import write_mlx as write_mlx_folder
from .write_gguf import write_gguf

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@contextmanager
def no_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


@dataclass(frozen=True)
class Watch:
    """Who is told: bar(what) gives a progress bar to advance by (done, total), tell(line) what a person should know."""

    bar: Bar = no_bar
    tell: Callable[[str], None] = lambda line: None


@dataclass
class _Work:
    """What is found out on the way. formats: of quantized weights. inputs: what their columns are multiplied by."""

    request: Request
    watch: Watch
    player: Callable[[], Backend]
    base: Checkpoint
    adapter: Adapter | None
    formats: Formats = field(default_factory=dict)
    inputs: Importance = field(default_factory=dict)
    calibration: str | None = None
    retained: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
