"""Sources that other tools left: a tensor that is missing or of another shape, constants, float64, links."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import partita_backends
from partita.checkpoint.open import open_checkpoint
from partita.errors import CheckpointError
from partita.model.load import load_decoder
from partita_convert.convert import convert
from partita_convert.planning import Request


def rewritten(folder: Path, target: Path, change, **config) -> Path:
    """A copy of a model's folder whose tensors went through `change`."""
    shutil.copytree(folder, target)
    said = json.loads((folder / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(said))
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


REQUESTS = {
    "out": Request(),
    "few": Request(quantize="4"),
    "hf": Request(to="huggingface"),
    "out.gguf": Request(to="gguf"),
    "few.gguf": Request(to="gguf", quantize="Q4_0"),
}


@pytest.mark.parametrize("place", REQUESTS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe", "gpt_oss"])
def test_a_source_that_lacks_a_tensor_is_refused_before_anything_is_written(tiny_family, tmp_path, place, family):
    whole = load_file(tiny_family(family) / "model.safetensors")
    layer = max(name for name in whole if ".layers.1." in name)
    for lost in (
        layer,
        "model.norm.weight",
        *[name for name in whole if name.endswith((".q_proj.bias", "down_proj.bias"))][:1],
    ):
        source = rewritten(
            tiny_family(family),
            tmp_path / lost,
            lambda tensors, lost=lost: {n: x for n, x in tensors.items() if n != lost},
        )
        before = sorted(tmp_path.iterdir())
        with pytest.raises(CheckpointError, match=lost.replace(".", "[.]")):
            convert(open_checkpoint(source), tmp_path / place, REQUESTS[place])
        assert sorted(tmp_path.iterdir()) == before


def test_a_tensor_of_another_shape_is_refused(tiny_family, tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"
    source = rewritten(tiny_family("llama"), tmp_path / "m", lambda tensors: tensors | {name: tensors[name][1:].copy()})
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(63, 96\), .*\(64, 96\)"):
        convert(open_checkpoint(source), tmp_path / "out", Request())


@pytest.mark.parametrize("place", REQUESTS)
def test_constants_are_in_no_form(tiny_model, tmp_path, place):
    constants = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32) for i in range(2)}
    source = rewritten(tiny_model, tmp_path / "m", lambda tensors: tensors | constants)
    names = [tensor.name for tensor in convert(open_checkpoint(source), tmp_path / place, REQUESTS[place]).tensors]
    assert sorted(names) == sorted(load_file(tiny_model / "model.safetensors"))


def test_float64_is_written_as_readers_take_it(tiny_model, tmp_path):
    source = open_checkpoint(
        rewritten(tiny_model, tmp_path / "m", lambda tensors: {n: x.astype(np.float64) for n, x in tensors.items()})
    )
    assert {source.stored_as(name) for name in source.names()} == {"F64"}
    for place in ("out", "out.gguf"):
        convert(source, tmp_path / place, REQUESTS[place])
        written = open_checkpoint(tmp_path / place)
        assert {written.stored_as(name) for name in written.names()} == {"F32"}
    convert(source, tmp_path / "hf", REQUESTS["hf"])  # bit for bit
    assert load_file(tmp_path / "hf" / "model.safetensors")["model.norm.weight"].dtype == np.float64
    assert load_decoder(partita_backends.load("numpy"), source).blocks[0].mixer.out.weight.dtype == np.float32


def test_links_out_of_a_folder_are_not_copied(tiny_model, tmp_path):
    (tmp_path / "secret").write_text("key")
    source = shutil.copytree(tiny_model, tmp_path / "m")
    for name in ("vocab.json", "merges.txt", "notes.txt"):
        (source / name).symlink_to(tmp_path / "secret")
    convert(open_checkpoint(source), tmp_path / "out", Request())
    assert not [path for path in (tmp_path / "out").iterdir() if path.name in ("vocab.json", "merges.txt", "notes.txt")]
    (source / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is a link"):
        convert(open_checkpoint(source), tmp_path / "more", Request())
    assert not (tmp_path / "more").exists()
    (source / "chat_template.jinja").unlink()
    (source / "tokenizer.json").rename(source / "kept.json")
    with pytest.raises(CheckpointError, match=r"vocab\.json is a link"):  # which a reader would read now
        convert(open_checkpoint(source), tmp_path / "more", Request())
