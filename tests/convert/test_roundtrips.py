"""From one form to another and back: every tensor bit for bit, and a config that means the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.names import adds_one
from partita.checkpoint.open import open_checkpoint
from partita.model.families.parse import parse
from partita.quantization import Packed, quantize_weight
from partita.text.load import load_tokenizer
from partita_convert.gguf.write import write_gguf
from partita_convert.layouts import as_huggingface, as_mlx
from partita_convert.write_folder import write_huggingface, write_mlx

from .. import bounds, gguf_models, tiny_models

DTYPES = ("bfloat16", "float16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("there-and-back")


@pytest.fixture(scope="module")
def halves(folder: Path) -> Callable[..., Path]:
    """halves(write, name, dtype): a family in 16 bits, as it would be published; made once."""

    def get(write: Callable[[str, Path], Path], name: str, dtype: str) -> Path:
        path = folder / f"{write.__module__}-{name}-{dtype}"
        if not path.exists():
            write_huggingface(open_checkpoint(write(name, folder)), path, dtype=dtype)
        return path

    return get


def same_tensors(before: Checkpoint, after: Checkpoint, *, norms: float = 0) -> None:
    """norms: how far those may be that were stored with the one added."""
    assert set(after.names()) == set(before.names())
    for name in before.names():
        first, second = before.read(name), after.read(name)
        assert isinstance(first, np.ndarray)
        assert isinstance(second, np.ndarray)
        assert (second.dtype, second.shape) == (first.dtype, first.shape), name
        if norms and adds_one(name):
            assert np.abs(second.astype(np.float32) - first.astype(np.float32)).max() <= norms, name
        else:
            assert second.tobytes() == first.tobytes(), name


def same_meaning(before: Checkpoint, after: Checkpoint, **fields: str) -> None:
    """The decoder that a config describes, to the last field; numbers may have been through float32.

    fields: what else than the source's they should be.
    """
    close(asdict(parse(before.config)) | fields, asdict(parse(after.config)), "config")


def close(first: Any, second: Any, where: str) -> None:
    if isinstance(first, dict):
        assert set(first) == set(second), where
        for key in first:
            close(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, (one, two) in enumerate(zip(first, second, strict=True)):
            close(one, two, f"{where}[{i}]")
    elif isinstance(first, float):
        assert second == pytest.approx(first, rel=1e-6), where
    else:
        assert first == second, where


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_through_mlx(name: str, halves: Callable[..., Path], tmp_path: Path) -> None:
    dtype = DTYPES[tiny_models.NAMES.index(name) % 2]
    source = open_checkpoint(halves(tiny_models.write, name, dtype))
    write_mlx(as_mlx(source), tmp_path / "mlx")
    write_huggingface(as_huggingface(open_checkpoint(tmp_path / "mlx")), tmp_path / "back", dtype=None)
    back = open_checkpoint(tmp_path / "back")
    # mlx-lm keeps Qwen3-Next's norms as 1 + w, in 16 bits, and so 1 + w is all that comes back
    same_tensors(as_huggingface(source), back, norms=2 * bounds.UNIT[dtype] if "qwen3_next" in name else 0)
    same_meaning(source, back)
    assert back.generation_config == source.generation_config
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (source.path / file).read_bytes()


@pytest.mark.parametrize("name", gguf_models.NAMES)
def test_through_gguf(name: str, halves: Callable[..., Path], tmp_path: Path) -> None:
    source = open_checkpoint(halves(gguf_models.write, name, "bfloat16"))
    write_gguf(source, tmp_path / "model.gguf", kind="BF16")
    there = open_checkpoint(tmp_path / "model.gguf")
    write_huggingface(as_huggingface(there), tmp_path / "back", dtype="bfloat16")
    back = open_checkpoint(tmp_path / "back")
    same_tensors(as_huggingface(source), back)
    # a Mistral without a window is a Llama, and GGUF's word for both is "llama"
    same_meaning(source, back, **({"model_type": "llama"} if name == "mistral-full" else {}))
    tokens = load_tokenizer(source).encode("the quick brown fox 12 é\n", bos=False)
    assert load_tokenizer(back).encode("the quick brown fox 12 é\n", bos=False) == tokens


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["llama-yarn", "gemma3", "phi3"])
def test_integers_through_gguf(name: str, bits: int, folder: Path, tmp_path: Path) -> None:
    """4 bits in groups of 32 are Q4_1 to the last bit where scales are float16, and come back as the same integers."""

    def halved(_: str, value: np.ndarray | Packed) -> np.ndarray | Packed:
        if isinstance(value, Packed) or value.ndim != 2:
            return value
        packed = quantize_weight(value, bits, 32)
        scales, biases = packed.scales.astype(np.float16), packed.biases.astype(np.float16)
        return Packed(packed.weight, scales, -128 * scales if bits == 8 else biases, bits, 32)

    write_mlx(open_checkpoint(gguf_models.write(name, folder)), tmp_path / "mlx", transform=halved)
    source = open_checkpoint(tmp_path / "mlx")
    write_gguf(source, tmp_path / "model.gguf", kind="Q4_1" if bits == 4 else "Q8_0")
    write_mlx(open_checkpoint(tmp_path / "model.gguf"), tmp_path / "back")
    back = open_checkpoint(tmp_path / "back")
    kept = 0
    for name_ in source.names():
        first, second = source.read(name_), back.read(name_)
        if isinstance(first, Packed) and isinstance(second, Packed) and first.bits == second.bits:
            kept += 1
            assert np.array_equal(first.weight, second.weight), name_
            np.testing.assert_array_equal(first.scales.astype(np.float32), second.scales.astype(np.float32))
            np.testing.assert_array_equal(first.biases.astype(np.float32), second.biases.astype(np.float32))
    packed = [name_ for name_ in source.names() if isinstance(source.read(name_), Packed)]
    assert kept >= len(packed) - 1  # the head of a four-bit model is written in eight


def test_a_folder_written_twice_has_one_content(folder: Path, halves: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing accumulates: what was written is written again as it is."""
    source = open_checkpoint(halves(tiny_models.write, "llama", "bfloat16"))
    write_huggingface(source, tmp_path / "one", dtype=None)
    write_huggingface(open_checkpoint(tmp_path / "one"), tmp_path / "two", dtype=None)
    for file in sorted((tmp_path / "one").iterdir()):
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes(), file.name
    assert json.loads((tmp_path / "two" / "config.json").read_text())["dtype"] == "bfloat16"
