"""Model folders in: tensors, configs and names, with and without an index, and the folders that are refused."""

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError, UnsupportedModel

from .folders import DENSE, folder, sharded

# --- what is read


@pytest.mark.parametrize("make", [folder, sharded])
def test_dense_tensors_come_as_stored(tmp_path, make):
    checkpoint = open_checkpoint(make(tmp_path / "m"))
    assert set(checkpoint.names()) == set(DENSE)
    for name, expected in DENSE.items():
        value = checkpoint.read(name)
        assert isinstance(value, np.ndarray)
        assert value.dtype == expected.dtype
        assert checkpoint.shape(name) == expected.shape
        np.testing.assert_array_equal(value, expected)
    assert checkpoint.stored_as("model.norm.weight") == "BF16"
    assert checkpoint.norms_include_one is False
    assert checkpoint.metadata is None


def test_configs_are_read(tmp_path):
    path = folder(tmp_path / "m", hidden_size=8)
    assert open_checkpoint(path).generation_config == {}
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    checkpoint = open_checkpoint(str(path))
    assert checkpoint.config == {"model_type": "llama", "hidden_size": 8}
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}


def test_reading_is_private_to_us(tmp_path):
    path = folder(tmp_path / "m")
    before = (path / "model.safetensors").read_bytes()
    value = open_checkpoint(path).read("lm_head.weight")
    assert isinstance(value, np.ndarray)
    value += 1
    assert (path / "model.safetensors").read_bytes() == before


def test_the_fingerprint_is_of_the_weights(tmp_path):
    first = open_checkpoint(folder(tmp_path / "a")).fingerprint()
    assert open_checkpoint(folder(tmp_path / "b", other=1)).fingerprint() == first
    changed = DENSE | {"model.norm.weight": DENSE["model.norm.weight"] + np.float32(1)}
    changed["model.norm.weight"] = changed["model.norm.weight"].astype(ml_dtypes.bfloat16)
    assert open_checkpoint(folder(tmp_path / "c", changed)).fingerprint() != first


def test_a_shift_of_one_byte_is_copied_to_alignment(tmp_path):
    path = folder(tmp_path / "m")
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}).encode()
    body = struct.pack("<Q", len(header)) + header + b"\0" + struct.pack("<2f", 1.5, -2.0)
    (path / "model.safetensors").write_bytes(body)
    value = open_checkpoint(path).read("x")
    assert isinstance(value, np.ndarray)
    assert value.flags.aligned
    assert value.tolist() == [1.5, -2.0]


# --- what is refused


def test_code_from_a_folder_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for key, value in {"model_file": "evil.py", "auto_map": {"AutoModel": "evil.Model"}}.items():
        with pytest.raises(UnsupportedModel, match=f"config.json.*{key}"):
            open_checkpoint(folder(tmp_path / "m", **{key: value}))
    assert not (tmp_path / "ran").exists()


def test_paths_that_are_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match="pickled weights can run code"):
        open_checkpoint(tmp_path / "pytorch_model.bin")
    save_file(DENSE, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="name the folder"):
        open_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", '{"a": ' + "[" * 5000])
def test_settings_that_are_not_json(tmp_path, text):
    path = folder(tmp_path / "m")
    for name in ("config.json", "generation_config.json"):
        (path / name).write_text(text, encoding="latin-1")
        with pytest.raises(CheckpointError, match=f"^{name}: not"):
            open_checkpoint(path)
        (path / name).write_text("{}")


def test_a_tensor_that_is_not_there(tmp_path):
    checkpoint = open_checkpoint(folder(tmp_path / "m"))
    for ask in (checkpoint.read, checkpoint.shape, checkpoint.stored_as):
        with pytest.raises(CheckpointError, match=r"m: there is no tensor 'model\.nothing'"):
            ask("model.nothing")


def test_a_missing_file_of_several(tmp_path):
    path = sharded(tmp_path / "m")
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors, which is not"):
        open_checkpoint(path)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="2 of 3 weight files"):
        open_checkpoint(path)


def test_an_index_that_does_not_tell_the_truth(tmp_path):
    path = sharded(tmp_path / "m")
    index = path / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    for wrong, message in {
        "../../etc/passwd.safetensors": "not a file beside",
        "/etc/x.safetensors": "not a file beside",
        "a\\b.safetensors": "not a file beside",
        "a\0.safetensors": "not a file beside",
        "model.bin": "not a file beside",
    }.items():
        index.write_text(json.dumps({"weight_map": table | {"lm_head.weight": wrong}}))
        with pytest.raises(
            CheckpointError, match=rf"model\.safetensors\.index\.json: tensor 'lm_head.weight' .*{message}"
        ):
            open_checkpoint(path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        open_checkpoint(path)


def test_an_index_of_another_state_of_the_folder(tmp_path):
    path = sharded(tmp_path / "m")
    index = path / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    files = sorted(table.values())
    moved = dict(zip(table, [files[1], files[2], files[0]], strict=True)) | {"model.more": files[0]}
    index.write_text(json.dumps({"weight_map": moved}))
    checkpoint = open_checkpoint(path)  # tensors count where they are
    assert sorted(checkpoint.names()) == sorted(DENSE)
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.more', .*model\.safetensors\.index\.json"):
        checkpoint.read("model.more")
    index.write_text(
        json.dumps({"weight_map": {name: f"model-{i:05}-of-00009.safetensors" for i, name in enumerate(table)}})
    )
    assert sorted(open_checkpoint(path).names()) == sorted(DENSE)  # none of the files that it names is there
    index.write_text(json.dumps({"weight_map": table}))
    save_file({"model.norm.weight": np.zeros(3, np.float32)}, path / "model.safetensors")
    assert open_checkpoint(path).names() == ("model.norm.weight",)  # as transformers has it
    index.write_text(json.dumps({"weight_map": table | {"model.norm.weight": "model.safetensors"}}))
    assert sorted(open_checkpoint(path).names()) == sorted(DENSE)  # the index names that file among others


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_links_out_of_a_folder_and_pipes_are_refused(tmp_path, name):
    path = folder(tmp_path / "m")
    (path / "generation_config.json").write_text("{}")
    (path / name).rename(tmp_path / name)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name} is a link"):
        open_checkpoint(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(CheckpointError, match=f"{name} is a pipe, not a file"):
        open_checkpoint(path)


def test_settings_of_gigabytes_are_refused_unread(tmp_path):
    path = folder(tmp_path / "m")
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        before = (path / name).read_bytes() if (path / name).exists() else None
        with (path / name).open("wb") as file:
            file.truncate(3 << 30)
        with pytest.raises(CheckpointError, match=f"{name}: 3221225472 bytes"):
            open_checkpoint(path)
        (path / name).unlink() if before is None else (path / name).write_bytes(before)


@pytest.mark.parametrize(
    "prefix", ["base_model.model.", "module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."]
)
def test_names_are_without_what_tools_put_around_them(tmp_path, prefix):
    checkpoint = open_checkpoint(folder(tmp_path / "m", {prefix + name: value for name, value in DENSE.items()}))
    assert sorted(checkpoint.names()) == sorted(DENSE)
    for name, value in DENSE.items():
        np.testing.assert_array_equal(checkpoint.read(name), value)


def test_two_tensors_that_come_to_the_same_name_are_refused(tmp_path):
    path = folder(tmp_path / "m", DENSE | {"module.lm_head.weight": DENSE["lm_head.weight"]})
    with pytest.raises(CheckpointError, match=r"m: two tensors .*'lm_head\.weight'"):
        open_checkpoint(path)


def test_constants_of_modules_are_no_tensors(tmp_path):
    own = ("self_attn.rotary_emb.inv_freq", "self_attn.masked_bias", "attention.bias", "rotary_emb.cos_cached")
    constants = {f"model.layers.0.{name}": np.ones(4, np.float32) for name in own} | {
        "model.rotary_emb_local.original_inv_freq": np.ones(4, np.float32)
    }
    kept = {"model.layers.0.self_attn.c_attn.bias": np.ones(4, np.float32)}
    checkpoint = open_checkpoint(folder(tmp_path / "m", DENSE | constants | kept))
    assert sorted(checkpoint.names()) == sorted(DENSE | kept)


def test_a_tensor_in_two_files(tmp_path):
    path = sharded(tmp_path / "m")
    save_file(DENSE, path / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="is also in"):
        open_checkpoint(path)
