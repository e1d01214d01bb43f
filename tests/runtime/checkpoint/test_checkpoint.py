"""Model folders in: safetensors with and without an index, MLX's packed layout, and everything that is refused."""

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from partita.checkpoint.open import open_checkpoint
from partita.checkpoint.schemes import registry
from partita.checkpoint.schemes.stored import Scheme, StoredWeight
from partita.errors import CheckpointError, PartitaError, UnsupportedModel
from partita.quantization import Packed, dequantize, quantize_weight

RNG = np.random.default_rng(3)
DENSE = {
    "model.norm.weight": RNG.standard_normal(8).astype(ml_dtypes.bfloat16),
    "model.embed_tokens.weight": RNG.standard_normal((6, 8)).astype(np.float16),
    "lm_head.weight": RNG.standard_normal((6, 8)).astype(np.float32),
}


def folder(path: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    save_file(DENSE if tensors is None else tensors, path / "model.safetensors")
    return path


def sharded(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    table = {}
    for i, (name, value) in enumerate(DENSE.items()):
        file = f"model-0000{i + 1}-of-00003.safetensors"
        save_file({name: value}, path / file)
        table[name] = file
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return path


def parts(module: str, packed: Packed) -> dict[str, np.ndarray]:
    return {f"{module}.{part}": getattr(packed, part) for part in ("weight", "scales", "biases")}


def packed_folder(path: Path, block: Any = ..., drop: str = "", **more: Any) -> tuple[Path, dict[str, Packed]]:
    q = quantize_weight(RNG.standard_normal((4, 64)).astype(np.float32), 4, 64)
    v = quantize_weight(RNG.standard_normal((4, 64)).astype(np.float32), 6, 32)
    tensors = parts("model.q", q) | parts("model.v", v) | {"model.norm.weight": np.ones(4, np.float32)}
    tensors.pop(drop, None)
    if block is ...:
        block = {
            "group_size": 64,
            "bits": 4,
            "mode": "affine",
            "model.v": {"group_size": 32, "bits": 6},
            "model.x": False,
        }
    return folder(path, tensors, quantization=block, **more), {"model.q.weight": q, "model.v.weight": v}


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


def test_packed_tensors_keep_their_integers(tmp_path):
    path, expected = packed_folder(tmp_path / "m")
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.names()) == {"model.q.weight", "model.v.weight", "model.norm.weight"}
    for name, packed in expected.items():
        value = checkpoint.read(name)
        assert isinstance(value, Packed)
        assert (value.bits, value.group_size) == (packed.bits, packed.group_size)
        assert checkpoint.shape(name) == value.shape == (4, 64)
        np.testing.assert_array_equal(value.weight, packed.weight)
        np.testing.assert_array_equal(dequantize(value), dequantize(packed))
    assert checkpoint.stored_as("model.v.weight") == "6-bit:32"


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


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "quanto"])
def test_other_quantizations_are_named(tmp_path, method):
    path = folder(tmp_path / "m", quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedModel, match=method):
        open_checkpoint(path)


def test_mlx_modes_other_than_affine_are_named(tmp_path):
    for block in (
        {"group_size": 16, "bits": 4, "mode": "nvfp4"},
        {"group_size": 64, "bits": 4, "model.v": {"group_size": 16, "bits": 4, "mode": "nvfp4"}},
    ):
        path, _ = packed_folder(tmp_path / "m", block)
        with pytest.raises(UnsupportedModel, match="nvfp4"):
            open_checkpoint(path)


def test_an_unknown_mode_is_named_beside_another_method(tmp_path):
    block = {"group_size": 16, "bits": 4, "mode": "nvfp4"}
    path, _ = packed_folder(tmp_path / "m", block, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnsupportedModel, match="nvfp4"):
        open_checkpoint(path)


def test_a_scheme_is_a_row(tmp_path, monkeypatch):
    """One that gives a weight a name that no tensor has, as formats with several tensors a weight do."""

    class Doubled(StoredWeight):
        def read(self, tensor):
            return tensor("a.qweight") * tensor("a.zeros")

    def find(tensors, config, where):
        return {"a.weight": Doubled(name="a.weight", shape=(3,), stored_as="TWO"), "a.qweight": None, "a.zeros": None}

    path = folder(
        tmp_path / "m",
        {"a.qweight": np.arange(3, dtype=np.int32), "a.zeros": np.full(3, 2, np.int32), "b": np.ones(1, np.float32)},
        quantization_config={"quant_method": "twos"},
    )
    with pytest.raises(UnsupportedModel, match="twos"):
        open_checkpoint(path)
    monkeypatch.setattr(registry, "SCHEMES", (*registry.SCHEMES, Scheme(find, methods=("twos",))))
    checkpoint = open_checkpoint(path)
    assert checkpoint.names() == ("b", "a.weight")
    assert (checkpoint.shape("a.weight"), checkpoint.stored_as("a.weight")) == ((3,), "TWO")
    np.testing.assert_array_equal(checkpoint.read("a.weight"), [0, 2, 4])


def test_mxfp4_needs_its_blocks(tmp_path):
    path = folder(tmp_path / "m", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["x"]})
    with pytest.raises(CheckpointError, match="says mxfp4, and no tensor holds such blocks"):
        open_checkpoint(path)
    blocks = {"m.w_blocks": np.ones((2, 4, 3, 16), np.uint8), "m.w_scales": np.ones((2, 4, 3), np.uint8)}
    checkpoint = open_checkpoint(folder(tmp_path / "m", blocks, quantization_config={"quant_method": "mxfp4"}))
    np.testing.assert_array_equal(checkpoint.read("m.w_blocks"), blocks["m.w_blocks"])


def mxfp4_folder(path: Path, scales: np.ndarray) -> tuple[Path, np.ndarray]:
    """One packed module in 4-bit floats beside an affine one, as mlx-lm writes gpt-oss, and the floats' words."""
    q = quantize_weight(RNG.standard_normal((4, 64)).astype(np.float32), 4, 64)
    words = RNG.integers(0, 2**32, (3, 4, 8), np.uint32)
    tensors = parts("model.q", q) | {"model.e.weight": words, "model.e.scales": scales}
    own = {"group_size": 64, "bits": 4, "mode": "affine"}
    return folder(path, tensors, quantization={"group_size": 32, "bits": 4, "mode": "mxfp4", "model.q": own}), words


def test_mlx_mode_mxfp4_is_read_as_5_bits(tmp_path):
    scales = RNG.integers(110, 130, (3, 4, 2), np.uint8)
    path, words = mxfp4_folder(tmp_path / "m", scales)
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.names()) == {"model.q.weight", "model.e.weight"}
    assert checkpoint.shape("model.e.weight") == (3, 4, 64)
    assert (checkpoint.stored_as("model.e.weight"), checkpoint.stored_as("model.q.weight")) == ("MXFP4", "4-bit:64")
    value = checkpoint.read("model.e.weight")
    assert isinstance(value, Packed)
    expected = mx.dequantize(mx.array(words), mx.array(scales), None, 32, 4, mode="mxfp4")
    np.testing.assert_array_equal(dequantize(value), np.array(expected.astype(mx.float32)))


@pytest.mark.parametrize("scales", [np.ones((3, 4, 3), np.uint8), np.ones((3, 4, 2), np.float16)])
def test_mxfp4_scales_that_do_not_fit_are_refused(tmp_path, scales):
    path, _ = mxfp4_folder(tmp_path / "m", scales)
    with pytest.raises(CheckpointError, match=r"model\.e: MXFP4 weight .* does not go with scales"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("block", "drop", "message"),
    [
        ({"group_size": 64, "bits": 4}, "", "model.v: weight .* does not go with scales"),
        ({"group_size": 64, "bits": 7}, "", "bits and group are 7 and 64"),
        ({"group_size": 64, "bits": "4"}, "", "bits and group are '4' and 64"),
        ({"group_size": 64, "bits": 4.0}, "", "bits and group are 4.0 and 64"),
        ({"group_size": 64, "bits": 4, "model.v": False}, "", "model.v is packed, but its quantization entry is False"),
        ([1], "", "quantization is not a table"),
        (None, "", "bits and group are None and None"),
        (..., "model.v.biases", "model.safetensors: model.v: .*needs weight, scales and biases"),
    ],
)
def test_packed_tensors_that_do_not_fit(tmp_path, block, drop, message):
    path, _ = packed_folder(tmp_path / "m", block, drop)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


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
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00003\.safetensors, which is not"):
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
    with pytest.raises(
        CheckpointError, match=r"no tensor 'model\.more', which model\.safetensors\.index\.json looks for"
    ):
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
    with pytest.raises(CheckpointError, match=f"{name} is a link that leads out of its folder"):
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
        with pytest.raises(CheckpointError, match=f"{name}: 3221225472 bytes are too many"):
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
    with pytest.raises(CheckpointError, match=r"m: two tensors are called 'lm_head\.weight'"):
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


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "dtype": ({"x": GOOD | {"dtype": "F99"}}, "unknown dtype 'F99'"),
    "dtype kind": ({"x": GOOD | {"dtype": ["F32"]}}, "unknown dtype"),
    "shape": ({"x": GOOD | {"shape": [3]}}, "needs 12 bytes"),
    "negative": ({"x": GOOD | {"shape": [-2]}}, "has shape"),
    "float": ({"x": GOOD | {"shape": [2.0]}}, "has shape"),
    "huge": ({"x": GOOD | {"shape": [1 << 62, 1 << 62]}}, "needs"),
    "backwards": ({"x": GOOD | {"data_offsets": [8, 0]}}, "needs 8 bytes"),
    "outside": ({"x": GOOD | {"data_offsets": [60, 68]}}, "cut off"),
    "overlap": ({"x": GOOD, "y": GOOD | {"data_offsets": [4, 12]}}, "overlap"),
    "entry": ({"x": 3}, "no description"),
    "rank": ({"x": GOOD | {"shape": [1] * 40, "data_offsets": [0, 4]}}, "has shape"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers_name_file_and_tensor(tmp_path, name):
    table, message = BROKEN[name]
    header = json.dumps(table).encode()
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(CheckpointError, match=f"^model.safetensors: tensor.* '[xy]'.*{message}"):
        open_checkpoint(path)


def test_a_name_without_end_is_refused(tmp_path):
    header = json.dumps({f"model.layers.{'9' * 5000}.x": GOOD}).encode()  # its number could not be read
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match="name of a tensor has 5015 characters, the limit is 1024"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"", b"123", struct.pack("<Q", 1 << 60) + bytes(99), struct.pack("<Q", 4) + b"nope"]
)
def test_files_that_are_not_safetensors(tmp_path, content):
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^model\.safetensors: "):
        open_checkpoint(path)


def test_a_tensor_named_twice_is_refused(tmp_path):
    entry = json.dumps(GOOD)
    header = f'{{"x": {entry}, "x": {entry}}}'.encode()
    path = folder(tmp_path / "m")
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match="'x' appears twice"):
        open_checkpoint(path)


def test_a_header_bomb_is_refused_unread(tmp_path):
    path = folder(tmp_path / "m")
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 26 * 1024 * 1024))
        file.truncate(30 * 1024 * 1024)
    with pytest.raises(CheckpointError, match="a header of"):
        open_checkpoint(path)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory) -> tuple[Path, bytes]:
    path, _ = packed_folder(tmp_path_factory.mktemp("fuzz") / "m")
    return path, (path / "model.safetensors").read_bytes()


def read_everything(path: Path) -> None:
    with contextlib.suppress(PartitaError):
        checkpoint = open_checkpoint(path)
        checkpoint.fingerprint()
        for name in checkpoint.names():
            assert tuple(checkpoint.read(name).shape) == checkpoint.shape(name)


def test_a_file_cut_anywhere_is_refused(small_folder):
    path, content = small_folder
    for length in range(0, len(content), 7):
        (path / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_raise_typed_errors_only(small_folder, data):
    path, content = small_folder
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 800))
        digits = st.sampled_from([b"9", b"0", b"-", b'"', b"]", b"{", b"1e9", b"999999999999999999"])
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=2), digits))
        mutated[place : place + len(patch)] = patch
    (path / "model.safetensors").write_bytes(bytes(mutated))
    read_everything(path)
