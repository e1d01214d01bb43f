"""What a run is told: flags, a YAML file, what an earlier run of the same folder was told, and defaults; in this order.

Judges types and what excludes what; which numbers make sense is the runtime's business. Invariant: `Settings` holds
everything that a run needs to be begun again, so it is what `run.json` keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from partita.errors import CheckpointError, DataError
from partita.files.bounded import SETTINGS, parse_object, read_bytes
from partita.files.typed import Misfit, typed
from partita.text.chat_template import parse_variable

METHODS = ("lora", "dora", "full")
SCHEDULES = ("cosine", "linear", "constant")
LEARNING_RATES = {"lora": 2e-4, "dora": 2e-4, "full": 2e-5}
FROM_SCRATCH_RATE = 1e-3
MAX_LENGTH = 1024
EPOCHS, MOST_STEPS = 3, 1000
MOST, MOST_SEED = 10**9, 2**63 - 1
"""Of counts and of the seed: what is more is a typing mistake, and no library takes any number."""
_TEXTS = str | list[str]
"""A setting of several texts, as a file has it."""
OF_ADAPTERS = ("rslora", "rank", "alpha", "dropout", "targets", "layers")


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
        """What the chat template is told besides the conversation, by name. DataError for a name given twice."""
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


@dataclass(frozen=True)
class Run:
    """What run.json holds. before: replies of the untrained model, by prompt."""

    settings: dict[str, Any]
    before: dict[str, str]


def merged(*layers: Mapping[str, Any]) -> Settings:
    """The settings of layers of values, later ones winning; None says nothing. DataError for what is missing."""
    values: dict[str, Any] = {}
    for layer in layers:
        values |= {name: value for name, value in layer.items() if value is not None and value != ()}
    if "steps" in layers[-1] and layers[-1]["steps"] is not None and layers[-1].get("epochs") is None:
        values.pop("epochs", None)  # a flag replaces its alternative in a file
    elif layers[-1].get("epochs") is not None and layers[-1].get("steps") is None:
        values.pop("steps", None)
    for name in ("model", "data"):
        if name not in values:
            raise DataError(f"there is no {name.upper()}: partita finetune MODEL DATA --out DIR")
    return Settings(**values)


def read_config(path: Path) -> dict[str, Any]:
    """The values of a YAML file, under the names of `Settings` and `out`. DataError names the file and the key."""
    from .settings_file import read

    return _checked(read(path), str(path))


def read_run(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What `results.write_run` kept: settings, and replies of the untrained model by their prompts. CheckpointError for
    a file that cannot be read, DataError for a damaged one."""
    data = read_bytes(path, SETTINGS)
    try:
        run = typed(parse_object(data, path.name), Run)
    except (CheckpointError, Misfit) as error:
        raise DataError(f"{path} is damaged ({error}): give the settings of the run as flags in a new --out") from None
    return _checked(run.settings, str(path)), run.before


def _checked(document: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Values of a file in the types of their settings. YAML takes 1e-4, without a dot, for text: hence numbers out of
    texts. DataError for the first that does not fit."""
    kinds = get_type_hints(Settings) | {"out": str, "targets": _TEXTS, "sample": _TEXTS, "template_var": _TEXTS}
    found: dict[str, Any] = {}
    for key, value in document.items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            known = ", ".join(kinds).replace("_", "-")
            raise DataError(f"{where}: unknown setting {key!r}; expected one of {known}")
        if name in found:
            raise DataError(f"{where}: {key} given twice")
        if value is None:
            continue
        kind = kinds[name]
        try:
            fitted = typed(value, kind, str(key), strict=bool in (kind, *get_args(kind)))
        except Misfit as error:
            raise DataError(f"{where}: {error}") from None
        if name == "targets":
            fitted = fitted if isinstance(fitted, str) else ",".join(fitted)
        elif kind == _TEXTS:
            fitted = (fitted,) if isinstance(fitted, str) else tuple(fitted)
        found[name] = fitted
    return found
