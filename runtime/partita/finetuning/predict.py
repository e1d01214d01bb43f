"""What a run will take, before anything of it is loaded: from the files of model and data alone.

Not here: the run (`prepare` judges again, with what was really allocated). Writes nothing. Numbers are those by which
`training.memory` admits a run, so who makes room for a prediction makes room for the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..adapters.lora import ALL_LINEAR, LoraConfig
from ..errors import MemoryBudgetError
from ..group import Alone
from ..model.config import ModelConfig
from ..model.load import read_config, weight_bytes
from ..model.weight_source import WeightSource
from ..model.weights import PROJECTIONS, WeightSpec
from ..sources.listener import Listener
from ..sources.resolve import resolve
from ..training.memory import FLOAT, Estimate, TrainingShape, admit, estimate
from .prepare import ITEMSIZE, batches_of, choose_backend, decided, lora_of, open_base, read_data, with_length
from .settings import Settings


@dataclass(frozen=True)
class Prediction:
    """Bytes. settings: with everything decided that could be; `steps` only where the data was read. weights: of the
    model as it is loaded. free: on the device. data: numbers of each split, None where the data was not read; notes:
    lines on what was not read as it stands."""

    settings: Settings
    backend: str
    device: str
    config: ModelConfig
    shape: TrainingShape
    weights: int
    free: int
    data: Mapping[str, Mapping[str, int]] | None = None
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> int:
        """What is trained."""
        return self.shape.trained * FLOAT

    @property
    def rest(self) -> Estimate:
        """What else training takes."""
        return estimate(self.config, self.shape)

    @property
    def needs(self) -> int:
        """Everything, as it runs fastest."""
        return self.weights + self.values + self.rest.total

    @property
    def least(self) -> int:
        """Everything, with gradient checkpointing, which a run falls back to where nothing was said of it."""
        return self.weights + self.values + estimate(self.config, self._least).total

    def refusal(self, free: int) -> str | None:
        """Why this does not fit into so many free bytes, and what would; None where it fits."""
        try:
            admit(self.config, self._least, free - self.weights - self.values, full=self.settings.method == "full")
        except MemoryBudgetError as error:
            return str(error)
        return None

    @property
    def _least(self) -> TrainingShape:
        return replace(self.shape, grad_checkpoint=self.settings.grad_checkpoint is not False)


def predict(settings: Settings, listener: Listener | None = None, *, reads_data: bool = True) -> Prediction:
    """Errors as of `prepare` for what is wrong with settings, data and files; none for too little memory."""
    listener = listener or Listener()
    checkpoint, tokenizer = open_base(settings, resolve(settings.model, progress=listener.fetching()))
    ops = choose_backend(settings, checkpoint, listener)
    config = read_config(checkpoint)
    settings = replace(with_length(settings, config.max_positions), dtype=ops.dtype)
    lora = lora_of(settings)
    data, notes = None, ()
    if reads_data:
        splits = read_data(settings, tokenizer, listener)
        settings = decided(settings, batches_of(settings, splits.train, Alone()))
        data, notes = splits.statistics(), splits.notes
    shape = TrainingShape(
        rows=settings.batch_size,
        length=settings.max_length or 0,
        trained=_trained(config, WeightSource(checkpoint, config).specs, lora),
        itemsize=ITEMSIZE[ops.dtype],
        grad_checkpoint=bool(settings.grad_checkpoint),
        packing=settings.packing,
        accumulate=settings.accumulate,
    )
    free, weights = ops.memory().free, weight_bytes(ops, checkpoint)
    return Prediction(settings, ops.name, ops.device, config, shape, weights, free, data, notes)


def _trained(config: ModelConfig, specs: Sequence[WeightSpec], lora: LoraConfig | None) -> int:
    """Number of trained values. specs: the model's weights, by the names that it has in its files."""
    if lora is None:
        return sum(math.prod(spec.shape) for spec in specs)
    first = config.num_layers - (lora.layers or config.num_layers)
    chosen = [
        spec.shape
        for spec in specs
        if spec.kind in PROJECTIONS
        and (spec.layer or 0) >= first
        and (ALL_LINEAR in lora.names or spec.module.rpartition(".")[2] in lora.names)
    ]
    return sum(lora.rank * sum(shape) + shape[0] * lora.dora for shape in chosen)
