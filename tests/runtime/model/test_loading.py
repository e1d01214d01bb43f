"""How many bytes a model's weights will take on a device, said before any is read, beside what they then take; and what
is said of a checkpoint that says two things."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import partita_backends
from partita.backend import Backend
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError
from partita.language_model import load
from partita.model.load import load_decoder, weight_bytes
from partita.model.notes import notes
from partita.model.tree import walk
from partita.quantization import Packed, quantize_weight
from partita_convert.convert import convert
from partita_convert.gguf.write import write_gguf
from partita_convert.planning import Request

from ..checkpoint.test_experts import as_blocks, rewritten


def taken(ops: Backend, path: Path) -> int:
    """Bytes of a loaded decoder's arrays; what two places share is counted once."""
    found = {}
    for _, node in walk(load_decoder(ops, open_checkpoint(path))):
        parts = (node.weight, node.scales, node.biases, node.factors) if isinstance(node, Packed) else (node,)
        found |= {id(part): part.nbytes for part in parts if hasattr(part, "nbytes")}
    return sum(found.values())


@pytest.fixture(params=["float32", "bfloat16"])
def ops(request: pytest.FixtureRequest) -> Backend:
    return partita_backends.load("mlx", device="cpu", dtype=request.param)


def assert_said(ops: Backend, path: Path) -> None:
    said, bytes_taken = weight_bytes(ops, open_checkpoint(path)), taken(ops, path)
    assert 0.9 * bytes_taken <= said <= 1.02 * bytes_taken


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_moe", "gpt_oss"])
def test_dense_weights(ops: Backend, tiny_family: Callable[[str], Path], name: str) -> None:
    assert_said(ops, tiny_family(name))


@pytest.mark.parametrize("quantize", ["4:32", "8:64", "1:32", "nvfp4", "mxfp4", "mxfp8"])
def test_packed_weights(tiny_family: Callable[[str], Path], tmp_path: Path, quantize: str) -> None:
    ops = partita_backends.load("mlx", device="cpu", dtype="bfloat16")
    convert(open_checkpoint(tiny_family("llama")), tmp_path / "m", Request(quantize=quantize))
    assert_said(ops, tmp_path / "m")


def test_blocks_of_floats(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    ops = partita_backends.load("mlx", device="cpu", dtype="bfloat16")
    said = {"quant_method": "mxfp4"}
    assert_said(ops, rewritten(tiny_family("gpt_oss"), tmp_path / "m", as_blocks, quantization_config=said))


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16"])
def test_gguf_files(tiny_family: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    ops = partita_backends.load("mlx", device="cpu", dtype="bfloat16")
    write_gguf(open_checkpoint(tiny_family("llama")), tmp_path / "m.gguf", kind=kind)
    assert_said(ops, tmp_path / "m.gguf")


def test_what_sees_is_not_loaded_and_not_counted(
    ops: Backend, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    text = tiny_family("gemma3")
    config = {"model_type": "gemma3", "text_config": json.loads((text / "config.json").read_text())}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {f"language_model.{name}": value for name, value in load_file(text / "model.safetensors").items()}
    tower: dict[str, Any] = {"vision_tower.embeddings.weight": np.ones((512, 512), np.float32)}
    save_file(tensors | tower, tmp_path / "model.safetensors")
    assert weight_bytes(ops, open_checkpoint(tmp_path)) == weight_bytes(ops, open_checkpoint(text))


def test_a_folder_without_a_decoder(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    save_file({"else": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="embed_tokens"):
        weight_bytes(partita_backends.load("numpy"), open_checkpoint(tmp_path))


@pytest.mark.parametrize("name", ["mlx", "torch"])
def test_what_is_held_dense_is_said(tiny_family: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    for quantize in ("nvfp4", "mxfp4", "mxfp8"):
        convert(open_checkpoint(tiny_family("llama")), tmp_path / quantize, Request(quantize=quantize))
        model = load(tmp_path / quantize, backend=name, device="cpu")
        if name == "mlx" or quantize != "mxfp8":
            assert model.notes == ()
        else:
            (line,) = model.notes
            assert line.startswith(f"{quantize}: weights in MXFP8 are held in {model.ops.decode_dtype} by the torch ")
            assert line.endswith(" KiB")


def test_a_head_beside_tied_embeddings(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    """Where it is the embedding it counts as one with it; where it is not the config decides, and that is said."""
    plain = tiny_family("gemma3")
    embedding = load_file(plain / "model.safetensors")["model.embed_tokens.weight"]
    others = {"same": embedding, "rounded": embedding.astype(np.float16), "other": embedding[::-1].copy()}
    others["few"] = embedding[1:].copy()
    for name, head in others.items():
        path = rewritten(plain, tmp_path / name, lambda tensors, head=head: tensors | {"lm_head.weight": head})
        model = load(path, backend="numpy")
        assert model.decoder.head.weight is model.decoder.embedding
        assert bool(model.notes) == (name in ("other", "few")), name
        assert (
            not model.notes or "lm_head.weight is not the embedding, and config.json says that it is" in model.notes[0]
        )
    assert load(plain, backend="numpy").notes == ()


def test_a_packed_head_may_be_rounded_otherwise(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    plain = tiny_family("gemma3")
    for order, said in (1, False), (-1, True):

        def change(tensors: dict[str, Any], order: int = order) -> dict[str, Any]:
            packed = quantize_weight(tensors["model.embed_tokens.weight"][::order].astype(np.float32), 4, 32)
            return tensors | {f"lm_head.{part}": getattr(packed, part) for part in ("weight", "scales", "biases")}

        path = rewritten(plain, tmp_path / f"{order}", change, quantization={"bits": 4, "group_size": 32})
        assert bool(notes(open_checkpoint(path))) == said
