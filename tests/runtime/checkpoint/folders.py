"""Model folders for tests: dense, in several files, or packed as MLX packs them."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from partita.quantization import Packed, quantize_weight

RNG = np.random.default_rng(3)
DENSE = {
    "model.norm.weight": RNG.standard_normal(8).astype(ml_dtypes.bfloat16),
    "model.embed_tokens.weight": RNG.standard_normal((6, 8)).astype(np.float16),
    "lm_head.weight": RNG.standard_normal((6, 8)).astype(np.float32),
}


def folder(path: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    save_file(DENSE if tensors is None else tensors, path / "model.safetensors")
    return path


def sharded(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    table = {}
    for i, (name, value) in enumerate(DENSE.items()):
        file = f"model-0000{i + 1}-of-00003.safetensors"
        save_file({name: value}, path / file)
        table[name] = file
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return path


def parts(module: str, packed: Packed) -> dict[str, np.ndarray]:
    return {f"{module}.{part}": getattr(packed, part) for part in ("weight", "scales", "biases")}


def packed_folder(path: Path, block: Any = ..., drop: str = "", **more: Any) -> tuple[Path, dict[str, Packed]]:
    q = quantize_weight(RNG.standard_normal((4, 64)).astype(np.float32), 4, 64)
    v = quantize_weight(RNG.standard_normal((4, 64)).astype(np.float32), 6, 32)
    tensors = parts("model.q", q) | parts("model.v", v) | {"model.norm.weight": np.ones(4, np.float32)}
    tensors.pop(drop, None)
    if block is ...:
        block = {
            "group_size": 64,
            "bits": 4,
            "mode": "affine",
            "model.v": {"group_size": 32, "bits": 6},
            "model.x": False,
        }
    return folder(path, tensors, quantization=block, **more), {"model.q.weight": q, "model.v.weight": v}
