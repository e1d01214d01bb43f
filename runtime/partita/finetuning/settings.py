"""Every setting of a training run, parsed once. What excludes what is judged here, what a step can use below.

Invariant: `Settings` holds everything that a run needs to be begun again, so it is what `run.json` keeps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypedDict

from ..errors import DataError
from ..text.chat_template import parse_variable

METHODS = ("lora", "dora", "full")
SCHEDULES = ("cosine", "linear", "constant")
LEARNING_RATES = {"lora": 2e-4, "dora": 2e-4, "full": 2e-5}
FROM_SCRATCH_RATE = 1e-3
MAX_LENGTH = 1024
EPOCHS, MOST_STEPS = 3, 1000
MOST, MOST_SEED = 10**9, 2**63 - 1
"""Of counts and of the seed: what is more is a typing mistake, and no library takes any number."""
OF_ADAPTERS = ("rslora", "rank", "alpha", "dropout", "targets", "layers")


class MoreSettings(TypedDict, total=False):
    """The settings that `partita.finetune` takes besides those that it names: types for editors and checkers.

    Fields of `Settings`, of the same types, whose defaults count for what is left out.
    """

    rslora: bool
    from_scratch: str | None
    packing: bool
    control_tokens: bool
    schedule: Literal["cosine", "linear", "constant"]
    warmup: int | None
    weight_decay: float
    clip: float
    grad_checkpoint: bool | None
    eval_every: int | None
    eval_batches: int
    save_every: int
    patience: int | None


@dataclass(frozen=True)
class Settings:
    """None: decided when model and data are known. Names are those of the flags, and of the keys of a YAML file."""

    model: str
    data: str
    method: str = "lora"
    rslora: bool = False
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: str = "all-linear"
    layers: int | None = None
    from_scratch: str | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 2
    accumulate: int = 1
    learning_rate: float | None = None
    schedule: str = "cosine"
    warmup: int | None = None
    weight_decay: float = 0.01
    clip: float = 1.0
    grad_checkpoint: bool | None = None
    max_length: int | None = None
    packing: bool = True
    valid_fraction: float = 0.05
    control_tokens: bool = False
    template_var: tuple[str, ...] = ()
    seed: int = 0
    eval_every: int | None = None
    eval_batches: int = 50
    save_every: int = 50
    patience: int | None = None
    sample: tuple[str, ...] = ()
    sample_tokens: int = 64
    backend: str = "auto"
    device: str | None = None
    dtype: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise DataError(f"unknown `method` {self.method!r}; expected one of {', '.join(METHODS)}", field="method")
        if self.schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise DataError(f"unknown `schedule` {self.schedule!r}; expected one of {known}", field="schedule")
        if self.steps is not None and self.epochs is not None:
            raise DataError("`steps` and `epochs` exclude each other: choose one of them", field="epochs")
        if self.epochs is not None and not 0 < self.epochs < 1e6:
            raise DataError(f"`epochs` must be > 0 and < 1e6, got {self.epochs}", field="epochs")
        if self.from_scratch is not None and self.method != "full":
            raise DataError("`from_scratch` trains every weight: add `method` full", field="from_scratch")
        self._refuse_adapters_settings()
        _ = self.variables
        least = {"eval_batches": 1, "sample_tokens": 0, "batch_size": 1, "save_every": 1, "seed": 0, "clip": 0}
        least |= {"steps": 1, "eval_every": 1, "accumulate": 1, "patience": 1, "warmup": 0, "max_length": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise DataError(f"`{name}` must be >= {low}, got {value}", field=name)
        for name, value in asdict(self).items():
            high = MOST_SEED if name == "seed" else MOST
            if isinstance(value, int) and value > high:
                raise DataError(f"`{name}` must be <= {high}, got {value}", field=name)

    @property
    def variables(self) -> dict[str, Any]:
        """What the chat template is given besides the conversation, by name. DataError for a name given twice."""
        found: dict[str, Any] = {}
        for name, value in map(parse_variable, self.template_var):
            if name in found:
                raise DataError(f"`template_var` {name} given twice: leave one of them out", field="template_var")
            found[name] = value
        return found

    def _refuse_adapters_settings(self) -> None:
        """Of a run that has no adapters: `--layers 8` would not mean that the other layers stay."""
        said = [field.name for field in fields(self) if field.name in OF_ADAPTERS]
        said = [name for name in said if getattr(self, name) != getattr(Settings, name)]
        if self.method == "full" and said:
            name = said[0]
            raise DataError(f"`{name}` is for adapters, and `method` full has none: leave one of them out", field=name)

    @property
    def scale_alpha(self) -> float:
        """Twice the rank unless it was given, so that another rank keeps the scale."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @property
    def rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return FROM_SCRATCH_RATE if self.from_scratch is not None else LEARNING_RATES[self.method]

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "sample": list(self.sample), "template_var": list(self.template_var)}
