"""Tiny random float32 models of every family, written as transformers writes them, and transformers' logits of them.

Everything that training would set is random here, norms and biases too, so that a part that is left out or applied
twice shows. Windows are shorter than the 96 tokens that tests feed. A name is a family, or one of its variants.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .conftest import write_tokenizer
from .tiny_configs import COMMON, DENSE, EXPERTS, FAMILIES, NAMES, RECURRENT, SHAPED, WINDOW

__all__ = [
    "DENSE",
    "EXPERTS",
    "FAMILIES",
    "NAMES",
    "RECURRENT",
    "SHAPED",
    "WINDOW",
    "reference_logits",
    "tokens",
    "write",
]

TOKENS = 96
_ADD_ONE = ("gemma2", "gemma3", "qwen3_5", "qwen3_next")


def write(name: str, folder: Path, made: dict[str, Any] | None = None) -> Path:
    """`folder / name`: config.json, model.safetensors and a small tokenizer, the same in every run.

    A folder that is there already is taken as it is: one folder a session makes each model once. made: the config of a
    model that is not in the table.
    """
    path = folder / name
    if (path / "tokenizer.json").exists():
        return path
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path.mkdir(parents=True)
    vocab_size = write_tokenizer(path)
    values: dict[str, Any] = {
        **COMMON,
        "vocab_size": vocab_size,
        "eos_token_id": vocab_size - 1,
        **(made or FAMILIES[name]),
    }
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            adds_one = config.model_type.startswith(_ADD_ONE) and not key.endswith("linear_attn.norm.weight")
            value = _random(key, tuple(parameter.shape), random, adds_one)
            if config.model_type == "gemma4_text" and key.endswith("q_norm.weight"):
                value *= value.size**-0.5  # scores are not scaled: norms learn to
            parameter.copy_(torch.from_numpy(value))
        for key, buffer in sorted(model.named_buffers()):
            if key.endswith("layer_scalar"):
                buffer.fill_(random.uniform(0.5, 1.5))
            elif key.endswith("expert_bias"):
                buffer.copy_(torch.from_numpy(_random(key, tuple(buffer.shape), random, False)))
    model.save_pretrained(path)
    if config.model_type == "olmo_hybrid":
        _publish_olmo(path, config.linear_num_key_heads * config.linear_key_head_dim)
    return path


def _publish_olmo(path: Path, keys: int) -> None:
    """Tensors as Olmo Hybrid was published: transformers reads these, and writes a convolution in three equal parts and
    the norms of attention by the names of the others."""
    from safetensors.numpy import load_file, save_file

    file = path / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("q_conv1d.weight")]:
        module = name.removesuffix("q_conv1d.weight")
        whole = np.concatenate([tensors.pop(f"{module}{part}_conv1d.weight") for part in "qkv"])
        for part, rows in zip("qkv", np.split(whole, [keys, 2 * keys]), strict=True):
            tensors[f"{module}{part}_conv1d.weight"] = np.ascontiguousarray(rows)
    for name in [name for name in tensors if name.endswith("post_feedforward_layernorm.weight")]:
        layer = name.removesuffix("post_feedforward_layernorm.weight")
        tensors[f"{layer}post_attention_layernorm.weight"] = tensors.pop(f"{layer}feedforward_layer_norm.weight")
    save_file(tensors, file, {"format": "pt"})


def reference_logits(folder: Path, tokens: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """transformers' logits of one call over all tokens with eager attention: float32 (T, V)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float().numpy()


def tokens(folder: Path, count: int = TOKENS) -> list[int]:
    """Ids drawn at random from the model's vocabulary, the same in every run."""
    import json

    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    return np.random.default_rng(7).integers(0, size, count).tolist()


def _random(name: str, shape: tuple[int, ...], random: np.random.Generator, around_zero: bool) -> np.ndarray:
    """A matrix keeps the size of what it multiplies; norms scatter about the one (those that add it, about 0)."""
    value = random.standard_normal(shape, np.float32)
    if "norm" in name:
        return value * 0.2 if around_zero else 1 + value * 0.2
    if len(shape) == 1 or "bias" in name:
        return value * 0.5
    if "embed" in name or "lm_head" in name:
        value[-3:] = 0  # control tokens are never the most likely
        return value * 2 * shape[-1] ** -0.5
    return value * shape[-1] ** -0.5
