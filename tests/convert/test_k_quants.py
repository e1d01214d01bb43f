"""K-quants: blocks that others read as we do, errors no larger than a plain rule's, mixtures, sources that stay."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from partita.checkpoint.gguf.blocks import decode
from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, DataError
from partita.model.families.parse import parse
from partita.quantization import Packed, dequantize
from partita_convert.convert import convert
from partita_convert.gguf.encode import as_written
from partita_convert.gguf.mixes import MIXES, fitting, mixed_types
from partita_convert.gguf.quants import search
from partita_convert.gguf.quants.search import KINDS, quantized
from partita_convert.gguf.write import TENSOR_KINDS, write_gguf
from partita_convert.planning import Request, gguf_kind
from partita_convert.quantize import quantize

from .. import tiny_models

K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def read(raw: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """By our own reader, after the `gguf` package has read the same."""
    theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    value = decode(raw.reshape(-1), kind, shape, "a tensor", 16)
    ours = dequantize(value) if isinstance(value, Packed) else value
    np.testing.assert_array_equal(ours, theirs)
    return ours


def plain(x: np.ndarray, kind: str) -> np.ndarray:
    """What the ends of each sub-block give: float16 units from the largest scale and minimum, in float64."""
    k = KINDS[kind]
    parts = x.astype(np.float64).reshape(-1, k.values // k.size, k.size)
    if k.most:
        low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), parts.min(-1))
        scales, minima = (high - low) / k.high, -low
    else:
        end = np.where(parts.max(-1) > -parts.min(-1), parts.max(-1), parts.min(-1))
        scales, minima = end / k.low, np.zeros(parts.shape[:2])
    reach = k.scales[1] if k.most or k.scales[0] > 0 else k.scales[0]
    largest = np.take_along_axis(scales, np.abs(scales).argmax(-1)[:, None], -1)
    d = (largest / reach).astype(np.float16).astype(np.float64)
    e = (minima.max(-1, keepdims=True) / max(k.most, 1)).astype(np.float16).astype(np.float64)
    s = np.clip(np.rint(scales / np.where(d == 0, 1, d)) * (d != 0), *k.scales)
    m = np.clip(np.rint(minima / np.where(e == 0, 1, e)) * (e != 0), 0, k.most)
    scale, bias = (d * s)[..., None], -(e * m)[..., None]
    q = np.clip(np.rint((parts - bias) / np.where(scale == 0, 1, scale)) * (scale != 0), k.low, k.high)
    return (q * scale + bias).reshape(x.shape)


def squares(x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Of blocks of 256 values, float64."""
    weighed = np.square(x.astype(np.float64)) * (1 if weights is None else weights)
    return weighed.reshape(-1, 256).sum(-1)


GAINS = {"Q2_K": 0.75, "Q3_K": 0.9, "Q4_K": 0.85, "Q5_K": 0.88, "Q6_K": 0.95, "Q4_0": 0.92, "Q5_0": 0.92, "Q8_0": 0.95}
VALUES = arrays(np.float32, (2, 512), elements=st.floats(-100, 100, width=32), fill=st.floats(-1, 1, width=32))


@pytest.mark.parametrize("kind", KINDS)
@given(x=VALUES, exponent=st.integers(-14, 9))
def test_no_block_has_a_larger_error_than_the_plain_rule(kind: str, x: np.ndarray, exponent: int) -> None:
    x = np.ldexp(x, exponent)
    found = read(quantized(x, kind).raw, kind, x.shape)
    slack = 512 * 2**-23 * squares(x)  # of the sums that are compared, in float32
    assert (squares(found - x) <= squares(plain(x, kind) - x) * (1 + 2**-12) + slack).all()


@pytest.mark.parametrize("kind", KINDS)
@given(x=VALUES)
def test_the_error_is_what_readers_find(kind: str, x: np.ndarray) -> None:
    blocks = quantized(x, kind)
    found = read(blocks.raw, kind, x.shape)
    lost, all_of_it = (float(squares(values).sum()) for values in (found - x, x))
    assert blocks.lost == pytest.approx(lost, rel=1e-3, abs=512 * 2**-23 * all_of_it)


@pytest.mark.parametrize("kind", KINDS)
def test_the_search_gains_on_weights_as_models_have_them(kind: str) -> None:
    x = np.random.default_rng(5).standard_normal((16, 1024)).astype(np.float32) / 30
    found = read(quantized(x, kind).raw, kind, x.shape)
    assert squares(found - x).sum() < GAINS[kind] * squares(plain(x, kind) - x).sum()


@pytest.mark.parametrize("kind", K_TYPES)
def test_columns_that_matter_are_held_better(kind: str) -> None:
    random = np.random.default_rng(6)
    x = random.standard_normal((16, 1024)).astype(np.float32)
    importance = np.exp(2 * random.standard_normal(1024))
    without, weighed = (
        read(quantized(x, kind, each).raw, kind, x.shape) - x for each in (None, importance.astype(np.float64))
    )
    costs = [squares(error, importance).sum() for error in (without, weighed)]
    assert costs[1] < 0.9 * costs[0]


@pytest.mark.parametrize("kind", ["Q4_K", "Q4_1"])
@pytest.mark.parametrize("packed", [False, True])
def test_experts_of_a_stack_are_weighed_each_by_its_own(kind: str, packed: bool) -> None:
    random = np.random.default_rng(9)
    x, importance = random.standard_normal((3, 40, 256)), np.exp(2 * random.standard_normal((3, 256)))
    stack = quantize(x.astype(np.float32), 8, 32) if packed else x.astype(np.float32)
    found = as_written("w", stack, kind, importance)
    for expert in range(3):
        one = stack.map(lambda part: part[expert]) if isinstance(stack, Packed) else stack[expert]  # noqa: B023
        np.testing.assert_array_equal(found[expert], as_written("w", one, kind, importance[expert]))
    assert (found != as_written("w", stack, kind, importance[0])).any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_every_type_holds(kind: str) -> None:
    zeros = np.zeros((3, 256), np.float32)
    np.testing.assert_array_equal(read(quantized(zeros, kind).raw, kind, zeros.shape), zeros)
    for constant in (1.5, -0.75):  # of few bits: each is an integer times a scale that float16 holds
        x = np.full((2, 256), constant, np.float32)
        found = read(quantized(x, kind).raw, kind, x.shape)
        np.testing.assert_allclose(found, x, rtol=2**-10)
    tiny = np.full((2, 256), 2e-38, np.float32)  # below what any scale reaches: zero, and finite
    np.testing.assert_array_equal(read(quantized(tiny, kind).raw, kind, tiny.shape), 0 * tiny)


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_scale_holds_is_refused(kind: str) -> None:
    for size in (3e38, 1e12):
        x = np.random.default_rng(7).uniform(-size, size, (4, 256)).astype(np.float32)
        with pytest.raises(DataError, match=rf"w\.1: its numbers are too large for {kind}'s float16 scales"):
            quantized(x, kind, name="w.1")
    x = np.random.default_rng(7).uniform(-6e4, 6e4, (4, 256)).astype(np.float32)
    assert np.isfinite(read(quantized(x, kind).raw, kind, x.shape)).all()


def test_an_importance_that_is_none_is_refused() -> None:
    x = np.ones((2, 256), np.float32)
    for bad in (np.ones(255), np.full(256, np.nan), np.full(256, -1.0)):
        with pytest.raises(DataError, match="importance must be 256 numbers"):
            quantized(x, "Q4_K", bad)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_threads_change_no_byte(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(8).standard_normal((300, 1024)).astype(np.float32)
    importance = np.arange(1.0, 1025)
    found: list[np.ndarray] = []
    for threads in (1, 3):
        monkeypatch.setattr(search, "cores", lambda count=threads: count)
        found.append(quantized(x, kind, importance).raw)
    np.testing.assert_array_equal(*found)


def test_without_numba_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "partita_convert.gguf.quants.kernels", None)
    with pytest.raises(DataError, match=r"computed by numba, which cannot be used here .*pip install numba"):
        quantized(np.ones((1, 256), np.float32), "Q4_K")


# --- which tensor gets which type


def types(mix: str, layers: int, *, tied: bool = False, **config: int) -> dict[str, str]:
    """Of a llama, GGUF's name to type."""
    whole = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": layers, "vocab_size": 99}
    whole |= {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 256, "rope_theta": 1e4}
    whole |= {"rms_norm_eps": 1e-6, "max_position_embeddings": 64, "hidden_act": "silu"}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down", "ffn_up", "ffn_gate")
    names = [f"blk.{i}.{part}.weight" for i in range(layers) for part in parts]
    names += ["token_embd.weight"] + ([] if tied else ["output.weight"])
    return mixed_types(mix, parse(whole | config), "llama", names)


def wider(found: dict[str, str], part: str, kind: str) -> list[int]:
    """Layers whose part has the type."""
    return [int(name.split(".")[1]) for name, own in found.items() if f".{part}." in name and own == kind]


MORE = [0, 1, 4, 7, 10, 13, 14, 15]  # of 16: the outer eighths, and every third between


def test_mixtures_of_16_layers() -> None:
    """The rules of llama.cpp's `llama_tensor_get_type`, written down once more."""
    found = types("Q4_K_M", 16)
    assert wider(found, "attn_v", "Q6_K") == wider(found, "ffn_down", "Q6_K") == MORE
    assert wider(found, "attn_q", "Q4_K") == list(range(16))
    assert (found["output.weight"], found["token_embd.weight"]) == ("Q6_K", "Q4_K")
    assert types("Q4_K_M", 16, tied=True)["token_embd.weight"] == "Q6_K"
    found = types("Q4_K_S", 16)
    assert (wider(found, "attn_v", "Q5_K"), wider(found, "ffn_down", "Q5_K")) == ([0, 1, 2, 3], [0, 1])
    found = types("Q3_K_M", 16)
    assert (wider(found, "attn_v", "Q5_K"), wider(found, "ffn_down", "Q5_K")) == ([0, 1], [0])
    assert len(wider(found, "attn_v", "Q4_K")) == 14
    assert len(wider(found, "attn_output", "Q4_K")) == 16
    assert set(types("Q3_K_S", 16).values()) == {"Q3_K", "Q6_K"}
    found = types("Q3_K_L", 16)
    assert all(len(wider(found, part, "Q5_K")) == 16 for part in ("attn_v", "attn_output", "ffn_down"))
    found = types("Q2_K", 16)
    assert all(len(wider(found, part, "Q3_K")) == 16 for part in ("attn_v", "attn_output", "ffn_down"))
    assert len(wider(types("Q2_K", 16, num_key_value_heads=1), "attn_v", "Q4_K")) == 16
    assert set(types("Q6_K", 16).values()) == {"Q6_K"}
    assert wider(types("Q5_K_M", 16), "ffn_down", "Q6_K") == MORE


def test_models_of_80_layers_share_keys() -> None:
    found = types("Q4_K_S", 80, num_key_value_heads=2)
    assert len(wider(found, "attn_v", "Q5_K")) == 80
    assert len(wider(types("Q4_K_S", 80), "attn_v", "Q5_K")) == 4


def test_rows_that_256_does_not_divide() -> None:
    assert [fitting(kind, 576) for kind in K_TYPES] == ["Q4_0", "Q4_0", "Q5_0", "Q5_1", "Q8_0"]
    assert [fitting(kind, 512) for kind in K_TYPES] == list(K_TYPES)
    assert {fitting(kind, 80) for kind in K_TYPES} == {"F16"}


def test_names() -> None:
    assert [gguf_kind(name) for name in ("q4_k", "Q5_K", "Q3_K", "Q6_K", "6", "3", "2")] == (
        ["Q4_K_M", "Q5_K_M", "Q3_K_M", "Q6_K", "Q6_K", "Q3_K_M", "Q2_K"]
    )
    with pytest.raises(DataError, match=r"unknown `quantize` 'Q4_K_L'.*Q6_K, Q5_K_M, .*Q2_K, 8, 6, 5, .*measured:4\.5"):
        gguf_kind("Q4_K_L")


# --- files


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose rows 256 divides, but for those of one matrix."""
    sizes = {"hidden_size": 256, "intermediate_size": 288, "num_attention_heads": 8, "num_key_value_heads": 4}
    made = {"model_type": "llama", **sizes, "head_dim": 32, "tie_word_embeddings": False}
    return tiny_models.write("wide-llama", tmp_path_factory.mktemp("wide"), made)


def test_a_file_as_stored_says_what_its_source_does_or_what_most_of_it_is(wide: Path, tmp_path: Path) -> None:
    mixed, copy, folder, back = (tmp_path / name for name in ("mixed.gguf", "copy.gguf", "folder", "back.gguf"))
    convert(open_checkpoint(wide), mixed, Request("gguf", "Q4_K_S"))
    convert(open_checkpoint(mixed), copy, Request("gguf"))
    convert(open_checkpoint(wide), folder, Request("mlx", "4:32"))
    convert(open_checkpoint(folder), back, Request("gguf"))
    says = [open_gguf(path).metadata["general.file_type"] for path in (mixed, copy, back)]
    assert says == [getattr(gguf.LlamaFileType, f"MOSTLY_{kind}") for kind in ("Q4_K_S", "Q4_K_S", "Q4_1")]


@pytest.mark.parametrize("mix", MIXES)
def test_files_say_and_hold_their_types(mix: str, wide: Path, tmp_path: Path) -> None:
    result = write_gguf(open_checkpoint(wide), tmp_path / "m.gguf", kind=mix)
    file = open_gguf(tmp_path / "m.gguf")
    assert file.metadata["general.file_type"] == int(gguf.LlamaFileType[f"MOSTLY_{mix}"])
    config = parse(open_checkpoint(wide).config)
    expected = mixed_types(mix, config, "llama", file.tensors)
    for name, tensor in file.tensors.items():
        if len(tensor.shape) == 2:
            assert tensor.type == fitting(expected[name], tensor.shape[-1]), name
    source, after = open_checkpoint(wide), open_checkpoint(tmp_path / "m.gguf")
    for tensor in result.tensors:
        before, now = source.read(tensor.name), after.read(tensor.name)
        now = dequantize(now) if isinstance(now, Packed) else now
        error = np.sqrt(np.square(now - before).sum() / np.square(before).sum())
        assert tensor.error == pytest.approx(error, rel=1e-3, abs=1e-6)
        assert error < 0.35


@pytest.mark.parametrize("kind", K_TYPES)
def test_a_source_of_the_same_type_keeps_its_bytes(kind: str, wide: Path, tmp_path: Path) -> None:
    source = open_checkpoint(wide)
    kinds = {name: kind for name in source.names() if len(source.shape(name)) == 2}
    write_gguf(source, tmp_path / "a.gguf", kind="Q8_0", kinds=kinds)
    before = open_gguf(tmp_path / "a.gguf")
    assert kind in {tensor.type for tensor in before.tensors.values()}
    for name, wanted in (("b.gguf", None), ("c.gguf", "Q6_K"), ("d.gguf", "Q8_0")):
        report = convert(open_checkpoint(tmp_path / "a.gguf"), tmp_path / name, Request("gguf", wanted))
        after = open_gguf(tmp_path / name)
        for key, tensor in before.tensors.items():
            assert after.tensors[key].type == tensor.type
            np.testing.assert_array_equal(after.raw(key), before.raw(key), err_msg=key)
        assert all(tensor.error == 0 for tensor in report.tensors)


def test_more_bits_than_were_asked_for_are_rounded_again(wide: Path, tmp_path: Path) -> None:
    write_gguf(open_checkpoint(wide), tmp_path / "a.gguf", kind="Q6_K")
    result = write_gguf(open_checkpoint(tmp_path / "a.gguf"), tmp_path / "b.gguf", kind="Q4_K_S")
    targets = {tensor.name: (tensor.source, tensor.target) for tensor in result.tensors}
    assert targets["model.layers.3.self_attn.q_proj.weight"] == ("Q6_K", "Q4_K")
    assert targets["lm_head.weight"] == ("Q6_K", "Q6_K")


def test_a_damaged_source_is_refused(wide: Path, tmp_path: Path) -> None:
    write_gguf(open_checkpoint(wide), tmp_path / "a.gguf", kind="Q4_K_M")
    tensor = open_gguf(tmp_path / "a.gguf").tensors["blk.1.ffn_up.weight"]
    with (tmp_path / "a.gguf").open("r+b") as file:
        file.seek(tensor.start)
        file.write(np.float16(np.inf).tobytes())
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up"):
        write_gguf(open_checkpoint(tmp_path / "a.gguf"), tmp_path / "b.gguf", kind="Q4_K_M")
    assert not (tmp_path / "b.gguf").exists()


@pytest.mark.parametrize("kind", TENSOR_KINDS)
def test_rows_of_a_family_keep_their_order(kind: str, wide: Path, tmp_path: Path) -> None:
    """Rows of llama's q and k stand in another order in the file."""
    name = "model.layers.0.self_attn.q_proj.weight"
    write_gguf(open_checkpoint(wide), tmp_path / "m.gguf", kind="F32", kinds={name: kind})
    before, after = open_checkpoint(wide).read(name), open_checkpoint(tmp_path / "m.gguf").read(name)
    after = dequantize(after) if isinstance(after, Packed) else after.astype(np.float32)
    assert np.square(after - before).sum() < 0.1 * np.square(before).sum()


def test_what_is_no_type_of_a_tensor(wide: Path, tmp_path: Path, written: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="'Q4_K_M' is not written"):
        write_gguf(open_checkpoint(wide), tmp_path / "m.gguf", kind="F32", kinds={"lm_head.weight": "Q4_K_M"})
