"""What a run leaves in its folder: a PEFT adapter at the top, or a whole model below `model`; and `run.json`.

Not here: checkpoints (the runtime's) and what is shown to people. Invariant: a file is replaced whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters import write as adapters_write
from ..checkpoint.base import Checkpoint
from ..files.atomic import whole_file
from ..printable import json_text
from ..training.initialize import trained
from .prepare import Prepared

MODEL, RUN = "model", "run.json"
FORMAT = 1
WriteFolder = Callable[[Checkpoint, Path], object]
"""Writes a checkpoint as a model's folder, whole or not at all, in place of one that is there."""


def write_adapter(folder: Path, prepared: Prepared, values: Mapping[str, np.ndarray]) -> None:
    """The adapter with these values, as PEFT has it. DataError where the disk refuses."""
    if prepared.lora is None:
        raise ValueError("full training has no adapter")
    layers = prepared.model.decoder.config.num_layers
    adapters_write.write_adapter(folder, values, prepared.lora, prepared.settings.model, layers)


def write_model(folder: Path, prepared: Prepared, values: Mapping[str, np.ndarray], write: WriteFolder) -> Path:
    """`folder`/model, in float32, in place of one that an earlier process of this run wrote."""
    target = folder / MODEL
    write(trained(prepared.checkpoint, values), target)
    return target


def write_run(folder: Path, prepared: Prepared, before: Mapping[str, str]) -> None:
    """What `--resume` needs beside the checkpoints. before: replies of the untrained model, by prompt."""
    write_json(folder / RUN, {"format": FORMAT, "settings": prepared.settings.document(), "before": dict(before)})


def write_json(path: Path, document: Any) -> None:
    write_text(path, json_text(document, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all. DataError where the disk refuses."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
