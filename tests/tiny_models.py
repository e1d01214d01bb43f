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
    "reference_gradients",
    "reference_logits",
    "tokens",
    "write",
]

TOKENS = 96
_ADD_ONE = ("gemma2", "gemma3", "qwen3_5", "qwen3_next", "muse_glimmer")
_PLAIN = ("linear_attn.norm.weight", ".language_model.norm.weight")
"""Norms of those families that do not add one: behind a gated delta rule; Muse Glimmer's last."""
WHOLES: dict[str, dict[str, Any]] = {
    "muse_glimmer_text": {
        "model_type": "muse_glimmer",
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": 14,
            "pos_emb_height": 4,
            "pos_emb_width": 4,
        },
        "out_hidden_size": 128,
        "projector_hidden_size": 32,
        "image_token_id": 5,
    }
}
"""What transformers makes a text decoder within alone: the config around it."""
_OF_TEXT = {"model.language_model.": "model.", "lm_head.": "lm_head."}


def write(name: str, folder: Path, made: dict[str, Any] | None = None) -> Path:
    """`folder / name`: config.json, model.safetensors and a small tokenizer, the same in every run.

    A folder that is there already is taken as it is: one folder a session makes each model once. made: the config of a
    model that is not in the table.
    """
    path = folder / name
    if (path / "tokenizer.json").exists():
        return path
    import torch
    from transformers import AutoConfig

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
    model = _made(config)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            adds_one = config.model_type.startswith(_ADD_ONE) and not key.endswith(_PLAIN)
            value = _random(key, tuple(parameter.shape), random, adds_one)
            if config.model_type in ("gemma4_text", "muse_glimmer_text") and "embed" in key:
                value[-3:] = value[:3] / 100  # their norms would multiply gradients of a stream of zeros to infinity
            if config.model_type == "gemma4_text" and key.endswith("q_norm.weight"):
                value *= value.size**-0.5  # scores are not scaled: norms learn to
            parameter.copy_(torch.from_numpy(value))
        for key, buffer in sorted(model.named_buffers()):
            if key.endswith("layer_scalar"):
                buffer.fill_(random.uniform(0.5, 1.5))
            elif key.endswith("expert_bias"):
                buffer.copy_(torch.from_numpy(_random(key, tuple(buffer.shape), random, False)))
    model.save_pretrained(path)
    if config.model_type in WHOLES:
        _text_alone(path)
    if config.model_type == "olmo_hybrid":
        _publish_olmo(path, config.linear_num_key_heads * config.linear_key_head_dim)
    return path


def _made(config: Any) -> Any:
    """The model of a config, or the whole around it, whose text decoder is tied where the config says so."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    whole = dict(WHOLES.get(config.model_type, {}))
    if not whole:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    own = {"text_config": config.to_dict(), "tie_word_embeddings": config.tie_word_embeddings}
    around = AutoConfig.for_model(whole.pop("model_type"), **whole, **own)
    return AutoModelForImageTextToText.from_config(around, dtype=torch.float32, attn_implementation="eager").eval()


def _text_alone(path: Path) -> None:
    """A folder of a whole as one of its text decoder."""
    import json

    from safetensors.numpy import load_file, save_file

    file, settings = path / "model.safetensors", path / "config.json"
    tensors = {
        new + name.removeprefix(old): value
        for name, value in load_file(file).items()
        for old, new in _OF_TEXT.items()
        if name.startswith(old)
    }
    save_file(tensors, file, {"format": "pt"})
    settings.write_text(json.dumps(json.loads(settings.read_text())["text_config"], indent=2))


def _read(folder: Path, dtype: str) -> Any:
    """transformers' model of a folder, of a text decoder that it knows within a whole alone the whole."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in WHOLES:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    model = _made(config)
    tensors = {
        old + name.removeprefix(new): value.float()
        for name, value in load_file(folder / "model.safetensors").items()
        for old, new in _OF_TEXT.items()
        if name.startswith(new)
    }
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.startswith("model.vision_") or name == "lm_head.weight" for name in missing)
    assert ("lm_head.weight" in missing) == config.tie_word_embeddings
    return model.to(getattr(torch, dtype))


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

    model = _read(folder, dtype)
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float().numpy()


def reference_gradients(folder: Path, tokens: Sequence[int]) -> tuple[float, dict[str, np.ndarray]]:
    """transformers' mean loss of all tokens but the first, and its gradients by the folder's own names."""
    import torch

    model = _read(folder, "float32")
    logits = model(torch.tensor([list(tokens)[:-1]]), use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(list(tokens)[1:]))
    loss.backward()
    found = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    return loss.item(), {name.replace("model.language_model.", "model."): grad for name, grad in found.items()}


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
