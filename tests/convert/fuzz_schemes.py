"""Small folders in every way that weights are stored by `quant_method`, to be damaged: tensors, quantization_config."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np

Form = tuple[dict[str, np.ndarray], dict[str, Any]]
ROWS, SIZE, GROUP = 32, 128, 32
GROUPS = SIZE // GROUP


def words(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 2**31, shape, np.int32)


def scales(*shape: int) -> np.ndarray:
    return np.full(shape, 0.01, np.float16)


def gptq() -> Form:
    index = np.arange(SIZE, dtype=np.int32) // GROUP
    parts = {"qzeros": words(GROUPS, ROWS // 8), "scales": scales(GROUPS, ROWS)}
    tensors = {f"model.{module}.qweight": words(SIZE // 8, ROWS) for module in "ab"}
    tensors |= {f"model.{module}.{part}": value for module in "ab" for part, value in parts.items()}
    tensors |= {"model.a.g_idx": index, "model.b.g_idx": np.ascontiguousarray(index[::-1])}
    return tensors, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True}


def awq() -> Form:
    tensors = {"qweight": words(SIZE, ROWS // 8), "qzeros": words(GROUPS, ROWS // 8), "scales": scales(GROUPS, ROWS)}
    block = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    return {f"model.a.{name}": value for name, value in tensors.items()}, block


def compressed() -> Form:
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
    bytes_ = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}, "group_1": {"targets": [], "weights": bytes_}}
    tensors = {
        "model.a.weight_packed": words(ROWS, SIZE // 8),
        "model.a.weight_scale": scales(ROWS, GROUPS),
        "model.a.weight_zero_point": words(ROWS // 8, GROUPS),
        "model.a.weight_shape": np.array([ROWS, SIZE]),
        "model.a.weight_g_idx": np.arange(SIZE, dtype=np.int32) // GROUP,
        "model.b.weight": words(ROWS, SIZE // 4).view(np.int8),
        "model.b.weight_scale": scales(ROWS, 1),
        "model.b.weight_zero_point": np.ones((ROWS, 1), np.int8),
    }
    return tensors, {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


def tables() -> Form:
    """bitsandbytes: doubly quantized codes, and int8."""
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, SIZE], "nested_blocksize": 16}
    state |= {"nested_dtype": "float32", "nested_offset": 0.5}
    tensors = {
        "model.a.weight": words(ROWS * SIZE // 8, 1).view(np.uint8).reshape(-1, 1),
        "model.a.weight.absmax": words(ROWS * SIZE // 256).view(np.uint8),
        "model.a.weight.nested_absmax": np.ones(ROWS * SIZE // 1024, np.float32),
        "model.a.weight.nested_quant_map": np.linspace(-1, 1, 256, dtype=np.float32),
        "model.a.weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        "model.a.weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
        "model.b.weight": words(ROWS, SIZE // 4).view(np.int8),
        "model.b.SCB": np.ones(ROWS, np.float32),
        "model.b.weight_format": np.zeros(1, np.uint8),
    }
    return tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True}


def small_floats() -> Form:
    """modelopt: NVFP4 and 8-bit floats with exponents."""
    codes = words(ROWS, SIZE // 8).view(np.uint8)
    tensors = {
        "model.a.weight": codes,
        "model.a.weight_scale": np.ones((ROWS, SIZE // 16), ml_dtypes.float8_e4m3fn),
        "model.a.weight_scale_2": np.ones((), np.float32),
        "model.a.input_scale": np.ones((), np.float32),
        "model.b.weight": np.ones((ROWS, SIZE), ml_dtypes.float8_e4m3fn),
        "model.b.weight_scale": np.full((ROWS, SIZE // 32), 127, np.uint8),
    }
    return tensors, {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": 1}}


FORMS = {"gptq": gptq, "awq": awq, "compressed": compressed, "tables": tables, "small_floats": small_floats}
