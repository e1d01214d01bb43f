"""Adapters that are refused, and the one line that says why."""

from __future__ import annotations

import numpy as np
import pytest

from partita.adapters.read import fused, open_adapter
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel

from .test_adapters import Q, mlx_folder, normal, peft_folder, random_base


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"bias": "all"}, "bias 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"rank_pattern": {"(a+)+": 2}}, "too involved"),
        ({"rank_pattern": {"a.*b.*c.*": 2}}, "too involved"),
        ({"rank_pattern": {"x" * 600: 2}}, "too involved"),
    ],
)
def test_settings_that_are_not_done(tmp_path, config, words):
    with pytest.raises(UnsupportedModel, match=words):
        open_adapter(peft_folder(tmp_path / "a", **config))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 8}, "its rank is 4, adapter_config.json says 8"),
        ({"r": 0}, "are not a count and a number"),
        ({"lora_alpha": "8"}, "are not a count and a number"),
        ({"lora_alpha": float("nan")}, "are not a count and a number"),
        ({"use_dora": True}, "use_dora is True, and there is None"),
        ({"rank_pattern": [1]}, "rank_pattern is not a table"),
        ({"rank_pattern": {"q_proj": 1.5}}, "gives 'q_proj' the value 1.5"),
        ({"rank_pattern": {"(q_proj": 2}}, "not a regular expression"),
    ],
)
def test_settings_that_are_wrong(tmp_path, config, words):
    with pytest.raises(CheckpointError, match=words):
        open_adapter(peft_folder(tmp_path / "a", **config))


A, B = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({A: normal(4, 32)}, CheckpointError, "one of the two low-rank matrices is missing"),
        ({A: normal(4, 32), B: normal(16, 5)}, CheckpointError, "have no product"),
        ({A: normal(4, 32), B: np.zeros((16, 4), np.int32)}, CheckpointError, "in I32, not floats"),
        ({A: normal(4, 32, 2), B: normal(16, 4)}, CheckpointError, "have no product"),
        ({f"base_model.model.{Q}.lora_B.bias": normal(4)}, UnsupportedModel, "not part of a supported LoRA adapter"),
        ({"model.norm.weight": normal(4)}, UnsupportedModel, "not part of a supported LoRA adapter"),
        ({}, CheckpointError, "changes nothing"),
    ],
)
def test_tensors_that_do_not_go_together(tmp_path, tensors, error, words):
    with pytest.raises(error, match=words):
        open_adapter(peft_folder(tmp_path / "a", tensors))


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"fine_tune_type": "full"}, UnsupportedModel, "fine_tune_type 'full'"),
        ({"fine_tune_type": "dora"}, CheckpointError, "fine_tune_type is 'dora'"),
        ({"lora_parameters": None}, CheckpointError, "lora_parameters is not a table"),
        ({"lora_parameters": {"rank": 4}}, CheckpointError, "not a count and a number"),
        ({"lora_parameters": {"rank": 3, "scale": 1}}, CheckpointError, "its rank is 4"),
    ],
)
def test_mlx_lm_settings(tmp_path, config, error, words):
    with pytest.raises(error, match=words):
        open_adapter(mlx_folder(tmp_path / "a", **config))


def test_folders_that_are_no_adapter(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no adapter_config\.json"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="neither PEFT's"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    with pytest.raises(CheckpointError, match=r"there is no adapter_model\.safetensors"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickle"):
        open_adapter(tmp_path)


@pytest.mark.parametrize(
    ("shapes", "config", "error", "words"),
    [
        ({f"{Q}.weight": (16, 40)}, {}, CheckpointError, r"q_proj.weight is \(16, 40\) in base and \(16, 32\)"),
        ({"other": (2, 2)}, {}, CheckpointError, "which the model does not have; it was made for some/base"),
    ],
)
def test_another_base(tmp_path, shapes, config, error, words):
    adapter = open_adapter(peft_folder(tmp_path / "a"))
    with pytest.raises(error, match=words):
        fused(open_checkpoint(random_base(tmp_path / "base", shapes, **config)), adapter)


def test_half_of_a_tied_pair(tmp_path):
    tensors = {"base_model.model.model.embed_tokens.lora_embedding_A": normal(4, 50)}
    tensors |= {"base_model.model.model.embed_tokens.lora_embedding_B": normal(32, 4)}
    adapter = open_adapter(peft_folder(tmp_path / "a", tensors))
    shapes = {"model.embed_tokens.weight": (50, 32)}
    with pytest.raises(UnsupportedModel, match="shares between embedding and head"):
        fused(open_checkpoint(random_base(tmp_path / "base", shapes, tie_word_embeddings=True)), adapter)
    free = fused(open_checkpoint(random_base(tmp_path / "free", shapes)), adapter)
    assert free.read("model.embed_tokens.weight").shape == (50, 32)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_a_change_that_is_not_finite(tmp_path, value):
    tensors = {A: np.full((4, 32), value, np.float32), B: normal(16, 4) * np.float32(1e3)}
    base = open_checkpoint(random_base(tmp_path / "base", {f"{Q}.weight": (16, 32)}))
    with pytest.raises(CheckpointError, match="values that are not finite"):
        fused(base, open_adapter(peft_folder(tmp_path / "a", tensors))).read(f"{Q}.weight")
