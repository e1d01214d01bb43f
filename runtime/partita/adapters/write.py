"""Adapters out: the two files of a folder as `peft`, transformers, mlx-lm and `open_adapter` here read them.

Not here: reading (`read`), and adapters in another layout than they had (`partita_convert.adapters`). Invariant: a
file is replaced whole or not at all; of the two the tensors decide, as the config is the same for every state of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..files.atomic import remove_leftovers, whole_file
from ..files.safetensors_writer import write_tensors
from ..printable import json_text
from .lora import A, LoraConfig
from .peft import CONFIG, PREFIX
from .read import MLX_FILE, PEFT_FILE

Form = Literal["peft", "mlx"]
_FILES = {"peft": (PEFT_FILE, "pt"), "mlx": (MLX_FILE, "mlx")}


@dataclass(frozen=True)
class PeftConfig:
    """What PEFT's adapter_config.json says of an adapter.

    base: the model's name for people and tools. targets: last parts of the names of the modules, or whole names.
    layers: numbers of those that have them, None for all. saved: modules that are there as a whole. ranks, alphas: of
    modules that differ, by a regular expression that the end of their names matches.
    """

    base: str | None
    rank: int
    alpha: float
    dropout: float
    rslora: bool
    dora: bool
    targets: list[str]
    layers: list[int] | None = None
    saved: list[str] = field(default_factory=list[str])
    ranks: Mapping[str, int] = field(default_factory=dict[str, int])
    alphas: Mapping[str, float] = field(default_factory=dict[str, float])

    def document(self) -> dict[str, Any]:
        """Every setting that decides what the adapter does."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base,
            "r": self.rank,
            "lora_alpha": _number(self.alpha),
            "lora_dropout": self.dropout,
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            "target_modules": self.targets,
            "layers_to_transform": self.layers,
            "rank_pattern": dict(self.ranks),
            "alpha_pattern": {pattern: _number(alpha) for pattern, alpha in self.alphas.items()},
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "modules_to_save": self.saved or None,
            "inference_mode": True,
        }


def _number(value: float) -> float:
    return int(value) if value == int(value) else float(value)


def write_adapter(
    folder: Path, values: Mapping[str, np.ndarray], config: LoraConfig, base: str, num_layers: int
) -> None:
    """Write a trained adapter, float32, as PEFT has it, into `folder`, which may hold other things.

    values: by name, as `Trainer.state().values`. base: the model's name for people and tools. num_layers: of the model.
    Raises DataError where the disk refuses.
    """
    modules = [name.removesuffix(f".{A}") for name in values if name.endswith(A)]
    settings = PeftConfig(
        base,
        config.rank,
        config.alpha,
        config.dropout,
        config.rslora,
        config.dora,
        targets=sorted({module.rpartition(".")[2] for module in modules}),
        layers=list(range(num_layers - config.layers, num_layers)) if config.layers else None,
    )
    write_files(folder, "peft", {PREFIX + name: value for name, value in values.items()}, settings.document())


def write_files(folder: Path, form: Form, tensors: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> None:
    """The tensors and the config of an adapter under the names of either tool. DataError where the disk refuses."""
    file, format_ = _FILES[form]
    remove_leftovers(folder)
    with whole_file(folder / file) as partial:
        write_tensors(partial, tensors, {"format": format_})
    with whole_file(folder / CONFIG) as partial:
        partial.write_text(json_text(document, indent=1) + "\n", encoding="utf-8")
