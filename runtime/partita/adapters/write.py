"""Trained adapters out, as PEFT's folder: what `peft`, transformers, and `open_adapter` here read.

Not here: reading (`adapters/read.py`), and other kinds of folders (`partita_convert`). Invariant: a file is replaced
whole or not at all; the tensors decide, as the config is the same for every state of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files.atomic import remove_leftovers, whole_file
from ..printable import json_text
from .lora import A, LoraConfig

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def write_adapter(
    folder: Path, values: Mapping[str, np.ndarray], config: LoraConfig, base: str, num_layers: int
) -> None:
    """Write adapter_model.safetensors, float32, and adapter_config.json into `folder`, which may hold other things.

    values: by name, as `Trainer.state().values`. base: the model's name for people and tools. num_layers: of the model.
    Raises DataError where the disk refuses.
    """
    from safetensors.numpy import save

    tensors = {PREFIX + name: np.ascontiguousarray(value) for name, value in values.items()}
    remove_leftovers(folder)
    with whole_file(folder / TENSORS) as partial:
        partial.write_bytes(save(tensors, metadata={"format": "pt"}))  # small; `save_file` hides it from other users
    with whole_file(folder / CONFIG) as partial:
        document = json_text(peft_config(values, config, base, num_layers), indent=1)
        partial.write_text(document + "\n", encoding="utf-8")


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
