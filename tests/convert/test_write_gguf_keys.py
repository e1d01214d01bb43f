"""GGUF out: what the keys say, and the models whose configs GGUF cannot say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from partita.checkpoint.gguf.architectures import ARCHITECTURES
from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.open import open_checkpoint
from partita.errors import UnsupportedModel
from partita_convert.gguf.write import write_gguf

from .. import gguf_models, tiny_models


def test_keys_of_llama(written: Callable[..., Path]) -> None:
    reader = gguf.GGUFReader(written("llama", "Q8_0"))  # the package's own, which checks types and alignment
    values = {key: field.contents() for key, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "llama",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.block_count": 4,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 303,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 302,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: values[key] for key in expected} == expected
    factors = next(tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    assert factors.tensor_type == gguf.GGMLQuantizationType.F32
    assert factors.data[0] == 1.0
    assert factors.data[-1] == 8.0
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("llama-yarn", {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_beta_fast": 16.0}),
        ("llama-biased", {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}),
        ("granite", {"granite.logit_scale": 3.0, "granite.embedding_scale": 6.0}),
        ("gemma2", {"gemma2.attn_logit_softcapping": 2.0, "gemma2.attention.sliding_window": 40}),
        ("gemma3", {"gemma3.attention.sliding_window_pattern": 2, "gemma3.rope.freq_base_swa": 10000.0}),
        ("phi3", {"phi3.attention.sliding_window": 40}),
        ("phi4-mini", {"phi3.rope.dimension_count": 72, "phi3.rope.scaling.original_context_length": 64}),
        ("olmo3", {"olmo2.attention.sliding_window_pattern": 2, "olmo2.rope.scaling.factor": 8.0}),
        ("qwen3_moe", {"qwen3moe.expert_count": 8, "qwen3moe.expert_feed_forward_length": 32}),
        ("gpt_oss", {"gpt-oss.expert_used_count": 2, "gpt-oss.attention.sliding_window_pattern": 2}),
        ("exaone4-full", {"exaone4.attention.sliding_window": None, "exaone4.rope.scaling.type": None}),
        ("seed_oss", {"seed_oss.attention.key_length": 32, "seed_oss.rope.dimension_count": 32}),
        ("glm4", {"glm4.rope.dimension_count": 16, "glm4.attention.key_length": 32}),
        ("ernie4_5", {"ernie4_5.rope.freq_base": 10000.0, "ernie4_5.rope.dimension_count": 32}),
        ("hunyuan", {"hunyuan-dense.rope.scaling.type": None, "hunyuan-dense.rope.scaling.alpha": None}),
        ("hunyuan", {"hunyuan-dense.rope.freq_base": pytest.approx(10000.0 * 1000.0 ** (32 / 30))}),
        ("ministral3", {"mistral3.rope.scaling.type": "yarn", "mistral3.rope.scaling.yarn_log_multiplier": 1.0}),
        ("ministral3", {"mistral3.rope.scaling.original_context_length": 16, "mistral3.rope.scaling.factor": 8.0}),
        ("ministral3", {"mistral3.attention.temperature_scale": pytest.approx(0.4)}),
        ("cohere2", {"cohere2.attention.sliding_window": 40, "cohere2.attention.sliding_window_pattern": 4}),
        ("cohere2", {"cohere2.logit_scale": pytest.approx(0.4), "cohere2.attention.layer_norm_rms_epsilon": None}),
        ("cohere2", {"cohere2.attention.layer_norm_epsilon": pytest.approx(1e-5)}),
        ("qwen3_5-tiled", {"qwen35.ssm.conv_kernel": 4, "qwen35.ssm.state_size": 32, "qwen35.ssm.group_count": 2}),
        ("qwen3_5-tiled", {"qwen35.ssm.time_step_rank": 6, "qwen35.ssm.inner_size": 192}),
        ("qwen3_5-tiled", {"qwen35.full_attention_interval": 4, "qwen35.attention.recurrent_layers": None}),
        ("qwen3_5-tiled", {"qwen35.rope.dimension_count": 8, "qwen35.rope.dimension_sections": [2, 1, 1, 0]}),
        ("qwen3_5-alike", {"qwen35.full_attention_interval": 2, "qwen35.rope.dimension_sections": [11, 11, 10, 0]}),
        ("qwen3_5-listed", {"qwen35.attention.recurrent_layers": [False, True, True, False]}),
        ("qwen3_5-listed", {"qwen35.full_attention_interval": None}),
        ("qwen3_5_moe-tiled", {"qwen35moe.expert_count": 6, "qwen35moe.expert_shared_feed_forward_length": 40}),
        ("qwen3_next-grouped", {"qwen3next.expert_feed_forward_length": 32, "qwen3next.expert_used_count": 2}),
        ("qwen3_next-grouped", {"qwen3next.rope.dimension_sections": None, "qwen3next.ssm.group_count": 2}),
    ],
)
def test_keys_of_others(name: str, keys: dict[str, Any], written: Callable[..., Path]) -> None:
    metadata = open_gguf(written(name)).metadata
    assert {key: metadata.get(key) for key in keys} == keys


def test_what_a_source_says_of_itself_is_kept(written: Callable[..., Path], tmp_path: Path) -> None:
    source = open_checkpoint(written("llama"))
    assert source.metadata is not None
    said = {
        "general.license": "apache-2.0",
        "general.tags": ["chat", "small"],
        "general.name": "Small",
        "general.size": 3,
    }
    object.__setattr__(source, "metadata", {**source.metadata, **said})
    write_gguf(source, tmp_path / "m.gguf", kind="Q8_0")
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    assert {key: metadata[key] for key in said} == said
    assert metadata["general.file_type"] == 7


@pytest.mark.parametrize(("name", "what"), gguf_models.UNSAYABLE.items())
def test_what_gguf_cannot_say_is_refused(name: str, what: str, families: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=f"{what}.*`to` mlx"):
        write_gguf(open_checkpoint(tiny_models.write(name, families)), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("qwen3", {"attention_bias": True}, "attention_bias True"),
        ("qwen2", {"hidden_act": "gelu_pytorch_tanh"}, "activation 'gelu_tanh'"),
        (
            "qwen3_moe",
            {"num_hidden_layers": 2, "mlp_only_layers": [], "norm_topk_prob": False},
            "experts with normalize False: its readers take normalize True;",
        ),
        ("olmo3", {"layer_types": ["full_attention"] + ["sliding_attention"] * 3}, "a window of layer 0 None"),
        ("gemma2", {"query_pre_attn_scalar": 32, "attn_logit_softcapping": None}, "attention_softcap None"),
        (
            "exaone4-full",
            {"num_hidden_layers": 64, "layer_types": ["full_attention"] * 64},
            "the rotation of layer 3 some: its readers take none",
        ),
        ("exaone4-full", {"head_dim": 16}, "head_dim 16"),
        ("seed_oss", {"attention_out_bias": True}, "attention_out_bias True"),
        ("hunyuan", {"attention_bias": True}, "attention_bias True"),
        ("ministral3", {"sliding_window": 40}, "a window of layer 0 40"),
        ("cohere2", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("cohere2", {"attention_bias": True}, "attention_bias True"),
        ("cohere2", {"layer_types": ["full_attention"] + ["sliding_attention"] * 3}, "a window of layer 0 None"),
        ("qwen3_5-alike", {"attention_bias": True}, "attention_bias True"),
        ("qwen3_next-grouped", {"norm_topk_prob": False}, "experts with normalize False"),
    ],
)
def test_fields_that_gguf_cannot_say(
    name: str, changes: dict[str, Any], what: str, families: Path, tmp_path: Path
) -> None:
    source = gguf_models.write(name, tmp_path / "models", changes)
    with pytest.raises(UnsupportedModel, match=what):
        write_gguf(open_checkpoint(source), tmp_path / "m.gguf")


@pytest.mark.parametrize("outer", ["language_model.model.", "model.language_model."])
def test_of_a_model_that_sees_the_text_decoder_is_written(
    outer: str, families: Path, written: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    source = gguf_models.write("gemma3", families)
    config = json.loads((source / "config.json").read_text())
    sees = tmp_path / "gemma3"
    sees.mkdir()
    (sees / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (sees / file).write_text((source / file).read_text())
    tensors = {key.replace("model.", outer, 1): value for key, value in load_file(source / "model.safetensors").items()}
    tensors["vision_tower.embeddings.weight"] = np.ones((4, 4), np.float32)
    save_file(tensors, sees / "model.safetensors", metadata={"format": "pt"})
    result = write_gguf(open_checkpoint(sees), tmp_path / "m.gguf", kind="F32")
    before, after = open_gguf(written("gemma3")), open_gguf(result.path)
    assert {**before.metadata, "general.name": ""} == {**after.metadata, "general.name": ""}
    assert set(before.tensors) == set(after.tensors)
    for key in before.tensors:
        np.testing.assert_array_equal(after.raw(key), before.raw(key))


@pytest.mark.parametrize("model_type", ["granite_swa", "laguna", "mellum", "muse_glimmer"])
def test_a_family_without_an_architecture(model_type: str, families: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedModel, match=rf"^model_type '{model_type}\w*' has no GGUF architecture here: .*`to` mlx"
    ):
        write_gguf(open_checkpoint(tiny_models.write(model_type, families)), tmp_path / "m.gguf")


def test_architectures_are_those_of_the_gguf_package() -> None:
    known = set(gguf.MODEL_ARCH_NAMES.values())
    tensors = {name.removeprefix("blk.{bid}.") for name in gguf.TENSOR_NAMES.values()}
    for name, row in ARCHITECTURES.items():
        assert name in known
        for part in row.layer_names:
            assert {part.partition(".")[0], part.removesuffix(".weight")} & tensors, part
        assert tensors.issuperset(outer.removesuffix(".weight") for outer in row.outer_names)


def test_scaled_rope_that_an_architecture_does_not_read(families: Path, tmp_path: Path) -> None:
    rope = json.loads((gguf_models.write("llama", families) / "config.json").read_text())["rope_parameters"]
    source = gguf_models.write("qwen2", tmp_path / "models", {"rope_parameters": rope})
    with pytest.raises(UnsupportedModel, match=r"'llama3'.*qwen2"):
        write_gguf(open_checkpoint(source), tmp_path / "m.gguf")
