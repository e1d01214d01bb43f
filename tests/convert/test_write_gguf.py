"""GGUF out, read back: every tensor, every family's logits, files that are whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.gguf.parts import ROPE_FACTORS
from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.names import adds_one
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, DataError
from partita.model.load import load_decoder
from partita.quantization import Packed, dequantize
from partita_convert.gguf import write as module
from partita_convert.gguf.write import write_gguf
from partita_convert.write_folder import write_huggingface

from .. import bounds, gguf_models, tiny_models

QUANTIZED = ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


ADD_ONE = ("gemma", "qwen3_5", "qwen3_next")


@pytest.fixture(scope="module")
def judged(families: Path) -> Callable[[str], np.ndarray]:
    """judged(name): transformers' logits of the family's folder, computed once."""
    found: dict[str, np.ndarray] = {}

    def get(name: str) -> np.ndarray:
        if name not in found:
            source = gguf_models.write(name, families)
            found[name] = tiny_models.reference_logits(source, tiny_models.tokens(source))
        return found[name]

    return get


def logits(path: Path, tokens: list[int], backend: str = "numpy", pieces: int = 1) -> np.ndarray:
    """After every token, fed in so many pieces of equal length."""
    ops = partita_backends.load(backend, dtype="float32")
    model = load_decoder(ops, open_checkpoint(path))
    spec = plan(model.config, KVFormat.parse("auto", dense_bits=32), context=None, chunk=96)
    cache = Cache(ops, spec)
    parts = np.array(tokens, np.int32).reshape(pieces, 1, -1)
    return np.concatenate([ops.to_numpy(model(ops, ops.array(part), cache, every=True))[0] for part in parts])


def dense(checkpoint: Checkpoint, name: str) -> np.ndarray:
    value = checkpoint.read(name)
    return dequantize(value) if isinstance(value, Packed) else np.asarray(value)


# --- what was written is what was read


@pytest.mark.parametrize("pieces", [1, tiny_models.TOKENS])
@pytest.mark.parametrize("backend", partita_backends.names())
@pytest.mark.parametrize("name", gguf_models.NAMES)
def test_logits_are_those_of_transformers(
    name: str,
    backend: str,
    pieces: int,
    families: Path,
    written: Callable[..., Path],
    judged: Callable[[str], np.ndarray],
) -> None:
    source = gguf_models.write(name, families)
    found = logits(written(name), tiny_models.tokens(source), backend, pieces)
    bounds.assert_near(found, judged(name), bounds.logits(source))


def test_exaone_4_slides_in_models_of_64_layers(families: Path, tmp_path: Path) -> None:
    source = gguf_models.write("exaone4", families, gguf_models.SLIDING_EXAONE4)
    path = write_gguf(open_checkpoint(source), tmp_path / "m.gguf", kind="F32").path
    tokens = tiny_models.tokens(source)
    expected = tiny_models.reference_logits(source, tokens)
    bounds.assert_near(logits(path, tokens, "torch"), expected, bounds.logits(source))
    metadata = open_gguf(path).metadata
    said = [metadata[f"exaone4.attention.sliding_window{key}"] for key in ("", "_pattern")]
    assert said == [tiny_models.WINDOW, 4]


@pytest.mark.parametrize("name", gguf_models.NAMES)
def test_there_and_back_keeps_every_tensor(
    name: str, families: Path, written: Callable[..., Path], tmp_path: Path
) -> None:
    source = gguf_models.write(name, families)
    write_huggingface(open_checkpoint(written(name)), tmp_path / "back")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    before, after = unfused(before), unfused(after)
    assert set(before) == set(after)
    for key, value in before.items():
        if name.startswith(ADD_ONE) and adds_one(key):
            np.testing.assert_allclose(after[key] + 1, value + 1, rtol=2**-23)  # one unit in the last place of 1 + w
        elif key.endswith("A_log"):  # the same of exp, and of its logarithm
            np.testing.assert_allclose(np.exp(after[key]), np.exp(value), rtol=(2 + np.abs(value).max()) * 2**-23)
        else:
            np.testing.assert_array_equal(after[key], value, err_msg=key)


def unfused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Qwen3-MoE's experts one by one, as published; transformers 5 keeps them as stacks of gate over up."""
    found = {}
    for name, value in tensors.items():
        if name.endswith("experts.gate_up_proj") and "mlp.router" not in "".join(tensors):
            half = value.shape[1] // 2
            for i, expert in enumerate(value):
                found[name.replace("gate_up_proj", f"{i}.gate_proj.weight")] = expert[:half]
                found[name.replace("gate_up_proj", f"{i}.up_proj.weight")] = expert[half:]
        elif name.endswith("experts.down_proj") and "mlp.router" not in "".join(tensors):
            for i, expert in enumerate(value):
                found[name.replace("down_proj", f"{i}.down_proj.weight")] = expert
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("name", gguf_models.NAMES)
def test_a_gguf_source_is_written_as_it_is(name: str, written: Callable[..., Path], tmp_path: Path) -> None:
    result = write_gguf(open_checkpoint(written(name)), tmp_path / "again.gguf", kind="F32")
    assert all(tensor.error == 0.0 for tensor in result.tensors)
    before, after = open_gguf(written(name)), open_gguf(tmp_path / "again.gguf")
    assert before.metadata == after.metadata
    assert set(before.tensors) == set(after.tensors)
    for key in before.tensors:
        if key.endswith("ssm_a"):  # its logarithm was rounded
            first, second = (file.raw(key).view("<f4") for file in (before, after))
            np.testing.assert_allclose(second, first, rtol=(2 + np.abs(np.log(-first)).max()) * 2**-23)
        else:
            np.testing.assert_array_equal(before.raw(key), after.raw(key), err_msg=key)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision(kind: str, families: Path, written: Callable[..., Path]) -> None:
    source, back = open_checkpoint(gguf_models.write("qwen2", families)), open_checkpoint(written("qwen2", kind))
    for name in back.names():
        value, read = dense(source, name), dense(back, name)
        if value.ndim == 1:
            assert back.stored_as(name) == "F32"
        else:
            assert back.stored_as(name) == kind
            value = value.astype(read.dtype)
        np.testing.assert_array_equal(read, value)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_kinds(kind: str, families: Path, written: Callable[..., Path]) -> None:
    source, back = open_checkpoint(gguf_models.write("llama", families)), open_checkpoint(written("llama", kind))
    assert back.stored_as("model.norm.weight") == "F32"
    assert back.stored_as("model.embed_tokens.weight") == "Q8_0"  # it is the head as well
    bound = {"8": 0.01, "5": 0.06, "4": 0.13}
    for name in back.names():
        value, read = dense(source, name), dense(back, name)
        if read.ndim == 2:
            away = np.sqrt(np.square(read - value).mean() / np.square(value).mean())
            assert 0 < away < bound[back.stored_as(name)[1]], name


def test_untied_heads_of_few_bits_are_q8_0(families: Path, tmp_path: Path) -> None:
    source = open_checkpoint(gguf_models.write("llama-yarn", families))
    result = write_gguf(source, tmp_path / "m.gguf", kind="Q4_0")
    targets = {tensor.name: tensor.target for tensor in result.tensors}
    assert targets["lm_head.weight"] == "Q8_0"
    assert targets["model.embed_tokens.weight"] == targets["model.layers.0.mlp.up_proj.weight"] == "Q4_0"


def test_errors_and_tensors_are_reported(families: Path, tmp_path: Path) -> None:
    source = open_checkpoint(gguf_models.write("llama", families))
    result = write_gguf(source, tmp_path / "m.gguf", kind="Q8_0")
    assert result.nbytes == (tmp_path / "m.gguf").stat().st_size
    back = open_checkpoint(tmp_path / "m.gguf")
    for tensor in result.tensors:
        if tensor.name == ROPE_FACTORS:
            assert (tensor.target, tensor.error) == ("F32", 0.0)
            continue
        assert tensor.target == back.stored_as(tensor.name)
        if tensor.target == "Q8_0":
            value, read = dense(source, tensor.name), dense(back, tensor.name)
            away = np.sqrt(np.square(read - value).mean() / np.square(value).mean())
            assert tensor.error == pytest.approx(away, rel=1e-4)
            assert tensor.nbytes == value.size // 32 * 34
            assert tensor.source == "F32"
        else:
            assert tensor.error == 0.0


# --- files


@pytest.mark.parametrize("kind", ["F16", "Q4_1"])
def test_the_same_source_gives_the_same_bytes(kind: str, families: Path, tmp_path: Path) -> None:
    source = gguf_models.write("gemma3", families)
    first = write_gguf(open_checkpoint(source), tmp_path / "a.gguf", kind=kind).path
    second = write_gguf(open_checkpoint(source), tmp_path / "b.gguf", kind=kind).path
    assert first.read_bytes() == second.read_bytes()


def test_an_error_in_the_middle_leaves_nothing(families: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_checkpoint(gguf_models.write("llama", families))
    written, count = module._write, iter(range(5))

    def failing(*arguments: Any, **more: Any) -> Any:
        if next(count, None) is None:
            raise CheckpointError("m: the disk went away")
        return written(*arguments, **more)

    monkeypatch.setattr(module, "_write", failing)
    with pytest.raises(CheckpointError, match="went away"):
        write_gguf(source, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced(families: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(DataError, match=r"m\.gguf exists already"):
        write_gguf(open_checkpoint(gguf_models.write("llama", families)), tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_one_line(families: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"m\.gguf cannot be written") as caught:
        write_gguf(open_checkpoint(gguf_models.write("llama", families)), tmp_path / "file" / "m.gguf")
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_is_named(families: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'Q4_K'.*Q4_1"):
        write_gguf(open_checkpoint(gguf_models.write("llama", families)), tmp_path / "m.gguf", kind="Q4_K")
