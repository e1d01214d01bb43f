"""GGUF out, read back: every tensor, every family's logits, what the keys say, files that are whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, DataError, UnsupportedModel
from partita.model.load import load_decoder
from partita.quantization import Packed, dequantize, quantize_weight
from partita_convert.gguf import write as module
from partita_convert.gguf.encode import exact_type
from partita_convert.gguf.write import KINDS, write_gguf
from partita_convert.write_folder import write_huggingface, write_mlx

from .. import bounds, gguf_models, tiny_models

QUANTIZED = ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written-as-gguf")


@pytest.fixture(scope="module")
def written(folder: Path) -> Callable[..., Path]:
    """written(name, kind="F32"): a family as GGUF, made once."""

    def get(name: str, kind: str = "F32") -> Path:
        path = folder / f"{name}-{kind}.gguf"
        if not path.exists():
            write_gguf(open_checkpoint(gguf_models.write(name, folder)), path, kind=kind)
        return path

    return get


@pytest.fixture(scope="module")
def judged(folder: Path) -> Callable[[str], np.ndarray]:
    """judged(name): transformers' logits of the family's folder, computed once."""
    found: dict[str, np.ndarray] = {}

    def get(name: str) -> np.ndarray:
        if name not in found:
            source = gguf_models.write(name, folder)
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
@pytest.mark.parametrize("backend", ["mlx", "numpy", "torch"])
@pytest.mark.parametrize("name", gguf_models.NAMES)
def test_logits_are_those_of_transformers(
    name: str,
    backend: str,
    pieces: int,
    folder: Path,
    written: Callable[..., Path],
    judged: Callable[[str], np.ndarray],
) -> None:
    source = gguf_models.write(name, folder)
    found = logits(written(name), tiny_models.tokens(source), backend, pieces)
    bounds.assert_near(found, judged(name), bounds.logits(source))


@pytest.mark.parametrize("name", gguf_models.NAMES)
def test_there_and_back_keeps_every_tensor(
    name: str, folder: Path, written: Callable[..., Path], tmp_path: Path
) -> None:
    source = gguf_models.write(name, folder)
    write_huggingface(open_checkpoint(written(name)), tmp_path / "back")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    before, after = unfused(before), unfused(after)
    assert set(before) == set(after)
    for key, value in before.items():
        if "gemma" in name and key.endswith("norm.weight"):
            np.testing.assert_allclose(after[key] + 1, value + 1, rtol=2**-23)  # one unit in the last place of 1 + w
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
        np.testing.assert_array_equal(before.raw(key), after.raw(key), err_msg=key)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision(kind: str, folder: Path, written: Callable[..., Path]) -> None:
    source, back = open_checkpoint(gguf_models.write("qwen2", folder)), open_checkpoint(written("qwen2", kind))
    for name in back.names():
        value, read = dense(source, name), dense(back, name)
        if value.ndim == 1:
            assert back.stored_as(name) == "F32"
        else:
            assert back.stored_as(name) == kind
            value = value.astype(read.dtype)
        np.testing.assert_array_equal(read, value)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_kinds(kind: str, folder: Path, written: Callable[..., Path]) -> None:
    source, back = open_checkpoint(gguf_models.write("llama", folder)), open_checkpoint(written("llama", kind))
    assert back.stored_as("model.norm.weight") == "F32"
    assert back.stored_as("model.embed_tokens.weight") == "Q8_0"  # it is the head as well
    bound = {"8": 0.01, "5": 0.06, "4": 0.13}
    for name in back.names():
        value, read = dense(source, name) if name != "rope_freqs.weight" else 1.0, dense(back, name)
        if read.ndim == 2:
            away = np.sqrt(np.square(read - value).mean() / np.square(value).mean())
            assert 0 < away < bound[back.stored_as(name)[1]], name


def test_untied_heads_of_few_bits_are_q8_0(folder: Path, tmp_path: Path) -> None:
    source = open_checkpoint(gguf_models.write("llama-yarn", folder))
    result = write_gguf(source, tmp_path / "m.gguf", kind="Q4_0")
    targets = {tensor.name: tensor.target for tensor in result.tensors}
    assert targets["lm_head.weight"] == "Q8_0"
    assert targets["model.embed_tokens.weight"] == targets["model.layers.0.mlp.up_proj.weight"] == "Q4_0"


def test_errors_are_told_and_tensors_reported(folder: Path, tmp_path: Path) -> None:
    seen = []
    source = open_checkpoint(gguf_models.write("llama", folder))
    result = write_gguf(source, tmp_path / "m.gguf", kind="Q8_0", on_tensor=seen.append)
    assert tuple(seen) == result.tensors
    assert result.nbytes == (tmp_path / "m.gguf").stat().st_size
    back = open_checkpoint(tmp_path / "m.gguf")
    for tensor in result.tensors:
        assert tensor.target == back.stored_as(tensor.name)
        if tensor.target == "Q8_0":
            value, read = dense(source, tensor.name), dense(back, tensor.name)
            away = np.sqrt(np.square(read - value).mean() / np.square(value).mean())
            assert tensor.error == pytest.approx(away, rel=1e-4)
            assert tensor.nbytes == value.size // 32 * 34
            assert tensor.source == "F32"
        else:
            assert tensor.error == 0.0


# --- integers that are kept


def packed_folder(source: Path, target: Path, bits: int, group_size: int, scales: str = "float16") -> Path:
    def transform(name: str, value: Any) -> Any:
        if value.ndim != 2 or value.shape[-1] % group_size:
            return value
        packed = quantize_weight(np.asarray(value, np.float32), bits, group_size)
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16) if scales == "bfloat16" else np.dtype(scales)
        return Packed(packed.weight, packed.scales.astype(dtype), packed.biases.astype(dtype), bits, group_size)

    write_mlx(open_checkpoint(source), target, transform=transform)
    return target


@pytest.mark.parametrize(
    ("bits", "group_size", "scales", "kind", "target"),
    [
        (4, 32, "float16", "Q4_0", "Q4_1"),
        (4, 64, "float16", "Q8_0", "Q4_1"),
        (4, 128, "bfloat16", "Q4_1", "Q4_1"),
        (2, 32, "float16", "Q4_0", "Q4_1"),
        (3, 64, "float16", "Q8_0", "Q4_1"),
        (5, 32, "float16", "Q5_0", "Q5_1"),
        (5, 32, "float16", "Q4_0", "Q4_0"),  # more bits than were asked for
        (4, 32, "float32", "Q8_0", "Q8_0"),  # scales that float16 does not hold
        (6, 32, "float16", "Q8_0", "Q8_0"),  # no block of six bits has a bias
        (8, 32, "float16", "Q8_0", "Q8_0"),  # nor one of eight
        (4, 32, "float16", "F16", "F16"),
    ],
)
def test_integers_of_mlx_folders(
    bits: int, group_size: int, scales: str, kind: str, target: str, folder: Path, tmp_path: Path
) -> None:
    source = packed_folder(gguf_models.write("olmo2", folder), tmp_path / "mlx", bits, group_size, scales)
    before = open_checkpoint(source)
    result = write_gguf(before, tmp_path / "m.gguf", kind=kind)
    after = open_checkpoint(tmp_path / "m.gguf")
    name = "model.layers.1.self_attn.q_proj.weight"
    (tensor,) = (tensor for tensor in result.tensors if tensor.name == name)
    assert tensor.source == f"{bits}-bit:{group_size}"
    assert tensor.target == after.stored_as(name) == target
    if target in ("Q4_1", "Q5_1"):
        assert tensor.error == 0.0
        np.testing.assert_array_equal(dense(after, name), dense(before, name))
    else:
        assert tensor.error is not None
        assert 0 < tensor.error < 0.12
        np.testing.assert_allclose(dense(after, name), dense(before, name), atol=0.1)


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_blocks_of_a_gguf_source_are_kept(name: str, kind: str, written: Callable[..., Path], tmp_path: Path) -> None:
    """Whatever is asked for, as long as it is not of fewer bits; rows of llama's q and k are permuted back."""
    source = written(name, kind)
    before = open_gguf(source)
    asked = {"Q8_0": ["Q8_0"], "Q5_1": ["Q8_0", "Q5_0"], "Q5_0": ["Q8_0", "Q5_1"]}.get(kind, ["Q8_0", "Q5_0", "Q4_0"])
    for other in asked:
        path = tmp_path / f"{other}.gguf"
        result = write_gguf(open_checkpoint(source), path, kind=other)
        assert all(tensor.error == 0.0 for tensor in result.tensors)
        after = open_gguf(path)
        for key, tensor in before.tensors.items():
            assert after.tensors[key].type == tensor.type
            np.testing.assert_array_equal(after.raw(key), before.raw(key), err_msg=f"{other} {key}")


def test_4_bit_floats_are_kept(folder: Path, tmp_path: Path) -> None:
    """Experts of gpt-oss, as published and as GGUF has them."""
    from safetensors.numpy import save_file

    source = gguf_models.write("gpt_oss", folder)
    tensors = load_file(source / "model.safetensors")
    random = np.random.default_rng(3)
    for i in range(4):
        for name, rows in (("gate_up_proj", 128), ("down_proj", 64)):
            tensors.pop(key := f"model.layers.{i}.mlp.experts.{name}")
            tensors[f"{key}_blocks"] = random.integers(0, 256, (6, rows, 2, 16)).astype(np.uint8)
            tensors[f"{key}_scales"] = random.integers(118, 124, (6, rows, 2)).astype(np.uint8)
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (packed / file).write_text((source / file).read_text())
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    result = write_gguf(open_checkpoint(packed), tmp_path / "m.gguf", kind="Q4_0")
    experts = [tensor for tensor in result.tensors if tensor.name.endswith("weight") and "switch_mlp" in tensor.name]
    assert len(experts) == 12
    assert {(tensor.target, tensor.error) for tensor in experts} == {("MXFP4", 0.0)}
    tokens = tiny_models.tokens(source)
    dense_again = write_gguf(open_checkpoint(packed), tmp_path / "d.gguf", kind="F32").path
    bounds.assert_near(logits(dense_again, tokens), logits(packed, tokens), bounds.logits(source))
    again = write_gguf(open_checkpoint(tmp_path / "m.gguf"), tmp_path / "n.gguf", kind="Q4_0").path
    before, after = open_gguf(tmp_path / "m.gguf"), open_gguf(again)
    for key in before.tensors:
        np.testing.assert_array_equal(after.raw(key), before.raw(key))


def test_a_mode_that_is_not_affine_has_no_block() -> None:
    packed = quantize_weight(np.ones((2, 64), np.float32), 4, 32)
    packed = replace(packed, scales=packed.scales.astype(np.float16), biases=packed.biases.astype(np.float16))
    assert exact_type(packed) is not None
    assert exact_type(replace(packed, mode="nvfp4", biases=None)) is None


def test_what_no_block_can_hold(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    source = gguf_models.write("llama-yarn", folder)
    tensors = load_file(source / "model.safetensors")
    for i in range(4):  # an inner size of 80, which is no whole number of blocks
        tensors[f"model.layers.{i}.mlp.down_proj.weight"] = tensors[f"model.layers.{i}.mlp.down_proj.weight"][:, :80]
        for part in ("gate_proj", "up_proj"):
            key = f"model.layers.{i}.mlp.{part}.weight"
            tensors[key] = tensors[key][:80]
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"] * 1e6
    odd = tmp_path / "odd"
    odd.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (odd / file).write_text((source / file).read_text())
    config = json.loads((source / "config.json").read_text()) | {"intermediate_size": 80}
    (odd / "config.json").write_text(json.dumps(config))
    save_file(tensors, odd / "model.safetensors", metadata={"format": "pt"})
    result = write_gguf(open_checkpoint(odd), tmp_path / "m.gguf", kind="Q4_0")
    targets = {tensor.name: tensor.target for tensor in result.tensors}
    assert targets["model.layers.0.mlp.down_proj.weight"] == "F32"  # beyond float16
    assert targets["model.layers.1.mlp.down_proj.weight"] == "F16"
    assert targets["model.layers.1.mlp.up_proj.weight"] == "Q4_0"


def test_numbers_that_are_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    source = gguf_models.write("llama", folder)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = np.nan
    bad = tmp_path / "bad"
    bad.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (bad / file).write_text((source / file).read_text())
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    for kind in KINDS:
        with pytest.raises(DataError, match=r"model\.layers\.2\.mlp\.up_proj\.weight.*not finite"):
            write_gguf(open_checkpoint(bad), tmp_path / "m.gguf", kind=kind)
    assert not list(tmp_path.glob("*.gguf")) + list(tmp_path.glob(".*"))


# --- what the keys say


def test_keys_of_llama(written: Callable[..., Path]) -> None:
    reader = gguf.GGUFReader(written("llama", "Q8_0"))  # the package's own, which checks types and alignment
    values = {key: field.contents() for key, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "llama",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.block_count": 4,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 303,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 302,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: values[key] for key in expected} == expected
    factors = next(tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    assert factors.tensor_type == gguf.GGMLQuantizationType.F32
    assert factors.data[0] == 1.0
    assert factors.data[-1] == 8.0
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("llama-yarn", {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_beta_fast": 16.0}),
        ("llama-biased", {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}),
        ("granite", {"granite.logit_scale": 3.0, "granite.embedding_scale": 6.0}),
        ("gemma2", {"gemma2.attn_logit_softcapping": 2.0, "gemma2.attention.sliding_window": 40}),
        ("gemma3", {"gemma3.attention.sliding_window_pattern": 2, "gemma3.rope.freq_base_swa": 10000.0}),
        ("phi3", {"phi3.attention.sliding_window": 40}),
        ("phi4-mini", {"phi3.rope.dimension_count": 72, "phi3.rope.scaling.original_context_length": 64}),
        ("olmo3", {"olmo2.attention.sliding_window_pattern": 2, "olmo2.rope.scaling.factor": 8.0}),
        ("qwen3_moe", {"qwen3moe.expert_count": 8, "qwen3moe.expert_feed_forward_length": 32}),
        ("gpt_oss", {"gpt-oss.expert_used_count": 2, "gpt-oss.attention.sliding_window_pattern": 2}),
    ],
)
def test_keys_of_others(name: str, keys: dict[str, Any], written: Callable[..., Path]) -> None:
    metadata = open_gguf(written(name)).metadata
    assert {key: metadata.get(key) for key in keys} == keys


def test_what_a_source_says_of_itself_is_kept(written: Callable[..., Path], tmp_path: Path) -> None:
    source = open_checkpoint(written("llama"))
    assert source.metadata is not None
    said = {
        "general.license": "apache-2.0",
        "general.tags": ["chat", "small"],
        "general.name": "Small",
        "general.size": 3,
    }
    object.__setattr__(source, "metadata", {**source.metadata, **said})
    write_gguf(source, tmp_path / "m.gguf", kind="Q8_0")
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    assert {key: metadata[key] for key in said} == said
    assert metadata["general.file_type"] == 7


# --- what GGUF cannot say


@pytest.mark.parametrize(("name", "what"), gguf_models.UNSAYABLE.items())
def test_what_gguf_cannot_say_is_refused(name: str, what: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=f"{what}.*`to` mlx"):
        write_gguf(open_checkpoint(tiny_models.write(name, folder)), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "changes", "what"),
    [
        ("qwen3", {"attention_bias": True}, "attention_bias True"),
        ("qwen2", {"hidden_act": "gelu_pytorch_tanh"}, "activation 'gelu_tanh'"),
        ("qwen3_moe", {"num_hidden_layers": 2, "mlp_only_layers": [], "norm_topk_prob": False}, "experts"),
        ("olmo3", {"layer_types": ["full_attention"] + ["sliding_attention"] * 3}, "a window of layer 0 None"),
        ("gemma2", {"query_pre_attn_scalar": 32, "attn_logit_softcapping": None}, "attention_softcap None"),
    ],
)
def test_fields_that_gguf_cannot_say(
    name: str, changes: dict[str, Any], what: str, folder: Path, tmp_path: Path
) -> None:
    source = gguf_models.write(name, tmp_path / "models", changes)
    with pytest.raises(UnsupportedModel, match=what):
        write_gguf(open_checkpoint(source), tmp_path / "m.gguf")


@pytest.mark.parametrize("outer", ["language_model.model.", "model.language_model."])
def test_of_a_model_that_sees_the_text_decoder_is_written(
    outer: str, folder: Path, written: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    source = gguf_models.write("gemma3", folder)
    config = json.loads((source / "config.json").read_text())
    sees = tmp_path / "gemma3"
    sees.mkdir()
    (sees / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (sees / file).write_text((source / file).read_text())
    tensors = {key.replace("model.", outer, 1): value for key, value in load_file(source / "model.safetensors").items()}
    tensors["vision_tower.embeddings.weight"] = np.ones((4, 4), np.float32)
    save_file(tensors, sees / "model.safetensors", metadata={"format": "pt"})
    result = write_gguf(open_checkpoint(sees), tmp_path / "m.gguf", kind="F32")
    before, after = open_gguf(written("gemma3")), open_gguf(result.path)
    assert {**before.metadata, "general.name": ""} == {**after.metadata, "general.name": ""}
    assert set(before.tensors) == set(after.tensors)
    for key in before.tensors:
        np.testing.assert_array_equal(after.raw(key), before.raw(key))


def test_scaled_rope_that_an_architecture_does_not_read(folder: Path, tmp_path: Path) -> None:
    rope = json.loads((gguf_models.write("llama", folder) / "config.json").read_text())["rope_parameters"]
    source = gguf_models.write("qwen2", tmp_path / "models", {"rope_parameters": rope})
    with pytest.raises(UnsupportedModel, match=r"'llama3'.*qwen2"):
        write_gguf(open_checkpoint(source), tmp_path / "m.gguf")


# --- files


@pytest.mark.parametrize("kind", ["F16", "Q4_1"])
def test_the_same_source_gives_the_same_bytes(kind: str, folder: Path, tmp_path: Path) -> None:
    source = gguf_models.write("gemma3", folder)
    first = write_gguf(open_checkpoint(source), tmp_path / "a.gguf", kind=kind).path
    second = write_gguf(open_checkpoint(source), tmp_path / "b.gguf", kind=kind).path
    assert first.read_bytes() == second.read_bytes()


def test_an_error_in_the_middle_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_checkpoint(gguf_models.write("llama", folder))
    written, count = module._write, iter(range(5))

    def failing(*arguments: Any, **more: Any) -> Any:
        if next(count, None) is None:
            raise CheckpointError("m: the disk went away")
        return written(*arguments, **more)

    monkeypatch.setattr(module, "_write", failing)
    with pytest.raises(CheckpointError, match="went away"):
        write_gguf(source, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(DataError, match=r"m\.gguf exists already"):
        write_gguf(open_checkpoint(gguf_models.write("llama", folder)), tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"m\.gguf cannot be written") as caught:
        write_gguf(open_checkpoint(gguf_models.write("llama", folder)), tmp_path / "file" / "m.gguf")
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'Q4_K'.*Q4_1"):
        write_gguf(open_checkpoint(gguf_models.write("llama", folder)), tmp_path / "m.gguf", kind="Q4_K")
