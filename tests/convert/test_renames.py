"""Tensors under the names that mlx-lm looks for, and back: whole models that see, and texts without a table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.model.families.parse import parse
from partita.model.families.wrappers import left_out
from partita_convert.renames import as_of_mlx, as_published
from partita_convert.write_folder import write_huggingface, write_mlx

from .. import bounds, tiny_models
from ..models.test_wrappers import written
from .test_layouts import logits


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written("muse_glimmer", tmp_path_factory.mktemp("whole"))[0]


def same(before: Checkpoint, after: Checkpoint) -> None:
    assert set(before.names()) == set(after.names())
    for name in before.names():
        np.testing.assert_array_equal(after.read(name), before.read(name))


def test_mlx_lm_knows_what_it_leaves_out_by_its_name(whole: Path, tmp_path: Path) -> None:
    write_mlx(open_checkpoint(whole), tmp_path / "mlx")
    mlx = open_checkpoint(tmp_path / "mlx")
    names = set(mlx.names())
    assert {"vision_projection.weight", "language_model.model.layers.0.self_attn.gate_proj.weight"} <= names
    assert not any(name.startswith("model.") for name in names)
    assert left_out(names) == left_out(open_checkpoint(whole).names())
    write_huggingface(mlx, tmp_path / "back", dtype=None)
    same(open_checkpoint(whole), open_checkpoint(tmp_path / "back"))


def test_a_name_is_one_tensor_and_an_old_one_is_none(whole: Path) -> None:
    source = open_checkpoint(whole)
    mlx = as_of_mlx(source)
    assert as_of_mlx(mlx) is mlx
    assert as_published(source) is source
    assert set(as_published(mlx).names()) == set(source.names())
    with pytest.raises(type(source.missing("x")), match="no tensor"):
        mlx.read("model.language_model.norm.weight")
    assert mlx.stored_as("language_model.model.norm.weight") == "F32"


def test_a_text_whose_fields_stand_beside_its_name(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    """As folders for mlx-lm have it: it is read, and is a text alone for transformers."""
    source = tiny_family("muse_glimmer")
    flat = shutil.copytree(source, tmp_path / "flat")
    config = json.loads((flat / "config.json").read_text())
    (flat / "config.json").write_text(json.dumps(config | {"model_type": "muse_glimmer"}))
    tokens = tiny_models.tokens(source)
    expected, error = tiny_models.reference_logits(source, tokens), bounds.logits(source)
    bounds.assert_near(logits(flat, tokens), expected, error)
    write_mlx(open_checkpoint(flat), tmp_path / "mlx")
    bounds.assert_near(logits(tmp_path / "mlx", tokens), expected, error)
    write_huggingface(open_checkpoint(flat), tmp_path / "dense")
    said = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert said["model_type"] == "muse_glimmer_text"
    assert parse(said) == parse(config)
    np.testing.assert_array_equal(tiny_models.reference_logits(tmp_path / "dense", tokens), expected)
