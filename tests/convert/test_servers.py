"""Folders for servers: compressed-tensors' int4 and int8 as transformers reads them with that library, experts one by
one, what stays dense, adapters, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import partita_backends
from partita.adapters.read import open_adapter
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError, UnsupportedModel
from partita.quantization import Packed, dequantize, quantize_weight, unpack
from partita.text.load import load_tokenizer
from partita_convert.calibration import SAMPLE
from partita_convert.centred import centred
from partita_convert.convert import convert
from partita_convert.planning import Calibration, Request
from partita_convert.servers import _fused_by_servers

from .. import tiny_models
from ..models.test_quantized_folders import COUNT, NEAR, logits
from .test_adapters import peft_adapter

# peft asks transformers by a name that it has given up
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

Family = Callable[[str], Path]
TO = "compressed-tensors"
RNG = np.random.default_rng(8)


def written(source: Path, place: Path, quantize: str = "4", **more: Any) -> Path:
    convert(open_checkpoint(source), place, Request(to=TO, quantize=quantize, **more))
    return place


@pytest.mark.parametrize(
    ("name", "quantize", "dtype"),
    [
        ("llama", "4", None),
        ("qwen3", "8:32", None),
        ("gemma3", "4:32", None),
        ("phi3", "4:32", "float16"),
        ("qwen3_5", "4", "float32"),
        # transformers rounds values to the dtype of scales where it brings experts together, so that is the wide one
        ("qwen3_moe", "4", "float32"),
    ],
)
def test_transformers_reads_what_we_read(
    tiny_family: Family, tmp_path: Path, name: str, quantize: str, dtype: str | None
) -> None:
    place = written(tiny_family(name), tmp_path / "m", quantize, dtype=dtype)
    expected = tiny_models.reference_logits(place, tiny_models.tokens(place, COUNT))
    for backend in partita_backends.names():
        np.testing.assert_allclose(logits(place, backend), expected, rtol=0, atol=NEAR)


def test_the_config_is_one_that_the_library_knows(tiny_family: Family, tmp_path: Path) -> None:
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_named_modules
    from transformers import AutoConfig, AutoModelForCausalLM

    place = written(tiny_family("llama"), tmp_path / "m")
    block = json.loads((place / "config.json").read_text())["quantization_config"]
    known = QuantizationConfig.model_validate(block)
    (scheme,) = known.config_groups.values()
    assert scheme.weights is not None
    assert (scheme.weights.num_bits, scheme.weights.group_size, scheme.weights.symmetric) == (4, 32, True)
    assert scheme.weights.strategy == "group"
    config = AutoConfig.from_pretrained(place)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    matched = {name for name, _ in match_named_modules(model, scheme.targets, known.ignore)}
    packed = load_file(place / "model.safetensors")
    assert matched == {name.removesuffix(".weight_packed") for name in packed if name.endswith("_packed")}


def test_what_stays_dense(tiny_family: Family, tmp_path: Path) -> None:
    place = written(tiny_family("qwen3_moe"), tmp_path / "m", "4:64")
    tensors = load_file(place / "model.safetensors")
    dense = {name: value for name, value in tensors.items() if name.endswith("weight")}
    assert {value.dtype.name for value in dense.values()} == {"bfloat16"}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.gate.weight"} <= dense.keys()
    assert not [name for name in dense if name.endswith("_proj.weight")]
    expert = "model.layers.0.mlp.experts.0.down_proj.weight"
    scale, shape = tensors[f"{expert}_scale"], tensors[f"{expert}_shape"].tolist()
    assert tensors[f"{expert}_packed"].dtype == np.int32
    assert scale.dtype.name == "bfloat16"
    assert scale.shape == (shape[0], shape[1] // 32)
    config = json.loads((place / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization" not in config
    routers = [name for name in config["quantization_config"]["ignore"] if name.endswith(".mlp.gate")]
    assert len(routers) == sum(name.endswith(".mlp.gate.weight") for name in dense)


def test_what_projects_a_state_stays_dense(tiny_family: Family, tmp_path: Path) -> None:
    place = written(tiny_family("qwen3_5"), tmp_path / "m")
    ignore = json.loads((place / "config.json").read_text())["quantization_config"]["ignore"]
    packed = [name for name in load_file(place / "model.safetensors") if name.endswith("_packed")]
    assert packed
    assert not [name for name in packed if "linear_attn" in name]
    assert [name for name in ignore if name.endswith("linear_attn.out_proj")]


def test_integers_in_this_form_stay(tiny_family: Family, tmp_path: Path) -> None:
    first = written(tiny_family("llama"), tmp_path / "a")
    second = written(first, tmp_path / "b")
    before, after = (load_file(place / "model.safetensors") for place in (first, second))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value.view(np.uint8), after[name].view(np.uint8))
    assert json.loads((first / "config.json").read_text()) == json.loads((second / "config.json").read_text())


def test_a_source_in_integers_is_rounded_once_more(tiny_family: Family, tmp_path: Path) -> None:
    convert(open_checkpoint(tiny_family("llama")), tmp_path / "mlx", Request(quantize="8:32"))
    report = convert(open_checkpoint(tmp_path / "mlx"), tmp_path / "m", Request(to=TO, quantize="4:32"))
    errors = {tensor.name: tensor.error for tensor in report.tensors}
    assert 0.02 < errors["model.layers.0.self_attn.q_proj.weight"] < 0.2
    assert open_checkpoint(tmp_path / "m").stored_as("model.embed_tokens.weight") == "BF16"


# ---------------------------------------------------------------- rounding


def plain(x: np.ndarray, bits: int, group: int) -> np.ndarray:
    """The largest magnitude at the end of the range."""
    half = 2 ** (bits - 1)
    groups = x.reshape(len(x), -1, group)
    scale = (np.abs(groups).max(-1, keepdims=True) / (half - 1)).astype(ml_dtypes.bfloat16).astype(np.float32)
    return (np.clip(np.rint(groups / scale), -half, half - 1) * scale).reshape(x.shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_scales_by_search_are_better_than_by_the_largest(bits: int, dtype: str) -> None:
    x = RNG.standard_normal((32, 128)).astype(np.float32)
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    packed = centred(x, bits, 32, kind, None, "a weight")
    assert packed.scales.dtype == packed.biases.dtype == kind
    np.testing.assert_array_equal(
        packed.biases.astype(np.float32), -(2 ** (bits - 1)) * packed.scales.astype(np.float32)
    )
    found = np.square(dequantize(packed) - x).sum()
    assert found < (0.9 if bits == 4 else 1) * np.square(plain(x, bits, 32) - x).sum()
    half, steps = 2 ** (bits - 1), packed.scales.astype(np.float32).repeat(32, 1)
    best = np.clip(np.rint(x / steps), -half, half - 1) + half
    np.testing.assert_array_equal(unpack(packed.weight, bits), best)


def test_columns_that_matter_more_are_rounded_better() -> None:
    x, importance = RNG.standard_normal((64, 64)).astype(np.float32), np.ones(64)
    importance[:4] = 1000
    even = centred(x, 4, 32, np.dtype(np.float32), None, "a weight")
    weighed = centred(x, 4, 32, np.dtype(np.float32), importance, "a weight")
    first, second = (np.square(dequantize(packed) - x)[:, :4].sum() for packed in (even, weighed))
    assert second < 0.8 * first


def test_rows_of_zeros_and_small_numbers() -> None:
    x = np.zeros((4, 64), np.float32)
    x[1], x[2, 0], x[3] = 1e-30, 1e4, -1
    for kind in (np.float16, ml_dtypes.bfloat16):
        packed = centred(x, 4, 32, np.dtype(kind), None, "a weight")
        values = dequantize(packed)
        assert np.isfinite(values).all()
        assert not values[0].any()
        assert values[2, 0] == pytest.approx(1e4, rel=0.01)
        np.testing.assert_array_equal(values[3], -1)


def test_numbers_that_are_none() -> None:
    x = np.full((2, 32), np.nan, np.float32)
    with pytest.raises(DataError, match="w holds NaN or infinity"):
        centred(x, 4, 32, np.dtype(np.float32), None, "w")
    with pytest.raises(DataError, match="size of 48 does not divide"):
        centred(np.zeros((2, 48), np.float32), 4, 32, np.dtype(np.float32), None, "w")


def test_a_text_weighs_errors(tiny_family: Family, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_family("qwen3_moe"))
    tokens = load_tokenizer(source).encode(SAMPLE)
    calibration = Calibration(partita_backends.load("numpy", dtype="float32"), tokens, "a text")
    convert(source, tmp_path / "m", Request(to=TO, quantize="4:32", calibration=calibration))
    plain = written(tiny_family("qwen3_moe"), tmp_path / "n", "4:32")
    names = [f"model.layers.0.{name}.weight" for name in ("self_attn.q_proj", "mlp.experts.0.up_proj")]
    for name in names:
        a, b = (open_checkpoint(place).read(name) for place in (tmp_path / "m", plain))
        assert isinstance(a, Packed)
        assert isinstance(b, Packed)
        assert not np.array_equal(a.scales, b.scales)


# ---------------------------------------------------------------- adapters


def test_an_adapter_in_the_weights(tiny_family: Family, tmp_path: Path) -> None:
    adapter, _ = peft_adapter(tiny_family("llama"), tmp_path / "adapter")
    request = Request(to=TO, quantize="4", adapter=open_adapter(adapter))
    report = convert(open_checkpoint(tiny_family("llama")), tmp_path / "m", request)
    assert report.retained
    assert min(report.retained.values()) > 0.9
    expected = tiny_models.reference_logits(tmp_path / "m", tiny_models.tokens(tmp_path / "m", COUNT))
    np.testing.assert_allclose(logits(tmp_path / "m", "numpy"), expected, rtol=0, atol=NEAR)


def test_a_change_that_rounding_would_lose(tiny_family: Family, tmp_path: Path) -> None:
    """A base on the grid already: changes far below a step move nothing."""
    adapter, _ = peft_adapter(tiny_family("llama"), tmp_path / "adapter")
    small = open_adapter(adapter)
    for change in small.changes.values():
        change.b[:] *= 1e-3
    base = written(tiny_family("llama"), tmp_path / "base")
    with pytest.raises(DataError, match="of the adapter's change would be left in 4-bit:32") as caught:
        written(base, tmp_path / "refused", adapter=small, policy="refuse")
    assert caught.value.field == "adapter_loss"
    assert not (tmp_path / "refused").exists()
    source, request = open_checkpoint(base), Request(to=TO, quantize="4", adapter=small)
    kept = convert(source, tmp_path / "kept", replace(request, policy="keep"))
    assert min(kept.retained.values()) < 0.5
    assert not kept.raised
    report = convert(source, tmp_path / "m", replace(request, dtype="float32"))
    assert report.raised.keys() == report.retained.keys()
    assert min(report.retained.values()) > 0.99
    # with queries and values, keys stay dense, since servers have them in one matrix; what no adapter changes does not
    targets = {tensor.name: tensor.target for tensor in report.tensors}
    layer = "model.layers.1"
    assert {targets[f"{layer}.{name}.weight"] for name in ("self_attn.k_proj", "mlp.down_proj")} == {"float32"}
    assert {targets[f"{layer}.{name}.weight"] for name in ("self_attn.o_proj", "mlp.up_proj")} == {"4-bit:32"}
    expected = tiny_models.reference_logits(tmp_path / "m", tiny_models.tokens(tmp_path / "m", COUNT))
    np.testing.assert_allclose(logits(tmp_path / "m", "numpy"), expected, rtol=0, atol=NEAR)


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.v_proj.weight"), True),
        (("layers.0.self_attn.q_proj.weight", "layers.1.self_attn.q_proj.weight"), False),
        (("layers.0.mlp.gate_proj.weight", "layers.0.mlp.up_proj.weight"), True),
        (("layers.0.mlp.gate_proj.weight", "layers.0.mlp.down_proj.weight"), False),
        (("layers.0.mlp.experts.0.up_proj.weight", "layers.0.mlp.experts.9.down_proj.weight"), True),
        (("layers.0.mlp.experts.0.up_proj.weight", "layers.0.mlp.shared_expert.up_proj.weight"), False),
    ],
)
def test_weights_that_servers_fuse(names: tuple[str, str], alike: bool) -> None:
    first, second = map(_fused_by_servers, names)
    assert (first == second) == alike


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("quantize", ["3", "4:16", "4:", "mixed_3_6", "Q4_K_M", "measured:4"])
def test_recipes_of_other_forms(tiny_family: Family, tmp_path: Path, quantize: str) -> None:
    with pytest.raises(DataError, match=r"unknown `quantize` .* for `to` compressed-tensors; expected BITS"):
        written(tiny_family("llama"), tmp_path / "m", quantize)


def test_integers_are_asked_for(tiny_family: Family, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`to` compressed-tensors writes integers: say `quantize` 4"):
        convert(open_checkpoint(tiny_family("llama")), tmp_path / "m", Request(to=TO))


def test_experts_in_one_piece(tiny_family: Family, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="holds experts in one piece, for which `to` compressed-tensors has no"):
        written(tiny_family("gpt_oss"), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_affine_integers_are_not_taken_for_centred_ones() -> None:
    packed = quantize_weight(RNG.standard_normal((4, 64)).astype(np.float32), 4, 32)
    found = centred(packed, 4, 32, np.dtype(np.float32), None, "w")
    assert not np.array_equal(found.scales, packed.scales)
    np.testing.assert_array_equal(found.biases, -8 * found.scales)
