"""Trained adapters out, as PEFT's folder: what `peft`, transformers, and `open_adapter` here read.

Not here: reading (`adapters.py`), and other kinds of folders (`partita_convert`). Invariant: the folder is there whole
or not at all, and replaces the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .lora import A, LoraConfig
from .whole import whole_folder, write_tensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def write_adapter(
    folder: Path,
    values: Mapping[str, np.ndarray],
    config: LoraConfig,
    base: str,
    num_layers: int,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors, float32.

    values: by name, as `Trainer.state().values`. base: the model's name for people and tools. num_layers: of the model.
    extra: other files' texts by name (README.md). Raises DataError where the disk refuses.
    """
    with whole_folder(folder) as partial:
        document = json.dumps(peft_config(values, config, base, num_layers), indent=2)
        (partial / CONFIG).write_text(document + "\n", encoding="utf-8")
        write_tensors(partial / TENSORS, {PREFIX + name: value for name, value in values.items()})
        for name, text in (extra or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
    return folder


def peft_config(values: Mapping[str, Any], config: LoraConfig, base: str, num_layers: int) -> dict[str, Any]:
    """PEFT's adapter_config.json, with every setting that decides what the adapter does."""
    modules = [name.removesuffix(f".{A}") for name in values if name.endswith(A)]
    whole = config.alpha == int(config.alpha)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if whole else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "layers_to_transform": list(range(num_layers - config.layers, num_layers)) if config.layers else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }
