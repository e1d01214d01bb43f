"""Tiny models of every family, and the GGUF files made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from partita.checkpoint.open import open_checkpoint
from partita_convert.gguf.write import write_gguf

from .. import gguf_models


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written-as-gguf")


@pytest.fixture(scope="session")
def written(families: Path) -> Callable[..., Path]:
    """written(name, kind="F32"): a family as GGUF, made once."""

    def get(name: str, kind: str = "F32") -> Path:
        path = families / f"{name}-{kind}.gguf"
        if not path.exists():
            write_gguf(open_checkpoint(gguf_models.write(name, families)), path, kind=kind)
        return path

    return get


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A PEFT folder that changes the queries of the first layer."""
    size = load_file(tiny_model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].shape
    rng, module = np.random.default_rng(5), "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{module}.lora_A.weight": rng.standard_normal((2, size[1]), np.float32) * 0.1,
        f"{module}.lora_B.weight": rng.standard_normal((size[0], 2), np.float32) * 0.1,
    }
    (folder := tmp_path / "adapter").mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return folder
