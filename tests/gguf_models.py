"""Tiny models whose configs GGUF can say, from those of `tiny_models`: the same weights, a field or two changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from partita.checkpoint.gguf.reader import open_gguf
from partita_convert.gguf.file import GgufWriter, Typed, inferred

from . import tiny_models
from .conftest import SPECIALS

RECURRENT = ("qwen3_5-alike", "qwen3_5-tiled", "qwen3_5-listed", "qwen3_5_moe-tiled", "qwen3_next-grouped")
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
    "gemma4-told": {},
    "gemma4-experts": {},
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
    "lfm2": {},
    "lfm2-headed": {},
    "lfm2_moe": {"routed_scaling_factor": 1.0},
    "lfm2_moe-headed": {},
    **{name: {} for name in RECURRENT},
}
NAMES = tuple(CHANGES)
# six heads of values for two of keys: the order of llama.cpp is not the one that undoes it. Its heads are of one width
_HEADS = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
OWN: dict[str, dict[str, Any]] = {
    "qwen3_5-tiled": {**tiny_models.FAMILIES["qwen3_5"], **_HEADS},
    "qwen3_5-listed": {  # every period has its attention elsewhere
        **tiny_models.FAMILIES["qwen3_5"],
        **_HEADS,
        "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
    },
    "qwen3_5_moe-tiled": {**tiny_models.FAMILIES["qwen3_5_moe"], **_HEADS},
    "qwen3_next-grouped": {**tiny_models.FAMILIES["qwen3_next"], **_HEADS, "mlp_only_layers": []},
    "lfm2-headed": {  # a longer kernel, a width that follows from another, and a head of its own
        **tiny_models.FAMILIES["lfm2-biased"],
        "conv_bias": False,
    },
    "lfm2_moe-headed": {**tiny_models.FAMILIES["lfm2_moe"], "routed_scaling_factor": 1.0, "tie_word_embeddings": False},
    "gemma4-told": {  # rows of what layers are told for each token that there is, and no more
        **tiny_models.FAMILIES["gemma4"],
        "vocab_size_per_layer_input": 300 + len(SPECIALS),
    },
}
"""Models that are not among those of `tiny_models`."""
SLIDING_EXAONE4 = {"num_hidden_layers": 64, "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16}
"""Changes to exaone4: of this family, readers slide models of so many layers only."""
UNSAYABLE = {
    "gemma4": "vocab_size_per_layer_input 512",
    "mistral": "a window of layer 0 40",
    "smollm3": "the rotation of layer 1 none: its readers take some;",
    "qwen2-sliding": "a window of layer 2 40",
    "qwen3_moe": r"no place for 'model\.layers\.2\.mlp",
    "gemma2": "attention_scale",
    "gemma3": "attention_scale",
    "exaone4": "a window of layer 0 40",
    "ernie4_5-biased": "attention_bias",
    "qwen3_5": "linear_value_head_dim 24 beside linear_key_head_dim 16",
    "qwen3_5_moe": "linear_value_head_dim 24",
    "lfm2-biased": r"no place for 'model\.layers\.0\.conv\.conv\.bias",
    "lfm2_moe": "experts with scale 1.5: its readers take scale 1.0;",
    "lfm2_moe-plain": r"no place for 'model\.layers\.0\.conv\.conv\.bias",
    "gpt_oss-truncated": "the rotation of layer 0 with truncate True: its readers take truncate False;",
}


def write(name: str, folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """A folder that can be written as GGUF; made once for each `folder`. changes: instead of the ones above; of layers
    more than there are, those that there are come again."""
    changes = CHANGES[name] if changes is None else changes
    source = tiny_models.write(name, folder, OWN.get(name))
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


def with_fused_experts(source: Path, target: Path) -> Path:
    """The same file with the gate and up of each layer's experts in one tensor, the rows of gate before those of up."""
    file = open_gguf(source)
    values: dict[str, tuple[str, tuple[int, ...], np.ndarray]] = {}
    for name, tensor in file.tensors.items():
        if "ffn_up_exps" in name:
            continue
        shape, raw = tensor.shape, file.raw(name)
        if "ffn_gate_exps" in name:
            name = name.replace("gate", "gate_up")
            up = file.raw(name.replace("gate_up", "up"))
            raw = np.concatenate([part.reshape(shape[0], -1) for part in (raw, up)], axis=1)
            shape = (shape[0], 2 * shape[1], shape[2])
        values[name] = (tensor.type, shape, raw)
    with target.open("wb") as out:
        keys = {key: inferred(value) for key, value in file.metadata.items()}
        keys["tokenizer.ggml.token_type"] = Typed("i32", file.metadata["tokenizer.ggml.token_type"], many=True)
        writer = GgufWriter(out, keys, [(name, shape) for name, (_, shape, _) in values.items()])
        for kind, _, raw in values.values():
            writer.write(kind, [raw])
        writer.finish()
    return target


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1
