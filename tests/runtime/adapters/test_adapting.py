"""Adapters beside the weights are adapters in the weights: against the fused checkpoint, on every backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import partita_backends
from partita.adapters.attach import identity, with_adapter
from partita.adapters.read import fused, open_adapter
from partita.backend import Backend
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, ContextError, UnsupportedModel
from partita.language_model import load
from partita.model.decoder import Decoder
from partita.model.load import load_decoder
from partita_convert.quantize import quantize
from partita_convert.write_folder import write_mlx

from ... import bounds

IDS = np.asarray([[5, 80, 200, 17, 33, 9, 120]], np.int32)
MODULES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


@pytest.fixture(params=partita_backends.names(), scope="module")
def ops(request: pytest.FixtureRequest) -> Backend:
    return partita_backends.load(request.param, dtype="float32")


EVERYTHING = (*MODULES, *(f"self_attn.{x}_proj" for x in "kv"), *(f"mlp.{x}_proj" for x in ("gate", "up")))
FUSED = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def write(
    folder: Path,
    base: Checkpoint,
    *,
    dora: bool = False,
    mlx: bool = False,
    seed: int = 0,
    modules: Sequence[str] = MODULES,
) -> Path:
    """A random adapter of some projections of layers 0 and 1, as PEFT or mlx-lm keep it."""
    folder.mkdir(exist_ok=True)
    random, tensors = np.random.default_rng(seed), {}
    for module in (f"model.layers.{i}.{module}" for i in range(2) for module in modules):
        out, size = base.shape(f"{module}.weight")
        a = random.normal(0, size**-0.5, (4, size)).astype(np.float32)
        b = random.normal(0, 0.5, (out, 4)).astype(np.float32)
        lengths = random.uniform(0.5, 2, out).astype(np.float32)
        if mlx:
            tensors |= {f"{module}.lora_a": a.T.copy(), f"{module}.lora_b": b.T.copy()} | (
                {f"{module}.m": lengths} if dora else {}
            )
            continue
        name = f"base_model.model.{module}"
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        tensors |= {f"{name}.lora_magnitude_vector": lengths} if dora else {}
    config: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_dora": dora}
    if mlx:
        config = {
            "fine_tune_type": "dora" if dora else "lora",
            "lora_parameters": {"rank": 4, "scale": 1.5, "keys": []},
        }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / ("adapters.safetensors" if mlx else "adapter_model.safetensors"))
    return folder


def logits(ops: Backend, decoder: Decoder) -> np.ndarray:
    cache = Cache(ops, plan(decoder.config, KVFormat.parse("32")))
    return ops.to_numpy(decoder(ops, ops.array(IDS), cache, every=True))


def test_an_adapter_of_a_model_that_sees_is_found_wherever_peft_puts_it(
    ops: Backend, tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT names modules as transformers has them, `model.language_model.layers…` and `model.vision_tower…`; the files
    have `language_model.model.layers…` and `vision_tower…`."""
    text, sees = tiny_family("gemma3"), tmp_path / "sees"
    sees.mkdir()
    config = {"model_type": "gemma3", "text_config": json.loads((text / "config.json").read_text())}
    (sees / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    seen, random = "vision_model.encoder.layers.0.self_attn.q_proj", np.random.default_rng(1)
    own = {f"vision_tower.{seen}.weight": random.standard_normal((8, 8), np.float32)}
    tensors = {f"language_model.{name}": value for name, value in load_file(text / "model.safetensors").items()}
    save_file(tensors | own, sees / "model.safetensors")
    plain = write(tmp_path / "plain", open_checkpoint(text))
    (tmp_path / "wrapped").mkdir()
    (tmp_path / "wrapped/adapter_config.json").write_bytes((plain / "adapter_config.json").read_bytes())
    matrices = load_file(plain / "adapter_model.safetensors")
    wrapped = {name.replace("model.layers", "model.language_model.layers"): x for name, x in matrices.items()}
    for part in ("A", "B"):
        shape = (4, 8) if part == "A" else (8, 4)
        wrapped[f"base_model.model.model.vision_tower.{seen}.lora_{part}.weight"] = random.standard_normal(
            shape, np.float32
        )
    save_file(wrapped, tmp_path / "wrapped/adapter_model.safetensors")
    base, adapter = open_checkpoint(sees), open_adapter(tmp_path / "wrapped")
    expected = logits(ops, load_decoder(ops, fused(open_checkpoint(text), open_adapter(plain))))
    beside = with_adapter(ops, load_decoder(ops, base), adapter)
    bounds.assert_near(logits(ops, beside), expected, bounds.logits(text))
    whole = fused(base, adapter)
    bounds.assert_near(logits(ops, load_decoder(ops, whole)), expected, bounds.logits(text))
    assert np.abs(whole.read(f"vision_tower.{seen}.weight") - own[f"vision_tower.{seen}.weight"]).max() > 0.1


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("mlx", [False, True], ids=["peft", "mlx-lm"])
def test_beside_the_weights_is_in_the_weights(
    ops: Backend, tiny_family: Callable[[str], Path], tmp_path: Path, dora: bool, mlx: bool
) -> None:
    base = open_checkpoint(tiny_family("qwen2"))
    adapter = open_adapter(write(tmp_path / "adapter", base, dora=dora, mlx=mlx))
    plain = load_decoder(ops, base)
    before = logits(ops, plain)
    found = logits(ops, with_adapter(ops, plain, adapter))
    expected = logits(ops, load_decoder(ops, fused(base, adapter)))
    bounds.assert_near(found, expected, bounds.logits(plain.config))
    assert np.abs(found - before).max() > 0.1
    np.testing.assert_array_equal(logits(ops, plain), before)  # the base is as it was


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(
    ("family", "modules"),
    [("qwen2", EVERYTHING), ("phi3", FUSED), ("llama", ("self_attn.k_proj", "mlp.up_proj"))],
    ids=["every projection", "fused projections", "the middle of a stack"],
)
def test_each_projection_of_a_stack_has_its_own_change(
    ops: Backend,
    tiny_family: Callable[[str], Path],
    tmp_path: Path,
    dora: bool,
    family: str,
    modules: Sequence[str],
) -> None:
    """Whatever part of the outputs a projection makes, of one matrix or of several."""
    base = open_checkpoint(tiny_family(family))
    adapter = open_adapter(write(tmp_path / "adapter", base, dora=dora, modules=modules))
    stacked, separate = (load_decoder(ops, base, stack=stack) for stack in (True, False))
    assert len(stacked.blocks[0].mixer.qkv.parts) == 1
    expected = logits(ops, load_decoder(ops, fused(base, adapter)))
    for decoder in (stacked, separate):
        adapted = with_adapter(ops, decoder, adapter)
        assert adapted.blocks[0].mixer.qkv.parts is decoder.blocks[0].mixer.qkv.parts
        bounds.assert_near(logits(ops, adapted), expected, bounds.logits(stacked.config))


def test_packed_weights_stay_packed(ops: Backend, tiny_model: Path, tmp_path: Path) -> None:
    write_mlx(open_checkpoint(tiny_model), tmp_path / "packed", transform=lambda name, x: quantized_matrix(x))
    base = open_checkpoint(tmp_path / "packed")
    adapter = open_adapter(write(tmp_path / "adapter", base))
    plain = load_decoder(ops, base)
    adapted = with_adapter(ops, plain, adapter)
    assert adapted.blocks[0].mixer.out.base.weight is plain.blocks[0].mixer.out.weight
    expected = logits(ops, load_decoder(ops, fused(base, adapter)))  # dense where it is adapted
    bounds.assert_near(logits(ops, adapted), expected, bounds.logits(tiny_model))


def quantized_matrix(x: Any) -> Any:
    return quantize(x, 4, 32) if x.ndim == 2 else x


def test_a_session_knows_its_adapter(tiny_model: Path, tmp_path: Path) -> None:
    base = open_checkpoint(tiny_model)
    first, second = (write(tmp_path / name, base, seed=seed) for seed, name in enumerate(("first", "second")))
    model = load(tiny_model, backend="numpy", adapter=first)
    other = load(tiny_model, backend="numpy").with_adapter(open_adapter(second))
    assert model.adapter != other.adapter
    assert model.adapter == identity(open_adapter(first))
    session = model.session(prefixes=None)
    list(session.generate(model.encode("the fox"), max_tokens=2))
    session.save(tmp_path / "saved")
    model.session(prefixes=None).restore(tmp_path / "saved")
    for stranger in (other, load(tiny_model, backend="numpy")):
        with pytest.raises(ContextError, match="adapter"):
            stranger.session(prefixes=None).restore(tmp_path / "saved")


def test_one_prefix_cache_keeps_them_apart(tiny_model: Path, tmp_path: Path) -> None:
    base = load(tiny_model, backend="numpy")
    adapted = base.with_adapter(open_adapter(write(tmp_path / "adapter", open_checkpoint(tiny_model))))
    prompt = base.encode("the quick brown fox jumps over the lazy dog " * 8)

    def reused(model: Any) -> int:
        session = model.session(prefixes=base.prefixes)
        list(session.generate(prompt, max_tokens=2))
        return session.reused

    assert [reused(base), reused(adapted)] == [0, 0]
    assert min(reused(base), reused(adapted)) > 100


def test_what_cannot_be_done_beside_the_weights_is_refused(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    ops = partita_backends.load("numpy")
    base = open_checkpoint(tiny_family("llama"))  # its embedding is its head
    decoder = load_decoder(ops, base)
    adapter = open_adapter(write(tmp_path / "adapter", base))
    change = next(iter(adapter.changes.values()))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        with pytest.raises(UnsupportedModel, match=rf"changes {name}, .*convert\(MODEL, DEST, adapter="):
            with_adapter(ops, decoder, replace(adapter, changes={name: change}))
    with pytest.raises(UnsupportedModel, match="changes model"):
        with_adapter(ops, decoder, replace(adapter, replaced={"model.norm.weight": np.ones(64, np.float32)}))
    with pytest.raises(CheckpointError, match=r"layers\.7.*does not have"):
        with_adapter(ops, decoder, replace(adapter, changes={"model.layers.7.mlp.up_proj.weight": change}))


def test_an_adapted_head(ops: Backend, tiny_model: Path, tmp_path: Path) -> None:
    base = open_checkpoint(tiny_model)
    adapter = open_adapter(write(tmp_path / "adapter", base))
    size = base.shape("lm_head.weight")
    random = np.random.default_rng(1)
    a, b = random.normal(0, 0.1, (4, size[1])), random.normal(0, 0.5, (size[0], 4))
    change = replace(next(iter(adapter.changes.values())), a=a.astype(np.float32), b=b.astype(np.float32))
    adapter = replace(adapter, changes={"lm_head.weight": change})
    found = logits(ops, with_adapter(ops, load_decoder(ops, base), adapter))
    bounds.assert_near(found, logits(ops, load_decoder(ops, fused(base, adapter))), bounds.logits(tiny_model))
