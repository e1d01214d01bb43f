"""Whole models as others quantize them: logits against transformers' of the same values dense, on every backend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.open import open_checkpoint
from partita.model.load import load_decoder

from .. import tiny_models
from ..stored_integers import Stored, awq, folders, gptq, rounded

COUNT = 48
NEAR = 1e-4
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


def as_gptq(bits: int, group: int, less: int = 1, **how: Any) -> Stored:
    def store(module: str, weight: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        whole = rounded(weight, bits, min(group, weight.shape[1]), **how)
        return gptq(module, whole, bits, less=less), whole.values

    return store


def as_awq(module: str, weight: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    whole = rounded(weight, 4, 32)
    return awq(module, whole), whole.values


def as_four_bits(kind: str, nested: bool) -> Stored:
    from bitsandbytes import functional

    def store(module: str, weight: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        codes, state = functional.quantize_4bit(
            torch.tensor(weight), quant_type=kind, compress_statistics=nested, blocksize=32
        )
        parts = {f"{module}.weight.{name}": value.numpy() for name, value in state.as_dict(packed=True).items()}
        return parts | {f"{module}.weight": codes.numpy()}, functional.dequantize_4bit(codes, state).numpy()

    return store


def as_bytes(module: str, weight: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    largest = np.abs(weight).max(1).astype(np.float32)
    q = np.rint(weight * (127 / largest)[:, None]).astype(np.int8)
    return {f"{module}.weight": q, f"{module}.SCB": largest}, q * (largest / 127)[:, None]


def as_small_floats(module: str, weight: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """modelopt's NVFP4."""
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    whole = np.float32(np.abs(weight).max() / (6 * 448))
    groups = weight.reshape(len(weight), -1, 16)
    scale = (np.abs(groups).max(-1) / 6 / whole).astype(ml_dtypes.float8_e4m3fn)
    step = (scale.astype(np.float32) * whole)[..., None]
    code = np.abs(np.abs(groups / np.maximum(step, 1e-30))[..., None] - table).argmin(-1).astype(np.uint8)
    values = np.copysign(table[code], groups) * step
    flat = (code | (np.signbit(groups).astype(np.uint8) << 3)).reshape(weight.shape)
    parts = {"weight": flat[:, 0::2] | flat[:, 1::2] << 4, "weight_scale": scale, "weight_scale_2": whole}
    return {f"{module}.{name}": np.asarray(value) for name, value in parts.items()}, values.reshape(weight.shape)


FORMS: dict[str, tuple[dict[str, Any], Stored]] = {
    "gptq": (GPTQ, as_gptq(4, 32)),
    "gptq-3-bits": (GPTQ | {"bits": 3}, as_gptq(3, 32)),
    "gptq-8-bits-a-row": (GPTQ | {"bits": 8, "group_size": -1}, as_gptq(8, 1 << 30)),
    "gptq-v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, as_gptq(4, 32, 0)),
    "gptq-ordered": (GPTQ | {"desc_act": True}, as_gptq(4, 32, seed=3)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, as_awq),
    "auto-round": ({"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}, as_awq),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, as_small_floats),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, as_four_bits("nf4", True)),
    "fp4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, as_four_bits("fp4", False)),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, as_bytes),
}


def logits(folder: Path, backend: str) -> np.ndarray:
    ops = partita_backends.load(backend, dtype="float32")
    decoder = load_decoder(ops, open_checkpoint(folder))
    spec = plan(decoder.config, KVFormat.parse("32"), context=64, sinks=0, chunk=COUNT)
    ids = ops.array(np.array([tiny_models.tokens(folder, COUNT)], np.int32))
    return ops.to_numpy(decoder(ops, ids, Cache(ops, spec), every=True))[0]


@pytest.fixture(scope="module")
def written(
    tiny_family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Path, np.ndarray]]:
    """written(form, family): the folder, and transformers' logits of the same values dense; made once."""
    made: dict[tuple[str, str], tuple[Path, np.ndarray]] = {}

    def get(form: str, family: str) -> tuple[Path, np.ndarray]:
        if (form, family) not in made:
            place = tmp_path_factory.mktemp(form)
            quantized, dense = folders(tiny_family(family), place, *FORMS[form])
            made[form, family] = quantized, tiny_models.reference_logits(dense, tiny_models.tokens(dense, COUNT))
        return made[form, family]

    return get


@pytest.mark.parametrize("backend", partita_backends.names())
@pytest.mark.parametrize("form", FORMS)
def test_logits_of_what_integers_stand_for(written: Any, form: str, backend: str) -> None:
    folder, expected = written(form, "llama")
    np.testing.assert_allclose(logits(folder, backend), expected, rtol=0, atol=NEAR)


# ---------------------------------------------------------------- compressed-tensors, which transformers reads itself

ARGS: dict[str, dict[str, Any]] = {
    "pack-quantized": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True},
    "pack-quantized a row": {"num_bits": 8, "strategy": "channel", "symmetric": True},
    "naive-quantized": {"num_bits": 8, "strategy": "channel", "symmetric": False},
}


def compress(source: Path, place: Path, form: str, args: dict[str, Any]) -> Path:
    """A folder as the library itself writes it, by its model compressor."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization import apply_quantization_config as apply
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=form)
    apply(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format=form))
    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            groups = module.weight.data.unflatten(1, (-1, args.get("group_size", module.weight.shape[1])))
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
            module.weight_scale.data = scale
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype)
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=form)
    compressor.compress_model(model)
    model.save_pretrained(place)
    compressor.update_config(str(place))
    for path in source.glob("*token*"):
        shutil.copy(path, place)
    return place


@pytest.mark.parametrize("form", ARGS)
def test_logits_of_compressed_tensors_as_transformers_reads_them(
    tiny_family: Callable[[str], Path], tmp_path: Path, form: str
) -> None:
    place = compress(tiny_family("llama"), tmp_path / "m", form.split()[0], ARGS[form])
    block = json.loads((place / "config.json").read_text())["quantization_config"]
    assert block["quant_method"] == "compressed-tensors"
    assert open_checkpoint(place).stored_as("model.layers.0.self_attn.q_proj.weight").endswith(("-bit:32", "-bit:64"))
    expected = tiny_models.reference_logits(place, tiny_models.tokens(place, COUNT))
    for backend in partita_backends.names():
        np.testing.assert_allclose(logits(place, backend), expected, rtol=0, atol=NEAR)
