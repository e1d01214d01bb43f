"""GGUF in: configs, names and the order of rows, models in parts, metadata, and what is refused by name."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from partita.checkpoint.gguf.arrangement import unpermuted_rows
from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel
from partita.quantization import Packed, dequantize
from partita.text.load import load_tokenizer

from .gguf_files import Gemma3, Llama, header

Type = gguf.GGMLQuantizationType


# --- models


def test_llama_config_and_names(tmp_path):
    checkpoint = open_checkpoint(Llama().write(tmp_path / "m.gguf"))
    expected = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "rope_scaling": None,
        "max_position_embeddings": 64,
        "vocab_size": 32,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert checkpoint.config == expected
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": 2}
    assert checkpoint.norms_include_one is False
    assert checkpoint.metadata is not None
    assert checkpoint.metadata["tokenizer.ggml.tokens"] == ["a", "é", "</s>"]
    assert len(checkpoint.names()) == 20
    assert "model.layers.1.self_attn.o_proj.weight" in checkpoint.names()
    assert checkpoint.shape("model.layers.0.mlp.down_proj.weight") == (32, 64)
    with pytest.raises(CheckpointError, match=r"m\.gguf.*lm_head"):
        checkpoint.read("lm_head.weight")


@pytest.mark.parametrize("kind", [None, Type.Q4_1, Type.Q8_0])
def test_llama_rows_are_put_back_in_order(tmp_path, kind):
    model = Llama()
    original = {
        "q_proj": (model.tensors["blk.0.attn_q.weight"], 4),
        "k_proj": (model.tensors["blk.0.attn_k.weight"], 2),
    }
    for part, (value, heads) in original.items():  # GGUF puts the two of a rotated pair side by side
        permuted = np.empty_like(value)
        for head in range(heads):
            for i in range(4):
                permuted[head * 8 + 2 * i] = value[head * 8 + i]
                permuted[head * 8 + 2 * i + 1] = value[head * 8 + 4 + i]
        model.tensors[f"blk.0.attn_{part[0]}.weight"] = permuted
    types = {"blk.0.attn_q.weight": kind, "blk.0.attn_k.weight": kind} if kind else {}
    checkpoint = open_checkpoint(model.write(tmp_path / "m.gguf", types=types))
    for part, (value, _) in original.items():
        read = checkpoint.read(f"model.layers.0.self_attn.{part}.weight")
        if kind:
            assert isinstance(read, Packed)
            np.testing.assert_array_equal(dequantize(read), gguf.dequantize(gguf.quantize(value, kind), kind))
            assert checkpoint.stored_as(f"model.layers.0.self_attn.{part}.weight") == kind.name
        else:
            np.testing.assert_array_equal(read, value)
    np.testing.assert_array_equal(
        checkpoint.read("model.layers.0.self_attn.v_proj.weight"), model.tensors["blk.0.attn_v.weight"]
    )


def test_the_row_order_written_out():
    assert unpermuted_rows(12, 2).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_gemma3_config_names_and_rows(tmp_path):
    model = Gemma3()
    checkpoint = open_checkpoint(model.write(tmp_path / "m.gguf"))
    config = checkpoint.config
    assert config["model_type"] == "gemma3_text"
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (50000.0, 10000.0)
    assert (config["query_pre_attn_scalar"], config["sliding_window"]) == (8, 16)
    assert (config["hidden_activation"], config["final_logit_softcapping"]) == ("gelu_pytorch_tanh", None)
    assert checkpoint.norms_include_one is True
    for ours, theirs in {
        "model.layers.3.self_attn.q_proj.weight": "blk.3.attn_q.weight",
        "model.layers.3.self_attn.k_norm.weight": "blk.3.attn_k_norm.weight",
        "model.layers.3.post_attention_layernorm.weight": "blk.3.post_attention_norm.weight",
        "model.layers.3.pre_feedforward_layernorm.weight": "blk.3.ffn_norm.weight",
        "model.layers.3.post_feedforward_layernorm.weight": "blk.3.post_ffw_norm.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        np.testing.assert_array_equal(checkpoint.read(ours), model.tensors[theirs])


def test_rope_factors_are_named_and_given(tmp_path):
    model = Llama()
    model.tensors["rope_freqs.weight"] = np.array([1, 1, 2, 8], np.float32)
    model.tensors["output.weight"] = model.tensors["token_embd.weight"]
    checkpoint = open_checkpoint(model.write(tmp_path / "m.gguf"))
    scaling = {"rope_type": "factors", "tensor": "rope_freqs.weight", "factors": [1.0, 1.0, 2.0, 8.0]}
    assert checkpoint.config["rope_scaling"] == scaling
    assert checkpoint.config["tie_word_embeddings"] is False
    assert "rope_freqs.weight" not in checkpoint.names()


def scaled(kind):
    def add(writer):
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)

    return add


def test_rope_scaling(tmp_path):
    linear = open_checkpoint(Llama().write(tmp_path / "l.gguf", scaled(gguf.RopeScalingType.LINEAR)))
    assert linear.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    yarn = open_checkpoint(Llama().write(tmp_path / "y.gguf", scaled(gguf.RopeScalingType.YARN)))
    assert yarn.config["rope_scaling"]["rope_type"] == "yarn"
    assert yarn.config["rope_scaling"]["original_max_position_embeddings"] == 16
    with pytest.raises(UnsupportedModel, match="longrope"):
        open_checkpoint(Llama().write(tmp_path / "o.gguf", scaled(gguf.RopeScalingType.LONGROPE)))


def without(key):
    class Lacking(Llama):
        architecture = "gemma3" if key == "rope.freq_base" else "llama"

        def keys(self, writer):
            super().keys(writer)
            for table in writer.kv_data:
                table.pop(f"{self.architecture}.{key}", None)

    return Lacking()


@pytest.mark.parametrize("key", ["embedding_length", "block_count", "attention.head_count", "context_length"])
def test_a_missing_key_is_named(tmp_path, key):
    with pytest.raises(CheckpointError, match=f"m.gguf.*llama.{key}"):
        open_checkpoint(without(key).write(tmp_path / "m.gguf"))


def test_a_missing_rope_base(tmp_path):
    class Bare(Gemma3):
        def keys(self, writer):
            super().keys(writer)
            del writer.kv_data[0]["gemma3.rope.freq_base"]

    with pytest.raises(CheckpointError, match=r"gemma3\.rope\.freq_base"):
        open_checkpoint(Bare().write(tmp_path / "g.gguf"))
    # llama's converter leaves the key out where the original config had none, which means 10,000
    lacking = without("no such key")
    lacking.keys, keys = lambda writer: (keys(writer), writer.kv_data[0].pop("llama.rope.freq_base")), lacking.keys
    assert open_checkpoint(lacking.write(tmp_path / "l.gguf")).config["rope_theta"] == 10000.0


def test_what_is_not_implemented_is_refused_by_name(tmp_path):
    model = Llama()
    model.architecture = "mamba"
    with pytest.raises(UnsupportedModel, match=r"m\.gguf.*'mamba'.*gemma2, gemma3, gemma4, glm4, gpt-oss"):
        open_checkpoint(model.write(tmp_path / "m.gguf"))
    model = Llama()
    model.tensors["blk.0.attn_sinks.weight"] = np.ones(4, np.float32)
    with pytest.raises(UnsupportedModel, match=r"blk\.0\.attn_sinks\.weight"):
        open_checkpoint(model.write(tmp_path / "s.gguf"))
    with pytest.raises(UnsupportedModel, match="experts"):
        open_checkpoint(Llama().write(tmp_path / "e.gguf", lambda writer: writer.add_expert_count(8)))


def test_reading_is_private_to_us(tmp_path):
    path = Llama().write(tmp_path / "m.gguf")
    before = path.read_bytes()
    checkpoint = open_checkpoint(path)
    value = checkpoint.read("model.norm.weight")
    assert isinstance(value, np.ndarray)
    value += 1  # must not raise, warn, or reach the disk
    assert path.read_bytes() == before
    assert open_checkpoint(path).fingerprint() == open_checkpoint(path.rename(tmp_path / "n.gguf")).fingerprint()


def test_the_fingerprint_tells_weights_apart(tmp_path):
    model = Llama()
    first = open_checkpoint(model.write(tmp_path / "a.gguf")).fingerprint()
    model.tensors["output_norm.weight"] = model.tensors["output_norm.weight"] + 1
    assert open_checkpoint(model.write(tmp_path / "b.gguf")).fingerprint() != first


# --- models in parts, and what their files are called


def split(folder: Path, model: Llama, count: int = 3, drop: str | None = None) -> list[Path]:
    """The model in files as llama-gguf-split names and marks them; metadata in the first."""
    tensors = [name for name in model.tensors if name != drop]
    size = -(-len(tensors) // count)
    paths = []
    for i in range(count):
        paths.append(folder / f"m-{i + 1:05}-of-{count:05}.gguf")
        writer = gguf.GGUFWriter(paths[-1], model.architecture)
        if i == 0:
            model.keys(writer)
        else:
            writer.kv_data[0].clear()
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(tensors) + (drop is not None))
        for name in tensors[i * size : (i + 1) * size]:
            writer.add_tensor(name, model.tensors[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_the_first_part_of_a_split_model_is_the_whole_of_it(tmp_path):
    model = Llama()
    whole, parts = open_checkpoint(model.write(tmp_path / "m.gguf")), split(tmp_path, model)
    checkpoint = open_checkpoint(parts[0])
    assert checkpoint.config == whole.config
    assert checkpoint.names() == whole.names()
    assert checkpoint.nbytes() == sum(path.stat().st_size for path in parts)
    for name in whole.names():
        np.testing.assert_array_equal(checkpoint.read(name), whole.read(name))
    before = checkpoint.fingerprint()
    for i, path in enumerate(parts):  # renamed together they are the same model
        path.rename(tmp_path / f"n-{i + 1:05}-of-00003.GGUF")
    assert open_checkpoint(tmp_path / "n-00001-of-00003.GGUF").fingerprint() == before


def test_a_part_that_is_not_the_first_or_is_missing_is_refused_by_name(tmp_path):
    parts = split(tmp_path, Llama())
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf: part 2 of 3 .*m-00001-of-00003\.gguf"):
        open_checkpoint(parts[1])
    third = parts[2].read_bytes()
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"3 files.*m-00003-of-00003\.gguf is not"):
        open_checkpoint(parts[0])
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf: .*part 3 of 3"):
        open_checkpoint(parts[0])
    parts[2].write_bytes(third)
    with pytest.raises(CheckpointError, match=r"whole\.gguf: part 1 of 3 .*PREFIX-00001-of-00003"):
        open_checkpoint(parts[0].rename(tmp_path / "whole.gguf"))


def test_parts_that_hold_too_little_or_too_much_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"3 parts .* 19 tensors, 20 "):
        open_checkpoint(split(tmp_path, Llama(), drop="output_norm.weight")[0])
    model = Llama()
    twice = split(tmp_path, model)
    model.tensors = dict(list(model.tensors.items())[:7]) | {f"{i}": np.ones(1, np.float32) for i in range(14)}
    other = tmp_path / "other"
    other.mkdir()
    split(other, model)[0].rename(twice[1])
    raw = twice[1].read_bytes().replace(b"split.no\x02\0\0\0\0\0", b"split.no\x02\0\0\0\1\0")
    twice[1].write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf: tensor '.*' .*another part"):
        open_checkpoint(twice[0])


@pytest.mark.parametrize(("key", "value"), [("split.no", 3), ("split.no", -1), ("split.count", 10**6)])
def test_numbers_of_parts_that_cannot_be_are_refused(tmp_path, key, value):
    model = Llama()
    path = model.write(tmp_path / "m-00001-of-00002.gguf", lambda writer: writer.add_int32(key, value))
    with pytest.raises(CheckpointError, match=r"no part of a model: split\.no .*, split\.count"):
        open_checkpoint(path)


def test_a_file_is_known_by_its_first_bytes(tmp_path):
    path = Llama().write(tmp_path / "m.gguf")
    for name in ("model.GGUF", "sha256-0123abcd", "model.bin"):
        copy = tmp_path / name
        copy.write_bytes(path.read_bytes())
        assert len(open_checkpoint(copy).names()) == 20
    (tmp_path / "real.bin").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(CheckpointError, match="pickled"):
        open_checkpoint(tmp_path / "real.bin")


# --- metadata


def test_texts_for_people_may_be_of_any_bytes(tmp_path):
    def add(writer):
        writer.add_author("Jos\xe9")
        writer.add_array("general.tags", ["caf\xe9", "ok"])

    path = Llama().write(tmp_path / "m.gguf", add)
    path.write_bytes(
        path.read_bytes().replace("Jos\xe9".encode(), b"Jose\xe9").replace("caf\xe9".encode(), b"cafe\xe9")
    )
    metadata = open_checkpoint(path).metadata
    assert metadata is not None
    assert metadata["general.author"] == "Jose\ufffd"
    assert metadata["general.tags"] == ["cafe\ufffd", "ok"]


def test_texts_that_are_needed_are_judged_when_they_are(tmp_path):
    path = Llama().write(tmp_path / "m.gguf", lambda writer: writer.add_tokenizer_model("gpt2"))
    path.write_bytes(path.read_bytes().replace("\xe9".encode(), b"e\xe9"))  # in the vocabulary
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["hidden_size"] == 32
    with pytest.raises(CheckpointError, match=r"m\.gguf: .*tokenizer\.ggml\.tokens: .*UTF-8"):
        load_tokenizer(checkpoint)
    path.write_bytes(path.read_bytes().replace(b"general.architecture", b"general.architectur\xe9"))
    with pytest.raises(CheckpointError, match=r"metadata key .*UTF-8"):
        open_checkpoint(path)


def test_values_are_made_when_they_are_asked_for_and_once(tmp_path):
    path = tmp_path / "m.gguf"
    numbers = struct.pack("<IIQ3i", 9, 5, 3, -1, 0, 1)
    inner = struct.pack("<IQB", 0, 1, 7) + struct.pack("<IQ", 8, 2) + (struct.pack("<Q", 1) + b"a") * 2
    keys = {"n": numbers, "a": struct.pack("<IIQ", 9, 9, 2) + inner, "e": struct.pack("<IIQ", 9, 8, 0)}
    path.write_bytes(header(keys=[(name.encode(), value) for name, value in keys.items()]))
    metadata = open_gguf(path).metadata
    assert list(metadata) == ["n", "a", "e"]
    assert dict(metadata) == {"n": [-1, 0, 1], "a": [[7], ["a", "a"]], "e": []}
    assert metadata["n"] is metadata["n"]
    assert "n" in metadata
    assert metadata.get("x") is None
