"""Models that see as well: their text decoder alone against transformers' whole model, which is given text."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import partita
import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.model.families.parse import parse
from partita.model.families.wrappers import WRAPPERS, left_out
from partita.model.load import load_decoder
from partita_convert.gguf.write import write_gguf
from partita_convert.write_folder import write_huggingface, write_mlx

from .. import bounds, tiny_models
from ..conftest import write_tokenizer

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
    "rope_parameters": _ROPE,
}
_SLIDES = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
_SIGHT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_SIGHT: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
    "patch_size": 14,
}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.25, "mrope_section": [2, 1, 1], "mrope_interleaved": True},
}
_SHARED = {
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 40,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
_GROWING = {**_ROPE, "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 16}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cohere2_vision": (
        {
            "model_type": "cohere2",
            **{key: value for key, value in _TEXT.items() if key not in ("head_dim", "rms_norm_eps")},
            **_SLIDES,
            "layer_norm_eps": 1e-5,
            "logit_scale": 0.5,
        },
        {"model_type": "siglip_vision_model", **_SIGHT},
    ),
    "gemma3": (
        {
            "model_type": "gemma3_text",
            **_TEXT,
            **_SLIDES,
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
            "query_pre_attn_scalar": 32,
        },
        {"model_type": "siglip_vision_model", **_SIGHT},
    ),
    "gemma4": (
        {
            "model_type": "gemma4_text",
            **_TEXT,
            **_SLIDES,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
            "global_head_dim": 64,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": 512,
            "pad_token_id": 0,
        },
        {
            "model_type": "gemma4_vision",
            **_SIGHT,
            "num_key_value_heads": _SIGHT["num_attention_heads"],
            "head_dim": _SIGHT["hidden_size"] // _SIGHT["num_attention_heads"],
        },
    ),
    "gemma4_unified": (
        {
            "model_type": "gemma4_unified_text",
            **_TEXT,
            **_SLIDES,
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
            "global_head_dim": 64,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "pad_token_id": 0,
        },
        {
            "model_type": "gemma4_unified_vision",
            "patch_size": 4,
            "mm_embed_dim": 32,
            "mm_posemb_size": 16,
            "output_proj_dims": 32,
        },
    ),
    "idefics3": ({"model_type": "llama", **_TEXT}, {"model_type": "idefics3_vision", **_SIGHT}),
    "lfm2_vl": (
        {
            "model_type": "lfm2",
            **{key: value for key, value in _TEXT.items() if key not in ("head_dim", "rms_norm_eps")},
            "layer_types": ["conv", "full_attention"],
            "norm_eps": 1e-5,
            "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": False,
        },
        {"model_type": "siglip2_vision_model", **_SIGHT, "num_patches": 16},
    ),
    "lfm3_vl": (
        {
            "model_type": "lfm3",
            **_TEXT,
            "num_hidden_layers": 3,
            "sliding_window": 12,
            "layer_types": ["conv", "sliding_attention", "full_attention"],
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        },
        {"model_type": "siglip2_vision_model", **_SIGHT, "num_patches": 16},
    ),
    "mistral3": (
        {"model_type": "ministral3", **_TEXT, "rope_parameters": {**_GROWING, "llama_4_scaling_beta": 0.4}},
        {"model_type": "pixtral", **_SIGHT},
    ),
    "qwen3_vl": (
        {
            "model_type": "qwen3_vl_text",
            **_TEXT,
            "rope_parameters": {**_ROPE, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
        },
        {"model_type": "qwen3_vl", **_QWEN_SIGHT},
    ),
    "qwen3_5": ({"model_type": "qwen3_5_text", **_TEXT, **_DELTA}, {"model_type": "qwen3_5", **_QWEN_SIGHT}),
    "qwen3_5_moe": (
        {"model_type": "qwen3_5_moe_text", **_TEXT, **_DELTA, **_SHARED, "linear_value_head_dim": 16},
        {"model_type": "qwen3_5_moe", **_QWEN_SIGHT},
    ),
    "muse_glimmer": (
        {
            "model_type": "muse_glimmer_text",
            **_TEXT,
            **_SLIDES,
            "qk_scale_factor": 3.0,
            "output_multiplier": 0.6,
            "final_logit_softcapping": 5.0,
        },
        tiny_models.WHOLES["muse_glimmer_text"]["vision_config"],
    ),
    "smolvlm": ({"model_type": "llama", **_TEXT}, {"model_type": "smolvlm_vision", **_SIGHT}),
}
AROUND = {"muse_glimmer": {"out_hidden_size": 128, "projector_hidden_size": 32}}
"""What a whole says beside its parts."""
TOKENS = np.random.default_rng(3).integers(10, 290, (1, 40)).astype(np.int32)


def test_each_wrapper_is_judged() -> None:
    assert set(MODELS) == set(WRAPPERS)


@pytest.fixture(scope="module", params=MODELS)
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    return written(request.param, tmp_path_factory.mktemp("sees"))


def written(name: str, parent: Path) -> tuple[Path, np.ndarray]:
    """A folder as transformers writes it, and its logits of TOKENS."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder = parent / name
    folder.mkdir()
    size, (text, sight) = write_tokenizer(folder), MODELS[name]
    own = {**text, "vocab_size": size}
    if "vocab_size_per_layer_input" in own:
        own["vocab_size_per_layer_input"] = size
    around = AROUND.get(name, {})
    config = AutoConfig.for_model(name, text_config=own, vision_config=sight, image_token_id=5, **around)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    random = np.random.default_rng(zlib.crc32(name.encode()))
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            shape = tuple(parameter.shape)
            value = random.standard_normal(shape, np.float32) * (0.2 if len(shape) == 1 else shape[-1] ** -0.5)
            parameter.copy_(torch.from_numpy(value) + (1 if len(shape) == 1 else 0))
        logits = model(input_ids=torch.from_numpy(TOKENS.astype(np.int64)), use_cache=False).logits[0].numpy()
    model.save_pretrained(folder)
    # transformers' whole leaves the scale of its text decoder's logits out
    return folder, logits * own.get("logit_scale", 1.0)


@pytest.mark.parametrize("backend", partita_backends.names())
def test_text_is_read_as_by_transformers(judged: tuple[Path, np.ndarray], backend: str) -> None:
    folder, expected = judged
    ops = partita_backends.load(backend, dtype="float32")
    model = load_decoder(ops, open_checkpoint(folder))
    cache = Cache(ops, plan(model.config, KVFormat.parse("32")))
    found = ops.to_numpy(model(ops, ops.array(TOKENS), cache, every=True))[0]
    bounds.assert_near(found, expected, bounds.logits(model.config))


def test_a_converted_model_is_the_same(judged: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """Folders keep what sees; a GGUF file is the text decoder's alone."""
    folder, expected = judged
    source = open_checkpoint(folder)
    write_mlx(source, tmp_path / "mlx")
    write_huggingface(source, tmp_path / "dense")
    names = ["mlx", "dense"]
    if folder.name not in ("qwen3_5", "muse_glimmer", "lfm3_vl"):  # heads of two widths; no architecture
        write_gguf(source, tmp_path / "text.gguf", kind="F32")
        names.append("text.gguf")
    ops = partita_backends.load("numpy")
    for name in names:
        written = open_checkpoint(tmp_path / name)
        assert bool(left_out(written.names())) == (name != "text.gguf")
        model = load_decoder(ops, written)
        cache = Cache(ops, plan(model.config, KVFormat.parse("32")))
        found = ops.to_numpy(model(ops, ops.array(TOKENS), cache, every=True))[0]
        bounds.assert_near(found, expected, bounds.logits(model.config))


def test_what_sees_is_named(judged: tuple[Path, np.ndarray]) -> None:
    folder, _ = judged
    (note,) = partita.load(folder, backend="numpy").notes
    parts = {
        "qwen3_vl": "visual (",
        "qwen3_5": "visual (",
        "qwen3_5_moe": "visual (",
        "gemma4_unified": "embed_vision (",
        "smolvlm": "vision_model (",
        "idefics3": "vision_model (",
    }
    assert note.startswith(f"{folder.name}: this model also sees or hears, by ")
    assert parts.get(folder.name, "vision_tower (") in note
    assert note.endswith("here it reads and writes text alone")


def test_a_wrapper_without_a_text_decoder_or_around_another() -> None:
    with pytest.raises(CheckpointError, match="model_type mistral3 has no text_config"):
        parse({"model_type": "mistral3"})
    with pytest.raises(UnsupportedModel, match=r"mistral3 around \[\] is not supported"):
        parse({"model_type": "mistral3", "text_config": {"model_type": []}})
    with pytest.raises(UnsupportedModel, match="mistral3 around 'mamba' is not supported; supported: mistral, minis"):
        parse({"model_type": "mistral3", "text_config": {"model_type": "mamba"}})
