"""Tiny models whose configs GGUF can say, from those of `tiny_models`: the same weights, a field or two changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from . import tiny_models

# GGUF's readers fix these numbers by the architecture; what it cannot say at all is not here
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-biased": {},
    "llama-yarn": {},
    "mistral-full": {},
    "smollm3": {"no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0], "layer_types": ["full_attention"] * 4},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_hidden_layers": 2, "mlp_only_layers": []},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3": {"query_pre_attn_scalar": 32},
    "phi3": {},
    "phi3-longrope": {},
    "phi4-mini": {},
    "olmo2": {},
    "olmo3": {},
    "granite": {},
    "gpt_oss": {},
    "exaone4-full": {},
    "seed_oss": {},
    "glm4": {},
    "ernie4_5": {},
    "hunyuan": {},
    "ministral3": {},
    "cohere2": {},
}
NAMES = tuple(CHANGES)
SLIDING_EXAONE4 = {"num_hidden_layers": 64, "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16}
"""Changes to exaone4: of this family, readers slide models of so many layers only."""
UNSAYABLE = {
    "mistral": "a window of layer 0 40",
    "smollm3": "the rotation of layer 1 'none'",
    "qwen2-sliding": "a window of layer 2 40",
    "qwen3_moe": r"no place for 'model\.layers\.2\.mlp",
    "gemma2": "attention_scale",
    "gemma3": "attention_scale",
    "exaone4": "a window of layer 0 40",
    "ernie4_5-biased": "attention_bias",
    "gpt_oss-truncated": "the rotation of layer 0 {'truncate': True}",
}


def write(name: str, folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """A folder that can be written as GGUF; made once for each `folder`. changes: instead of the ones above; of layers
    more than there are, those that there are come again."""
    changes = CHANGES[name] if changes is None else changes
    source = tiny_models.write(name, folder)
    if not changes:
        return source
    from safetensors.numpy import load_file, save_file

    target = folder / f"{name}-changed-{len(changes)}"
    if target.exists():
        return target
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    made = config["num_hidden_layers"]
    config |= changes
    (target / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    kept = {}
    for key, value in tensors.items():
        layer = _layer(key)
        for i in range(layer, config["num_hidden_layers"], made) if layer >= 0 else (layer,):
            kept[key.replace(f".{layer}.", f".{i}.", 1)] = value
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1
