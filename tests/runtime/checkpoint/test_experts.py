"""Experts in every form that checkpoints keep them in give the same model; what does not go together is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint import experts
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.model.config import ExpertsConfig
from partita.model.families.parse import parse
from partita.model.layers import ExpertLinear, Linear, MoE, Router
from partita.model.load import load_decoder
from partita.quantization import dequantize, quantize_weight

from ... import bounds, tiny_models

Tensors = dict[str, np.ndarray]


def rewritten(source: Path, target: Path, change: Callable[[Tensors], Tensors], **config: Any) -> Path:
    """A folder like `source` whose tensors are `change` of its own, and whose config has these fields."""
    target.mkdir()
    own = json.loads((source / "config.json").read_text())
    kept = {key: value for key, value in (own | config).items() if value is not ...}
    (target / "config.json").write_text(json.dumps(kept))
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    save_file(
        {name: np.ascontiguousarray(value) for name, value in change(load_file(source / "model.safetensors")).items()},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    return target


def logits(folder: Path, tokens: list[int]) -> np.ndarray:
    ops = partita_backends.load("numpy")
    model = load_decoder(ops, open_checkpoint(folder))
    cache = Cache(ops, plan(model.config, KVFormat.parse("32")))
    return ops.to_numpy(model(ops, ops.array(np.array([tokens], np.int32)), cache, every=True))[0]


def stacked(tensors: Tensors, module: str) -> Tensors:
    """Qwen3-MoE's single matrices as stacks."""
    found, out = experts_of(tensors), {name: x for name, x in tensors.items() if ".experts." not in name}
    for mlp, projection in sorted({key[:2] for key in found}):
        count = len({key for key in found if key[:2] == (mlp, projection)})
        stack = np.stack([found[mlp, projection, expert] for expert in range(count)])
        out[f"{mlp}.{module}.{projection}.weight"] = stack
    return out


def experts_of(tensors: Tensors) -> dict[tuple[str, str, int], np.ndarray]:
    found = {}
    for name, value in tensors.items():
        if ".experts." in name:
            mlp, _, rest = name.partition(".experts.")
            expert, projection, _ = rest.split(".")
            found[mlp, projection, int(expert)] = value
    return found


def fused(tensors: Tensors) -> Tensors:
    """As a transformers module names them: gate above up."""
    out = {}
    for name, value in stacked(tensors, "x").items():
        if name.endswith("x.gate_proj.weight"):
            up = stacked(tensors, "x")[name.replace("gate_proj", "up_proj")]
            out[name.replace("x.gate_proj.weight", "experts.gate_up_proj")] = np.concatenate([value, up], 1)
        elif name.endswith("x.down_proj.weight"):
            out[name.replace("x.down_proj.weight", "experts.down_proj")] = value
        elif not name.endswith("x.up_proj.weight"):
            out[name] = value
    return out


@pytest.mark.parametrize(
    "form",
    [
        lambda tensors: stacked(tensors, "switch_mlp"),
        lambda tensors: stacked(tensors, "experts"),
        fused,
    ],
    ids=["mlx-lm", "mlx-lm of gpt-oss", "fused"],
)
def test_every_form_of_qwen3_moe_is_the_same_model(
    tiny_family: Callable[[str], Path], tmp_path: Path, form: Callable[[Tensors], Tensors]
) -> None:
    source = tiny_family("qwen3_moe")
    tokens = tiny_models.tokens(source, 24)
    other = rewritten(source, tmp_path / "m", form)
    bounds.assert_near(logits(other, tokens), logits(source, tokens), bounds.logits(source))


def split(tensors: Tensors) -> Tensors:
    """gpt-oss's fused tensors as mlx-lm's stacks."""
    out = {}
    for name, value in tensors.items():
        mlp, found, part = name.partition(".experts.")
        match part:
            case "gate_up_proj":
                for i, projection in enumerate(("gate_proj", "up_proj")):
                    out[f"{mlp}.experts.{projection}.weight"] = value.swapaxes(1, 2)[:, i::2]
            case "gate_up_proj_bias":
                for i, projection in enumerate(("gate_proj", "up_proj")):
                    out[f"{mlp}.experts.{projection}.bias"] = value[:, i::2]
            case "down_proj":
                out[f"{mlp}.experts.down_proj.weight"] = value.swapaxes(1, 2)
            case "down_proj_bias":
                out[f"{mlp}.experts.down_proj.bias"] = value
            case _:
                assert not found
                out[name] = value
    return out


def test_both_forms_of_gpt_oss_are_the_same_model(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny_family("gpt_oss")
    tokens = tiny_models.tokens(source, 60)
    other = rewritten(source, tmp_path / "m", split)
    bounds.assert_near(logits(other, tokens), logits(source, tokens), bounds.logits(source))


def as_blocks(tensors: Tensors) -> Tensors:
    """gpt-oss with random 4-bit floats for experts, as it is published."""
    rng, out = np.random.default_rng(2), {}
    for name, value in tensors.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            out[name] = value
            continue
        count, size, rows = value.shape
        out[f"{name}_blocks"] = rng.integers(0, 256, (count, rows, size // 32, 16), np.uint8)
        out[f"{name}_scales"] = rng.integers(121, 126, (count, rows, size // 32), np.uint8)
    return out


def test_mxfp4_blocks_equal_the_dequantized_model_of_transformers(
    tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    """The judge dequantizes the blocks itself, in its own code, and runs the dense model."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    said = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    source = tiny_family("gpt_oss")
    folder = rewritten(source, tmp_path / "m", as_blocks, quantization_config=said)
    tokens = tiny_models.tokens(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    parameters = dict(model.named_parameters())
    stored = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, value in stored.items():
            if name.endswith("_blocks"):
                scales = stored[name.replace("_blocks", "_scales")]
                dense = convert_moe_packed_tensors(torch.from_numpy(value), torch.from_numpy(scales))
                parameters[name.removesuffix("_blocks")].copy_(dense.float())
        expected = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    for backend in partita_backends.names():
        ops = partita_backends.load(backend, dtype="float32")
        decoder = load_decoder(ops, open_checkpoint(folder))
        cache = Cache(ops, plan(decoder.config, KVFormat.parse("32")))
        found = ops.to_numpy(decoder(ops, ops.array(np.array([tokens], np.int32)), cache, every=True))[0]
        bounds.assert_near(found, expected, bounds.logits(source))


def test_packed_experts_are_stacked_with_their_integers(tmp_path: Path) -> None:
    rng, tensors, packed = np.random.default_rng(0), {}, []
    for expert in range(3):
        packed.append(quantize_weight(rng.standard_normal((4, 64)).astype(np.float32), 4, 32))
        for part in ("weight", "scales", "biases"):
            tensors[f"m.mlp.experts.{expert}.gate_proj.{part}"] = getattr(packed[-1], part)
    stored = found_in(tmp_path / "m", tensors, quantization={"group_size": 32, "bits": 4})
    value = stored.weight("gate_proj")
    assert not isinstance(value, np.ndarray)
    assert stored.shape("gate_proj") == value.shape == (3, 4, 64)
    for expert in range(3):
        np.testing.assert_array_equal(value.weight[expert], packed[expert].weight)
        np.testing.assert_array_equal(dequantize(value)[expert], dequantize(packed[expert]))


def found_in(path: Path, tensors: Tensors, **config: Any) -> experts.StoredExperts:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return experts.find(open_checkpoint(path))["m.mlp"]


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"m.mlp.experts.0.gate_proj.weight": ones(4, 8), "m.mlp.experts.2.gate_proj.weight": ones(4, 8)},
            r"no tensor 'm\.mlp\.experts\.1\.gate_proj\.weight'",
        ),
        (
            {"m.mlp.experts.0.gate_proj.weight": ones(4, 8), "m.mlp.experts.1.gate_proj.weight": ones(4, 4)},
            r"m\.mlp\.experts: experts have gate_proj of different shapes: \[\(4, 4\), \(4, 8\)\]",
        ),
        ({"m.mlp.experts.gate_up_proj": ones(2, 8)}, r"m\.mlp\.experts: gate_up_proj has shape \(2, 8\)"),
        ({"m.mlp.experts.gate_up_proj": ones(2, 7, 8)}, "gate_up_proj has 7 rows, which gate and up cannot share"),
        ({"m.mlp.experts.gate_up_proj_blocks": np.ones((2, 8), np.uint8)}, r"gate_up_proj has shape \(2, 8\)"),
        (
            {"m.mlp.switch_mlp.gate_proj.weight": ones(2, 4, 8), "m.mlp.experts.0.gate_proj.weight": ones(4, 8)},
            r"m\.mlp keeps its experts in two forms",
        ),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path: Path, tensors: Tensors, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        found_in(tmp_path / "m", tensors).weight("gate_proj")


def test_experts_of_different_formats_are_named(tmp_path: Path) -> None:
    packed = quantize_weight(ones(4, 64), 4, 32)
    tensors = {f"m.mlp.experts.0.gate_proj.{part}": getattr(packed, part) for part in ("weight", "scales", "biases")}
    tensors["m.mlp.experts.1.gate_proj.weight"] = ones(4, 64)
    with pytest.raises(CheckpointError, match=r"m\.mlp\.experts: .*different formats"):
        found_in(tmp_path / "m", tensors, quantization={"group_size": 32, "bits": 4}).weight("gate_proj")


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("qwen3_moe", {"moe_intermediate_size": 16}, r"gate_proj of the experts of .* has shape \(8, 32, 64\)"),
        ("qwen3_moe", {"num_local_experts": 7}, r"shape \(8, 64\), the config says \(7, 64\)"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"no tensor 'model\.layers\.1\.mlp\.gate_proj\.weight'"),
        ("qwen3_moe", {"mlp_only_layers": []}, r"model\.layers\.2\.mlp has no experts"),
        ("gpt_oss", {"intermediate_size": 32}, r"gate_proj of the experts of .* has shape \(6, 64, 64\)"),
    ],
)
def test_a_config_that_says_otherwise_is_named(
    tiny_family: Callable[[str], Path], tmp_path: Path, name: str, config: dict[str, Any], message: str
) -> None:
    folder = rewritten(tiny_family(name), tmp_path / "m", lambda tensors: tensors, **config)
    with pytest.raises(CheckpointError, match=message):
        load_decoder(partita_backends.load("numpy"), open_checkpoint(folder))


@pytest.mark.parametrize(
    ("name", "field", "value", "error", "message"),
    [
        ("gpt_oss", "swiglu_limit", 5.0, UnsupportedModel, r"swiglu_limit 5\.0 .* only 7\.0 is"),
        ("gpt_oss", "swiglu_alpha", 1.0, UnsupportedModel, r"swiglu_alpha 1\.0 .* only 1\.702 is"),
        ("gpt_oss", "num_experts_per_tok", 7, CheckpointError, "num_experts_per_tok 7 is more than there are, 6"),
        ("gpt_oss", "num_experts", 8, CheckpointError, r"num_experts and num_local_experts are \[6, 8\]"),
        ("qwen3_moe", "num_local_experts", ..., CheckpointError, "num_experts must be an integer"),
        ("qwen3_moe", "mlp_only_layers", ["1"], CheckpointError, "mlp_only_layers must be a list of layer numbers"),
        ("qwen3_moe", "decoder_sparse_step", 0, CheckpointError, "decoder_sparse_step must be an integer"),
        ("qwen3_moe", "head_dim", ..., CheckpointError, "head_dim must be an integer"),
    ],
)
def test_fields_that_cannot_be_are_named(
    tiny_family: Callable[[str], Path], name: str, field: str, value: Any, error: type[Exception], message: str
) -> None:
    config = json.loads((tiny_family(name) / "config.json").read_text()) | {field: value}
    with pytest.raises(error, match=message):
        parse({key: value for key, value in config.items() if value is not ...})


def test_a_published_config_of_gpt_oss_is_read() -> None:
    """As published: older rope fields, both names for the chosen experts, the format of its blocks."""
    config = parse(
        {
            "model_type": "gpt_oss",
            "attention_bias": True,
            "experts_per_token": 4,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2880,
            "initial_context_length": 4096,
            "intermediate_size": 2880,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "max_position_embeddings": 131072,
            "num_attention_heads": 64,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 24,
            "num_key_value_heads": 8,
            "num_local_experts": 32,
            "quantization_config": {"quant_method": "mxfp4"},
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": False,
            },
            "rope_theta": 150000,
            "sliding_window": 128,
            "swiglu_limit": 7.0,
            "tie_word_embeddings": False,
            "vocab_size": 201088,
        }
    )
    assert [layer.window for layer in config.layers[:3]] == [128, None, 128]
    assert config.experts is not None
    assert (config.experts.count, config.experts.active, config.experts.intermediate_size) == (32, 4, 2880)
    assert config.sink_logits
    assert config.attention_out_bias
    rope = config.layers[0].rope
    assert rope is not None
    assert (rope.scaling, rope.factor, rope.truncate) == ("yarn", 32.0, False)
    assert rope.attention_factor == pytest.approx(0.1 * np.log(32) + 1)


@pytest.mark.parametrize("backend", partita_backends.names())
@pytest.mark.parametrize("kind", ["plain", "normalized", "after"])
def test_routing_equals_its_formula(backend: str, kind: str) -> None:
    """One token at a time, in float64."""
    rng = np.random.default_rng(3)
    ops = partita_backends.load(backend, dtype="float32")
    router = rng.standard_normal((5, 16)).astype(np.float32)
    gate, up, down = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 8, 16), (5, 8, 16), (5, 16, 8)))
    x = rng.standard_normal((2, 3, 16)).astype(np.float32)
    score = "softmax_chosen" if kind == "after" else "softmax"
    config = ExpertsConfig(5, 2, 8, normalize=kind == "normalized", score=score)
    experts_of = (ExpertLinear(ops.prepare_experts(weight)) for weight in (gate, up, down))
    layer = MoE(Router(Linear(ops.prepare(router)), config), *experts_of, activation="silu")
    found = ops.to_numpy(layer(ops, ops.array(x)))
    for index in np.ndindex(2, 3):
        token = x[index].astype(np.float64)
        scores = router @ token
        chosen = np.argsort(-scores)[:2]
        shares = np.exp(scores) / np.exp(scores).sum()
        weights = shares[chosen] if kind == "plain" else np.exp(scores[chosen]) / np.exp(scores[chosen]).sum()
        expected = np.zeros(16)
        for expert, weight in zip(chosen, weights, strict=True):
            hidden = gate[expert] @ token
            expected += weight * (down[expert] @ (hidden / (1 + np.exp(-hidden)) * (up[expert] @ token)))
        # there are sums of 16, 16 and 8, and functions; scores of the router reach 10
        bounds.assert_near(found[index], expected, bounds.drift(16 + 16 + 8 + 16) + 10 * bounds.drift(16))


def test_blocks_keep_bfloat16_beside_them(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    """Published gpt-oss is bfloat16 outside its experts."""

    def change(tensors: Tensors) -> Tensors:
        floats = {name: x.astype(ml_dtypes.bfloat16) for name, x in as_blocks(tensors).items() if x.dtype != np.uint8}
        return as_blocks(tensors) | floats

    source = tiny_family("gpt_oss")
    folder = rewritten(source, tmp_path / "m", change, quantization_config={"quant_method": "mxfp4"})
    stored = experts.find(open_checkpoint(folder))["model.layers.0.mlp"]
    assert stored.stored_as("gate_proj") == "MXFP4"
    assert stored.bias("up_proj").dtype == ml_dtypes.bfloat16
    assert np.isfinite(logits(folder, tiny_models.tokens(source, 8))).all()
