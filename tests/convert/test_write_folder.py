"""Folders out: integers kept for MLX, dense for transformers, whole or not at all, and readable by us again."""

import json
import os
from dataclasses import replace
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, DataError, UnsupportedModel
from partita.quantization import Packed, dequantize, quantize_weight
from partita.text.load import load_tokenizer
from partita_convert.write_folder import write_huggingface, write_mlx

Type = gguf.GGMLQuantizationType
KINDS = {"token_embd": Type.Q8_0, "attn_q": Type.Q4_1, "attn_k": Type.Q4_1, "ffn_up": Type.Q5_0, "ffn_down": Type.Q4_1}
PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", "▁a", *[f"<0x{i:02X}>" for i in range(256)]]


def gguf_file(path: Path, architecture: str = "llama", factors: np.ndarray | None = None) -> Path:
    """A tiny model, two layers, heads of 16, with a sentencepiece vocabulary."""
    rng = np.random.default_rng(5)
    width, inner, head, vocabulary = 64, 128, 16, len(PIECES)
    layer = {"attn_q": (64, width), "attn_k": (32, width), "attn_v": (32, width), "attn_output": (width, 64)}
    layer |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    layer |= {"attn_norm": (width,), "ffn_norm": (width,)}
    if architecture == "gemma3":
        layer |= {"attn_q_norm": (head,), "attn_k_norm": (head,)}
        layer |= {"post_attention_norm": (width,), "post_ffw_norm": (width,)}
    shapes = {"token_embd": (vocabulary, width), "output_norm": (width,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(32768)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_sliding_window(32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores([0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, *[-9.0] * 256])
    writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1, 1, *[6] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(architecture == "llama")
    writer.add_chat_template("{{ messages[0].content }}")
    writer.add_string("tokenizer.chat_template.tool_use", "{{ tools }}")
    for name, shape in shapes.items():
        value = (rng.standard_normal(shape) * 0.1 + (1 if len(shape) == 1 else 0)).astype(np.float32)
        kind = KINDS.get(name.rpartition(".")[2])
        writer.add_tensor(f"{name}.weight", gguf.quantize(value, kind) if kind else value, raw_dtype=kind)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Checkpoint:
    return open_checkpoint(gguf_file(tmp_path_factory.mktemp("llama") / "m.gguf"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Checkpoint:
    return open_checkpoint(gguf_file(tmp_path_factory.mktemp("gemma") / "m.gguf", "gemma3"))


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def dense(checkpoint: Checkpoint, name: str) -> np.ndarray:
    value = checkpoint.read(name)
    return dequantize(value) if isinstance(value, Packed) else value.astype(np.float32)


def test_mlx_keeps_every_integer(llama, tmp_path):
    written = write_mlx(llama, tmp_path / "out")
    again = open_checkpoint(tmp_path / "out")
    assert set(again.names()) == set(llama.names()) == {tensor.name for tensor in written.tensors}
    for name in llama.names():
        before, after = llama.read(name), again.read(name)
        assert type(before) is type(after)
        if isinstance(before, Packed) and isinstance(after, Packed):
            assert (before.bits, before.group_size) == (after.bits, after.group_size)
            np.testing.assert_array_equal(before.weight, after.weight)
            assert before.scales.dtype == after.scales.dtype
        np.testing.assert_array_equal(dense(llama, name), dense(again, name))
    block = config_of(tmp_path / "out")["quantization"]
    assert (block["bits"], block["group_size"], block["mode"]) == (4, 32, "affine")
    assert block["model.embed_tokens"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    assert block["model.layers.0.mlp.up_proj"]["bits"] == 5
    assert "model.layers.0.self_attn.q_proj" not in block
    assert "model.layers.0.self_attn.v_proj" not in block
    targets = {tensor.name: tensor.target for tensor in written.tensors}
    assert targets["model.layers.0.mlp.up_proj.weight"] == "5-bit:32"
    assert targets["model.norm.weight"] == "float32"
    assert written.nbytes == sum(tensor.nbytes for tensor in written.tensors)


def test_mlx_reads_the_numbers_that_we_read(llama, tmp_path):
    import mlx.core as mx

    write_mlx(llama, tmp_path / "out")
    arrays = mx.load(str(tmp_path / "out" / "model.safetensors"))
    for module, bits in {
        "model.embed_tokens": 8,
        "model.layers.1.mlp.up_proj": 5,
        "model.layers.1.mlp.down_proj": 4,
    }.items():
        weight, scales, biases = (arrays[f"{module}.{part}"] for part in ("weight", "scales", "biases"))
        assert scales.dtype == biases.dtype
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        value = mx.dequantize(weight, scales, biases, group_size=32, bits=bits, stream=mx.cpu)
        np.testing.assert_allclose(np.array(value), dense(llama, f"{module}.weight"), atol=1e-6)


def test_scales_and_biases_are_stored_in_one_dtype(llama, tmp_path):
    def mixed(name, value):
        if isinstance(value, np.ndarray):
            return value
        return Packed(value.weight, value.scales, value.biases.astype(np.float32), value.bits, value.group_size)

    write_mlx(llama, tmp_path / "out", transform=mixed)
    arrays = load_file(tmp_path / "out" / "model.safetensors")
    assert {arrays[name].dtype.name for name in arrays if name.endswith((".scales", ".biases"))} == {"float32"}


def test_a_mode_that_a_folder_is_not_written_in_is_refused(llama, tmp_path):
    def other(name, value):
        return replace(value, mode="nvfp5", biases=None) if isinstance(value, Packed) else value

    with pytest.raises(UnsupportedModel, match=r"embed_tokens\.weight: packed weights of mode 'nvfp5'"):
        write_mlx(llama, tmp_path / "out", transform=other)
    assert not (tmp_path / "out").exists()


def test_gemma_is_not_left_to_float16(gemma, tmp_path):
    write_mlx(gemma, tmp_path / "out")
    arrays = load_file(tmp_path / "out" / "model.safetensors")
    assert arrays["model.embed_tokens.scales"].dtype == np.float32  # mlx-lm takes its compute dtype from here
    assert arrays["model.layers.0.mlp.up_proj.scales"].dtype == np.float16
    again = open_checkpoint(tmp_path / "out")
    np.testing.assert_array_equal(dense(again, "model.embed_tokens.weight"), dense(gemma, "model.embed_tokens.weight"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_huggingface_is_dense(llama, tmp_path, dtype):
    written = write_huggingface(llama, tmp_path / "out", dtype=dtype)
    config = config_of(tmp_path / "out")
    assert "quantization" not in config
    assert config["dtype"] == dtype
    assert {tensor.target for tensor in written.tensors} == {dtype}
    again = open_checkpoint(tmp_path / "out")
    for name in llama.names():
        value = again.read(name)
        assert isinstance(value, np.ndarray)
        assert value.dtype.name == dtype
        np.testing.assert_allclose(
            value.astype(np.float32), dense(llama, name), rtol=0 if dtype == "float32" else 2**-8, atol=1e-6
        )


def test_the_rope_base_is_said_both_ways(llama, gemma, tmp_path):
    write_mlx(llama, tmp_path / "llama")
    config = config_of(tmp_path / "llama")
    assert config["rope_theta"] == 500000.0
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 500000.0}
    write_huggingface(gemma, tmp_path / "gemma")
    config = config_of(tmp_path / "gemma")
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (500000.0, 10000.0)
    assert config["rope_parameters"] == {
        "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }


def test_newer_configs_get_the_older_fields(tmp_path):
    scaling = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    source = hub_folder(tmp_path / "in", rope_parameters=scaling)
    write_mlx(open_checkpoint(source), tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["rope_theta"] == 1e6
    assert config["rope_scaling"] == {
        "type": "linear",
        "rope_type": "linear",
        "factor": 8.0,
    }  # older readers ask for type
    assert config["rope_parameters"] == scaling


def test_llama3_factors_become_their_parameters(tmp_path):
    wavelength = 2 * np.pi * 500000.0 ** (np.arange(0, 16, 2) / 16)
    smooth = np.clip((8192 / wavelength - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 32 + smooth)).astype(np.float32)
    write_mlx(open_checkpoint(gguf_file(tmp_path / "m.gguf", factors=factors)), tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert config["rope_parameters"] == config["rope_scaling"] | {"rope_theta": 500000.0}
    assert "rope_freqs.weight" not in open_checkpoint(tmp_path / "out").names()
    other = open_checkpoint(gguf_file(tmp_path / "n.gguf", factors=factors[::-1].copy()))
    with pytest.raises(UnsupportedModel, match="rope_freqs"):
        write_mlx(other, tmp_path / "no")


def test_gemma_norms_lose_their_one_once(gemma, tmp_path):
    write_huggingface(gemma, tmp_path / "a")
    first = open_checkpoint(tmp_path / "a")
    write_huggingface(first, tmp_path / "b")
    second = open_checkpoint(tmp_path / "b")
    norms = [name for name in gemma.names() if name.endswith("norm.weight")]
    assert len(norms) == 13
    for name in gemma.names():
        gone = 1 if name in norms else 0
        np.testing.assert_array_equal(dense(first, name), dense(gemma, name) - np.float32(gone))
        np.testing.assert_array_equal(dense(first, name), dense(second, name))
    assert first.config == second.config
    assert not first.norms_include_one


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_transformers_finds_every_tensor(architecture, llama, gemma, tmp_path):
    import torch
    import transformers

    write_huggingface(llama if architecture == "llama" else gemma, tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.rope_parameters == config_of(tmp_path / "out")["rope_parameters"]
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[1, 5, 6]])).logits).all()


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_written_tokenizer_gives_the_same_ids(architecture, llama, gemma, tmp_path):
    import tokenizers

    checkpoint = llama if architecture == "llama" else gemma
    write_mlx(checkpoint, tmp_path / "out")
    ours, again = load_tokenizer(checkpoint), load_tokenizer(open_checkpoint(tmp_path / "out"))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in ("ab", "ab ab", "aab  b", "é x\n", ""):
        ids = ours.encode(text)
        assert ids[0] == 1
        assert again.encode(text) == ids
        assert library.decode(ids) == ours.decode(ids) == text
        if text:
            assert library.encode(text).ids == ids
    assert again.adds_bos
    assert again.stop_ids == ours.stop_ids
    assert again.chat_template == ours.chat_template == "{{ messages[0].content }}"
    assert again.tool_template == ours.tool_template == "{{ tools }}"
    assert again.special_tokens == ours.special_tokens
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}


# --- folders as sources


def hub_folder(path: Path, **config) -> Path:
    path.mkdir()
    weights = {"model.embed_tokens.weight": np.arange(128, dtype=np.float32).reshape(2, 64).astype(ml_dtypes.bfloat16)}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    weights["model.ids"] = np.array([1, 2], np.int64)
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "head_dim": 16} | config))
    (path / "tokenizer.json").write_text("{}")
    (path / "chat_template.jinja").write_text("x")
    return path


def test_a_folder_is_carried_over(tmp_path):
    source = hub_folder(tmp_path / "in", rope_theta=1e4, torch_dtype="bfloat16")
    write_mlx(open_checkpoint(source), tmp_path / "out")
    again = open_checkpoint(tmp_path / "out")
    assert set(again.names()) == {"model.embed_tokens.weight", "lm_head.weight", "model.ids"}
    assert again.stored_as("model.embed_tokens.weight") == "BF16"
    assert again.config["dtype"] == "bfloat16"
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "x"
    write_huggingface(open_checkpoint(source), tmp_path / "dense")
    assert open_checkpoint(tmp_path / "dense").stored_as("model.ids") == "I64"


def test_a_tied_head_is_not_written_twice(tmp_path):
    source = hub_folder(tmp_path / "in", rope_theta=1e4, tie_word_embeddings=True)
    write_mlx(open_checkpoint(source), tmp_path / "out")
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "out").names()


def test_a_transform_quantizes(tmp_path):
    def quantize(name, value):
        return quantize_weight(value.astype(np.float32), 8, 64) if name.endswith("embed_tokens.weight") else value

    write_mlx(open_checkpoint(hub_folder(tmp_path / "in", rope_theta=1e4)), tmp_path / "out", transform=quantize)
    assert config_of(tmp_path / "out")["quantization"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert open_checkpoint(tmp_path / "out").stored_as("model.embed_tokens.weight") == "8-bit:64"
    write_huggingface(open_checkpoint(tmp_path / "out"), tmp_path / "dense")
    assert "quantization_config" not in config_of(tmp_path / "dense")


# --- whole or not at all


def test_large_models_are_split(llama, tmp_path):
    written = write_mlx(llama, tmp_path / "out", shard_bytes=40_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == written.nbytes
    again = open_checkpoint(tmp_path / "out")
    for name in llama.names():
        np.testing.assert_array_equal(dense(again, name), dense(llama, name))


def test_an_existing_destination_is_refused_and_kept(llama, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(DataError, match=r"out exists already"):
        write_mlx(llama, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(DataError, match="dtype 'int8'"):
        write_huggingface(llama, tmp_path / "x", dtype="int8")


@pytest.mark.parametrize(
    ("fault", "expected"), [(CheckpointError("bad"), CheckpointError), (OSError(28, "full"), DataError)]
)
def test_a_failure_leaves_nothing(llama, tmp_path, fault, expected):
    def fail(name, value):
        if name == "model.layers.1.mlp.down_proj.weight":
            raise fault
        return value

    with pytest.raises(expected):
        write_mlx(llama, tmp_path / "out", transform=fail, shard_bytes=40_000)
    assert list(tmp_path.iterdir()) == []


def test_folders_above_are_made_and_modes_are_usual(llama, tmp_path):
    write_mlx(llama, tmp_path / "a" / "b")
    modes = {path.stat().st_mode for path in (tmp_path / "a" / "b").rglob("*") if path.is_file()}
    assert len(modes) == 1
    assert os.listdir(tmp_path / "a") == ["b"]
