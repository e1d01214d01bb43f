"""What a run leaves in its folder: a PEFT adapter at the top, or a whole model below `model`; and `run.json`.

Not here: checkpoints (the runtime's) and what is told to people. Invariants: a file is replaced whole or not at all;
config and tensors of an adapter are those of one state, as the tensors come first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from partita.adapters import CONFIG, PEFT_FILE
from partita.adapters_peft import PREFIX
from partita.errors import DataError
from partita.initialise import trained

from .prepare import Prepared

MODEL, RUN = "model", "run.json"
FORMAT = 1


def write_adapter(folder: Path, prepared: Prepared, values: Mapping[str, np.ndarray]) -> None:
    """adapter_model.safetensors and adapter_config.json, as PEFT has them. DataError where the disk refuses."""
    from safetensors.numpy import save

    tensors = {f"{PREFIX}{name}": np.ascontiguousarray(value) for name, value in values.items()}
    path = folder / PEFT_FILE
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))  # an adapter is small
        _settle(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}: free some space, then --resume"
        ) from error
    write_json(folder / CONFIG, adapter_config(prepared, values))


def adapter_config(prepared: Prepared, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    lora, config = prepared.lora, prepared.model.decoder.config
    if lora is None:
        raise ValueError("full training has no adapter")
    modules = {name.partition(".lora_")[0] for name in values}
    last = None if lora.layers is None else list(range(config.num_layers - lora.layers, config.num_layers))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": prepared.settings.model,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "layers_to_transform": last,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def write_model(folder: Path, prepared: Prepared, values: Mapping[str, np.ndarray]) -> Path:
    """`folder`/model, in float32, in place of one that an earlier process of this run wrote."""
    from partita_convert.write_folder import write_huggingface

    target, new, old = (folder / name for name in (MODEL, f".{MODEL}.new", f".{MODEL}.old"))
    try:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        write_huggingface(trained(prepared.checkpoint, values), new)
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error.strerror or error}: free some space, then --resume"
        ) from None
    shutil.rmtree(old, ignore_errors=True)
    return target


def write_run(folder: Path, prepared: Prepared, before: list[str]) -> None:
    """What `--resume` needs beside the checkpoints. before: replies of the untrained model, for the report."""
    document = {"format": FORMAT, "settings": prepared.settings.document(), "before": before}
    write_json(folder / RUN, document)


def write_json(path: Path, document: Any) -> None:
    write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all. DataError where the disk refuses."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        _settle(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror or error}: free some space") from error


def _settle(temporary: Path, path: Path) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
