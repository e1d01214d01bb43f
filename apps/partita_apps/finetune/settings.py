"""Where settings of a run come from: flags, a YAML file, an earlier run of the folder, defaults; in this order.

Judges names and types; what excludes what and which numbers make sense is the runtime's business (`Settings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from partita.errors import CheckpointError, DataError
from partita.files.bounded import SETTINGS, parse_object, read_bytes
from partita.files.typed import Misfit, typed
from partita.finetuning.settings import Settings

_TEXTS = str | list[str]
"""A setting of several texts, as a file has it."""


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
