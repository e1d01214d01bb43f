"""Files of random weights in the shape of a model: what they hold, and that they can be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import partita
from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.open import open_checkpoint
from partita.quantization import Packed, dequantize
from partita_convert.gguf.file import size
from partita_convert.gguf.shapes import SHAPES, HybridShape, Shape, shape_bytes, write_shape
from partita_convert.write_folder import write_huggingface

TIED = Shape(2, 64, 2, 1, 32, 96, 1000, tied=True, positions=512)
OWN_HEAD = Shape(1, 256, 4, 2, 64, 512, 700, tied=False, positions=512)


HYBRID = HybridShape(4, 64, 2, 1, 64, 96, 1000, tied=True, positions=512, key_heads=2, value_heads=4)


@pytest.fixture(scope="module", params=[TIED, OWN_HEAD, HYBRID], ids=["tied", "own-head", "hybrid"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, Path]:
    path = tmp_path_factory.mktemp("shapes") / "m.gguf"
    nbytes = write_shape(request.param, path)
    assert path.stat().st_size == nbytes
    return request.param, path


def test_tensors_are_what_the_shape_says(written: tuple[Shape, Path]) -> None:
    shape, path = written
    tensors = open_gguf(path).tensors
    hybrid = isinstance(shape, HybridShape)
    assert len(tensors) == 2 + (3 * 14 + 11 if hybrid else 9 * shape.layers) + (not shape.tied)
    table = "Q6_K" if shape.hidden_size % 256 == 0 else "Q8_0"
    assert tensors["token_embd.weight"].type == table
    assert tensors["token_embd.weight"].shape == (shape.vocab_size, shape.hidden_size)
    assert tensors["blk.0.ffn_down.weight"].shape == (shape.hidden_size, shape.intermediate_size)
    assert tensors[f"blk.{shape.layers - 1}.attn_k.weight"].shape == (
        shape.kv_heads * shape.head_dim,
        shape.hidden_size,
    )
    matrices = {name for name in tensors if len(tensors[name].shape) == 2 and "conv1d" not in name}
    small = {name for name in matrices if "ssm_alpha" in name or "ssm_beta" in name}
    assert {tensors[name].type for name in small} == ({"Q8_0"} if hybrid else set())
    assert {tensors[name].type for name in matrices - small - {"token_embd.weight", "output.weight"}} == {"Q4_0"}
    assert {tensors[name].type for name in tensors.keys() - matrices} == {"F32"}
    assert sum(size(x.type, x.shape) for x in tensors.values()) == shape_bytes(shape)


def test_weights_are_of_a_sane_size(written: tuple[Shape, Path]) -> None:
    checkpoint = open_checkpoint(written[1])
    for name in checkpoint.names():
        value = checkpoint.read(name)
        dense = dequantize(value) if isinstance(value, Packed) else value
        assert np.isfinite(dense).all()
        if dense.ndim == 2:
            assert dense.std() == pytest.approx(dense.shape[-1] ** -0.5, rel=0.1), name
            assert abs(dense.mean()) < dense.std() / 10, name


def test_it_is_loaded_and_used(written: tuple[Shape, Path]) -> None:
    model = partita.load(written[1], backend="numpy")
    text = "!! Fox & hound: 42 naïve 日本"
    ids = model.tokenizer.encode(text, bos=False)
    assert model.tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())  # merges are merged
    assert model.config.vocab_size == written[0].vocab_size
    assert np.isfinite(partita.logits(model, ids)).all()


def test_the_same_shape_is_the_same_bytes(written: tuple[Shape, Path], tmp_path: Path) -> None:
    write_shape(written[0], tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == written[1].read_bytes()


def test_it_becomes_a_folder_for_transformers(written: tuple[Shape, Path], tmp_path: Path) -> None:
    write_huggingface(open_checkpoint(written[1]), tmp_path / "dense")
    ids = [5, 300, 44, 7]
    ours, dense = (partita.load(path, backend="numpy") for path in (written[1], tmp_path / "dense"))
    np.testing.assert_allclose(partita.logits(ours, ids), partita.logits(dense, ids), atol=1e-4)


def test_sizes_are_those_of_the_models() -> None:
    """A published file of these types, in GB."""
    sizes = {name: round(shape_bytes(shape) / 1e9, 2) for name, shape in SHAPES.items()}
    assert sizes == {"135m": 0.09, "1b": 0.76, "3b": 1.91, "8b": 4.79, "hybrid-4b": 2.53, "dense-4b": 2.27}
