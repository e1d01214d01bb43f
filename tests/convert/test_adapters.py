"""Adapters of PEFT and mlx-lm: what they make of a base beside what their own libraries make of it, and both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from safetensors.numpy import load_file, save_file

import partita_backends
from partita.adapters.read import fused, open_adapter
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError, UnsupportedModel
from partita.model.load import load_decoder
from partita.quantization import Packed, dequantize, quantize_weight
from partita_convert.adapters import fuse_quantized, retained_share, write_mlx_lm, write_peft
from partita_convert.write_folder import write_huggingface, write_mlx

from .. import bounds, tiny_models

# peft asks transformers by a name that it has given up, and says what it saves
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),  # as is wanted
]

Family = Callable[[str], Path]
RNG = np.random.default_rng(6)


def logits(checkpoint: Checkpoint, tokens: list[int]) -> np.ndarray:
    ops = partita_backends.load("numpy")
    decoder = load_decoder(ops, checkpoint)
    cache = Cache(ops, plan(decoder.config, KVFormat.parse("32"), context=None, chunk=len(tokens)))
    return np.asarray(ops.to_numpy(decoder(ops, ops.array(np.array([tokens], np.int32)), cache, every=True))[0])


# ---------------------------------------------------------------- PEFT


def peft_adapter(base: Path, folder: Path, **settings: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """An adapter with random matrices, saved by peft, and every weight of peft's merged model."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(config | settings)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn_like(parameter) * 0.05
                parameter.copy_(parameter * 1.1 + noise if "magnitude" in name else parameter + noise)
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload()
    return folder, {name: value.detach().numpy() for name, value in merged.state_dict().items()}


VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.\d+\.mlp.down_proj": 6, "^model.layers.1.self_attn.v_proj": 3},
        "alpha_pattern": {"v_proj": 11, "model.layers.0.self_attn.q_proj": 5},
    },
    "some layers": {"layers_to_transform": [1, 3], "target_modules": ["k_proj", "gate_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "the head whole": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_as_peft_merges(tiny_family: Family, tmp_path, variant):
    base = tiny_family("llama-yarn")  # its embedding and head are two
    folder, expected = peft_adapter(base, tmp_path / "a", **VARIANTS[variant])
    adapter = open_adapter(folder)
    assert adapter.kind == "peft"
    checkpoint = fused(open_checkpoint(base), adapter)
    changed = set()
    for name in checkpoint.names():
        value = checkpoint.read(name)
        assert isinstance(value, np.ndarray)
        assert value.shape == checkpoint.shape(name)
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        if not np.array_equal(value, open_checkpoint(base).read(name)):
            changed.add(name)
    assert set(adapter.changes) <= changed <= {*adapter.changes, *adapter.replaced}


@pytest.mark.parametrize(
    ("family", "targets"),
    [("llama", ["q_proj", "o_proj", "up_proj"]), ("phi3", ["qkv_proj", "gate_up_proj"]), ("qwen3", ["k_proj"])],
)
def test_logits_as_pefts_merged_model(tiny_family: Family, tmp_path, family, targets):
    base = tiny_family(family)
    folder, merged = peft_adapter(base, tmp_path / "a", target_modules=targets)
    tokens = tiny_models.tokens(base, 24)
    plain = open_checkpoint(base)
    whole = tmp_path / "merged"
    whole.mkdir()
    (whole / "config.json").write_text(json.dumps(plain.config))
    save_file({name: np.ascontiguousarray(merged[name]) for name in plain.names()}, whole / "model.safetensors")
    expected = tiny_models.reference_logits(whole, tokens)
    ours = logits(fused(plain, open_adapter(folder)), tokens)
    bounds.assert_near(ours, expected, bounds.logits(base))
    assert np.abs(logits(plain, tokens) - expected).max() > 0.01  # the adapter does something


# ---------------------------------------------------------------- mlx-lm


def mlx_adapter(base: Path, folder: Path, kind: str, keys: list[str] | None) -> dict[str, np.ndarray]:
    """An adapter with random matrices in mlx-lm's form, and every weight of mlx-lm's fused model."""
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    mx.random.seed(2)
    parameters: dict[str, Any] = {"rank": 4, "scale": 2.5, "dropout": 0.0}
    if keys is not None:
        parameters["keys"] = keys
    model, _ = load_model(base)
    model.freeze()
    linear_to_lora_layers(model, 3, parameters, use_dora=kind == "dora")
    trained = {}
    for name, value in tree_flatten(model.trainable_parameters()):
        trained[name] = value * 1.05 + mx.random.normal(value.shape) * 0.05
    model.update(tree_unflatten(list(trained.items())))
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), trained)
    config = {"fine_tune_type": kind, "num_layers": 3, "lora_parameters": parameters, "model": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model.update_modules(tree_unflatten([(n, m.fuse()) for n, m in model.named_modules() if hasattr(m, "fuse")]))
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("lora", ["self_attn.q_proj", "mlp.down_proj"]),
        ("dora", ["self_attn.q_proj", "self_attn.v_proj"]),
        ("lora", None),
        ("lora", ["model.embed_tokens", "self_attn.k_proj"]),
    ],
)
@pytest.mark.parametrize("family", ["llama", "llama-yarn"])  # with a tied embedding, and without
def test_fused_as_mlx_lm_fuses(tiny_family: Family, tmp_path, family, kind, keys):
    expected = mlx_adapter(tiny_family(family), tmp_path / "a", kind, keys)
    adapter = open_adapter(tmp_path / "a")
    assert (adapter.kind, adapter.base_model, adapter.rank) == ("mlx-lm", "some/base", 4)
    assert adapter.is_dora == (kind == "dora")
    checkpoint = fused(open_checkpoint(tiny_family(family)), adapter)
    for name in checkpoint.names():
        if name in expected:
            np.testing.assert_allclose(checkpoint.read(name), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert set(adapter.changes) <= set(checkpoint.names())


def test_stacks_of_experts(tmp_path):
    base = random_base(tmp_path / "base", {"model.layers.0.mlp.switch_mlp.up_proj.weight": (3, 16, 32)})
    module = "model.layers.0.mlp.switch_mlp.up_proj"
    a, b = normal(3, 4, 32), normal(3, 16, 4)
    folder = mlx_folder(tmp_path / "a", {f"{module}.lora_a": a, f"{module}.lora_b": b})
    checkpoint = open_checkpoint(base)
    value = fused(checkpoint, open_adapter(folder)).read(f"{module}.weight")
    expected = checkpoint.read(f"{module}.weight") + 2.0 * np.einsum("eor,eri->eoi", b, a)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- small ones, made by hand


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def random_base(path: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    save_file({name: normal(*shape) for name, shape in shapes.items()}, path / "model.safetensors")
    return path


Q = "model.layers.0.self_attn.q_proj"


def peft_folder(path: Path, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    if tensors is None:
        tensors = {f"base_model.model.{Q}.lora_A.weight": normal(4, 32)}
        tensors |= {f"base_model.model.{Q}.lora_B.weight": normal(16, 4)}
    base = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "some/base"}
    (path / "adapter_config.json").write_text(json.dumps(base | config))
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def mlx_folder(path: Path, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    if tensors is None:
        tensors = {f"{Q}.lora_a": normal(32, 4), f"{Q}.lora_b": normal(4, 16)}
    base = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.1}}
    (path / "adapter_config.json").write_text(json.dumps(base | config))
    save_file(tensors, path / "adapters.safetensors")
    return path


def test_what_an_adapter_says_of_itself(tmp_path):
    adapter = open_adapter(peft_folder(tmp_path / "a", lora_dropout=0.25))
    assert (adapter.rank, adapter.targets, adapter.dropout) == (4, ("q_proj",), 0.25)
    change = adapter.changes[f"{Q}.weight"]
    assert (change.shape, change.scale) == ((16, 32), 2.0)
    delta = adapter.delta(f"{Q}.weight")
    np.testing.assert_allclose(delta, 2 * change.b @ change.a, rtol=1e-6)
    assert adapter.delta("model.norm.weight") is None


def test_a_dense_base_keeps_its_dtype_and_a_packed_one_becomes_dense(tmp_path):
    import ml_dtypes

    adapter = open_adapter(peft_folder(tmp_path / "a"))
    base = random_base(tmp_path / "base", {f"{Q}.weight": (16, 32), "other.weight": (2, 32)})
    write_huggingface(open_checkpoint(base), tmp_path / "half", dtype="bfloat16")
    half = fused(open_checkpoint(tmp_path / "half"), adapter)
    value = half.read(f"{Q}.weight")
    assert isinstance(value, np.ndarray)
    assert value.dtype == ml_dtypes.bfloat16
    assert half.stored_as(f"{Q}.weight") == "BF16"
    write_mlx(open_checkpoint(base), tmp_path / "four", transform=lambda _, x: quantize_weight(x, 4, 32))  # pyright: ignore
    packed = open_checkpoint(tmp_path / "four")
    four = fused(packed, adapter)
    stored, delta = packed.read(f"{Q}.weight"), adapter.delta(f"{Q}.weight")
    assert isinstance(stored, Packed)
    assert delta is not None
    np.testing.assert_array_equal(four.read(f"{Q}.weight"), dequantize(stored) + delta)
    assert four.stored_as(f"{Q}.weight") == "F32"
    other = four.read("other.weight")
    assert isinstance(other, Packed)
    assert four.fingerprint() != packed.fingerprint()


def test_names_that_stand_a_level_apart(tmp_path):
    """An adapter of the model without its head says `layers.0`, or the base is held under another name."""
    tensors = {"base_model.model.layers.0.self_attn.q_proj.lora_A.weight": normal(4, 32)}
    tensors |= {"base_model.model.layers.0.self_attn.q_proj.lora_B.weight": normal(16, 4)}
    adapter = open_adapter(peft_folder(tmp_path / "a", tensors))
    base = open_checkpoint(random_base(tmp_path / "base", {f"{Q}.weight": (16, 32)}))
    assert not np.array_equal(fused(base, adapter).read(f"{Q}.weight"), base.read(f"{Q}.weight"))


# ---------------------------------------------------------------- written


def rich(tmp_path: Path) -> Path:
    """Two ranks, two scales, bfloat16, lengths, an embedding."""
    import ml_dtypes

    tensors: dict[str, np.ndarray] = {}
    for module, rank in ((Q, 4), (Q.replace(".0.", ".1."), 2)):
        tensors[f"base_model.model.{module}.lora_A.weight"] = normal(rank, 32).astype(ml_dtypes.bfloat16)
        tensors[f"base_model.model.{module}.lora_B.weight"] = normal(16, rank)
        tensors[f"base_model.model.{module}.lora_magnitude_vector"] = normal(16)
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 7}}
    return peft_folder(tmp_path / "rich", tensors, use_dora=True, use_rslora=True, **patterns)


def same(first: Path, second: Path) -> None:
    one, two = open_adapter(first), open_adapter(second)
    assert set(one.changes) == set(two.changes)
    for name, change in one.changes.items():
        other = two.changes[name]
        assert change.scale == other.scale
        for part in ("a", "b", "magnitude"):
            before, after = getattr(change, part), getattr(other, part)
            assert (before is None) == (after is None)
            if before is not None:
                assert before.dtype == after.dtype
                np.testing.assert_array_equal(before, after)
    assert set(one.replaced) == set(two.replaced)


@pytest.mark.parametrize("make", [peft_folder, mlx_folder])
def test_there_and_back(tmp_path, make):
    source = make(tmp_path / "a")
    write_mlx_lm(open_adapter(source), tmp_path / "mlx")
    write_peft(open_adapter(tmp_path / "mlx"), tmp_path / "peft")
    write_mlx_lm(open_adapter(tmp_path / "peft"), tmp_path / "again")
    for name in ("mlx", "peft", "again"):
        same(source, tmp_path / name)
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (tmp_path / "mlx" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_ranks_and_scales_that_differ(tmp_path):
    source = rich(tmp_path)
    write_peft(open_adapter(source), tmp_path / "peft")
    same(source, tmp_path / "peft")
    write_mlx_lm(open_adapter(source), tmp_path / "mlx")
    before, after = open_adapter(source), open_adapter(tmp_path / "mlx")
    assert {change.rank for change in after.changes.values()} == {4}
    base = normal(16, 32)
    for name, change in before.changes.items():
        np.testing.assert_allclose(after.changes[name].applied(base), change.applied(base), rtol=1e-5, atol=1e-6)


def test_peft_takes_what_is_written(tiny_family: Family, tmp_path):
    """From mlx-lm's form to PEFT's, and PEFT merges it as mlx-lm fuses it."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    base = tiny_family("llama-yarn")
    expected = mlx_adapter(base, tmp_path / "a", "lora", ["self_attn.q_proj", "mlp.up_proj"])
    write_peft(open_adapter(tmp_path / "a"), tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["target_modules"], config["layers_to_transform"]) == (["q_proj", "up_proj"], [1, 2, 3])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "peft").merge_and_unload()
    for name, value in merged.state_dict().items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_mlx_lm_takes_what_is_written(tiny_family: Family, tmp_path):
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    base = tiny_family("llama-yarn")
    folder, expected = peft_adapter(base, tmp_path / "a", **VARIANTS["some layers"])
    write_mlx_lm(open_adapter(folder), tmp_path / "mlx")
    model = load_adapters(load_model(base)[0], str(tmp_path / "mlx"))
    model.update_modules(tree_unflatten([(n, m.fuse()) for n, m in model.named_modules() if hasattr(m, "fuse")]))
    for name, value in tree_flatten(model.parameters()):
        np.testing.assert_allclose(np.array(value), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_a_form_cannot_hold(tmp_path):
    tensors = load_file(peft_folder(tmp_path / "a") / "adapter_model.safetensors")
    whole = tensors | {"base_model.model.lm_head.weight": normal(8, 32)}
    adapter = open_adapter(peft_folder(tmp_path / "b", whole, modules_to_save=["lm_head"]))
    with pytest.raises(UnsupportedModel, match=r"cannot hold lm_head\.weight whole"):
        write_mlx_lm(adapter, tmp_path / "out")
    write_peft(adapter, tmp_path / "peft")
    same(tmp_path / "b", tmp_path / "peft")
    module = "model.layers.0.mlp.switch_mlp.up_proj"
    stack = mlx_folder(tmp_path / "c", {f"{module}.lora_a": normal(3, 4, 32), f"{module}.lora_b": normal(3, 16, 4)})
    with pytest.raises(UnsupportedModel, match="adapts a stack of experts"):
        write_peft(open_adapter(stack), tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):
        write_peft(adapter, tmp_path / "peft")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what quantization leaves


def low_rank(rows: int, columns: int, size: float) -> np.ndarray:
    product = normal(rows, 4) @ normal(4, columns)
    return (product * (size / np.sqrt(np.square(product).mean()))).astype(np.float32)


def test_a_small_change_is_lost_on_a_grid_and_kept_off_it():
    """The trap: fusing into weights that are quantized already. The step at 4 bits is about 0.25 here."""
    weight, delta = normal(64, 256), low_rank(64, 256, 0.01)
    packed = quantize_weight(weight, 4, 64)
    written, share = fuse_quantized(packed, delta, 4, 64, quantize_weight, policy="keep")
    assert isinstance(written, Packed)
    assert share < 0.5  # what is left comes from groups whose ends moved
    assert share == retained_share(quantize_weight(dequantize(packed), 4, 64), delta, written)
    _, free = fuse_quantized(weight, low_rank(64, 256, 0.1), 4, 64, quantize_weight, policy="keep")
    assert 0.9 < free < 1.1


def test_bits_are_raised_until_the_change_is_kept():
    weight, delta = normal(64, 256), low_rank(64, 256, 0.03)
    packed = quantize_weight(weight, 4, 64)
    written, share = fuse_quantized(packed, delta, 4, 64, quantize_weight)
    assert isinstance(written, Packed)
    assert written.bits > 4
    assert share >= 0.9
    tiny = low_rank(64, 256, 1e-4)
    dense, share = fuse_quantized(packed, tiny, 4, 64, quantize_weight)
    assert isinstance(dense, np.ndarray)
    assert share == 1.0
    np.testing.assert_array_equal(dense, dequantize(packed) + tiny)


def test_a_refusal_has_the_figure():
    packed = quantize_weight(normal(16, 64), 4, 64)
    with pytest.raises(DataError, match=r"q_proj: -?\d+ % .* 4 bits"):
        fuse_quantized(packed, low_rank(16, 64, 0.001), 4, 64, quantize_weight, policy="refuse", name="q_proj")


def test_the_share_of_known_cases():
    base, delta = normal(8, 32), normal(8, 32)
    assert retained_share(base, delta, base + delta) == pytest.approx(1, abs=1e-6)
    assert retained_share(base, delta, base) == 0
    assert retained_share(base, delta, base + np.float32(0.25) * delta) == pytest.approx(0.25, abs=1e-6)
    assert retained_share(base, np.zeros_like(delta), base) == 1
