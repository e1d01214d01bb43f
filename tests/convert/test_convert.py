"""One conversion: what is kept, what is weighed and measured, what is refused before anything is written."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import partita_backends
from partita.backend import Backend
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.gguf.blocks import AFFINE, decode
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError
from partita.model.load import load_decoder
from partita.quantization import Packed, dequantize
from partita.text.load import load_tokenizer
from partita.units import disk_size
from partita_convert.activations import SHARED, _mean_squares_of_each, importance
from partita_convert.calibration import SAMPLE, written_tokens
from partita_convert.changed import Changed
from partita_convert.check import check_loss
from partita_convert.convert import convert
from partita_convert.layouts import as_mlx
from partita_convert.measure import Groups, _Source, measure
from partita_convert.planning import Calibration, Request
from partita_convert.recipes import quantizable
from partita_convert.report import Report, kinds, worst

from .. import gguf_models, tiny_models
from ..runtime.checkpoint.test_gguf_types import blocks
from .test_write_folder import gguf_file


@pytest.fixture(scope="module")
def ops() -> Backend:
    return partita_backends.load("numpy")


@pytest.fixture(scope="module")
def source(tiny_model: Path) -> Checkpoint:
    return open_checkpoint(tiny_model)


@pytest.fixture(scope="module")
def tokens(source: Checkpoint) -> list[int]:
    return load_tokenizer(source).encode(SAMPLE)[:100]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Checkpoint:
    return open_checkpoint(gguf_file(tmp_path_factory.mktemp("llama") / "m.gguf"))


def dense(value: np.ndarray | Packed) -> np.ndarray:
    return dequantize(value) if isinstance(value, Packed) else value.astype(np.float32)


# --- what the columns are multiplied by


def test_importance_is_the_mean_square_of_what_comes_in(source, ops, tokens):
    found = importance(ops, source, tokens)
    assert set(found) == {
        name for name in quantizable(source) if "embed" not in name
    }  # a head of its own: lm_head, and the embedding is looked up, not multiplied
    table = source.read("model.embed_tokens.weight")[tokens].astype(np.float64)
    normed = table / np.sqrt(np.square(table).mean(-1, keepdims=True) + 1e-5)
    for projection in ("q_proj", "k_proj", "v_proj"):
        columns = found[f"model.layers.0.self_attn.{projection}.weight"]
        np.testing.assert_allclose(columns, np.square(normed).mean(0), rtol=1e-4)
    for name, columns in found.items():
        assert columns.shape == (source.shape(name)[-1],)
        assert (columns > 0).all()


@pytest.mark.parametrize("name", ["gemma4", "gemma4-experts", "laguna", "laguna-elements", "muse_glimmer"])
def test_importance_is_found_in_layers_that_differ(tiny_family, ops, name):
    """Layers that are told of each token, that share keys and values, with experts beside a dense MLP, gates and heads
    of their own. An embedding that is not the head is looked up, not multiplied."""
    source = as_mlx(open_checkpoint(tiny_family(name)))
    found = importance(ops, source, list(range(20, 60)))
    rows = {key for key in quantizable(source) if key.endswith("embed_tokens_per_layer.weight")}
    assert set(found) >= set(quantizable(source)) - {"model.embed_tokens.weight", *rows}
    assert ("model.per_layer_model_projection.weight" in found) == bool(rows) == (name == "gemma4")
    assert all(columns.shape == (*source.shape(key)[:-2], source.shape(key)[-1]) for key, columns in found.items())


def test_importance_of_experts_is_of_what_each_saw(tiny_family, ops):
    """However they are kept. Few rows count together with those of all."""
    apart, stacked = (open_checkpoint(tiny_family("qwen3_moe")) for _ in range(2))
    ids = list(range(20, 60))
    found, own = importance(ops, as_mlx(stacked), ids), importance(ops, apart, ids)
    names = [name for name in found if found[name].ndim == 2]
    assert names
    for name in names:
        module, _, projection = name.partition(".switch_mlp.")
        each = [own[f"{module}.experts.{expert}.{projection}"] for expert in range(len(found[name]))]
        np.testing.assert_array_equal(found[name], each)
        assert len(np.unique(found[name], axis=0)) > 1
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    index = np.array([[[0, 2], [2, 0], [0, 3]]], np.int32)
    squares, mean = np.square(x).reshape(-1, 2), np.square(x).reshape(-1, 2).mean(0)
    rows = {0: [0, 3, 4], 1: [], 2: [1, 2], 3: [5]}
    expected = [(squares[rows[e]].sum(0) + SHARED * mean) / (len(rows[e]) + SHARED) for e in range(4)]
    given = _mean_squares_of_each(ops, ops.array(x), ops.array(index), 4)
    np.testing.assert_allclose(given, expected, rtol=1e-6)
    same = _mean_squares_of_each(
        ops, ops.array(x[:, :, :1]), ops.array(index), 4
    )  # the experts of a token read the same
    np.testing.assert_allclose(same[3] * (1 + SHARED), squares[4] + SHARED * squares[::2].mean(0), rtol=1e-6)


def test_weighing_lowers_the_error_of_what_comes_out(tiny_model, ops, tokens, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "in")
    weights = load_file(folder / "model.safetensors")
    for i in range(2):  # a few columns that are much larger than others, as trained models have them
        weights[f"model.layers.{i}.input_layernorm.weight"][::16] = 20
        weights[f"model.layers.{i}.post_attention_layernorm.weight"][::16] = 20
    save_file(weights, folder / "model.safetensors")
    uneven, text = open_checkpoint(folder), SAMPLE[-400:]
    loss = {}
    for name, calibration in (("none", None), ("own", Calibration(ops, tokens, "x"))):
        convert(uneven, tmp_path / name, Request(quantize="4", calibration=calibration))
        loss[name] = check_loss(ops, uneven, tmp_path / name, text)
    assert 0 < loss["own"].kl < 0.8 * loss["none"].kl
    assert loss["own"].top1 >= loss["none"].top1
    assert loss["own"].source_perplexity == loss["none"].source_perplexity


# --- a measured budget


def test_a_part_is_measured_by_what_changes_in_it(tiny_family, ops):
    """Layers that share keys and values with one that is not run again, and are told of each token."""
    source = as_mlx(open_checkpoint(tiny_family("gemma4")))
    tokens, decoder = list(range(20, 60)), load_decoder(ops, source)
    whole = _Source.of(ops, decoder, tokens)
    assert [whole.divergence(decoder, layer) for layer in range(8)] == pytest.approx([0] * 8, abs=1e-6)
    found = measure(ops, source, decoder, quantizable(source), tokens, Groups(32), {})
    loss = {name: part.divergence for part in found for name in part.names}
    assert set(loss) == set(quantizable(source))
    assert min(loss.values()) > 1e-6


def test_measuring_sees_what_matters(source, ops, tokens):
    """Two layers, of which the second hardly speaks."""
    quiet = Changed.of(
        source, change=lambda name, value: dense(value) * 1e-3 if ".1." in name and "down" in name else value
    )
    weights = quantizable(quiet)
    steps = []
    decoder = load_decoder(ops, quiet)
    found = measure(
        ops, quiet, decoder, weights, tokens, Groups(32), {}, lambda done, total: steps.append((done, total))
    )
    assert sorted(name for part in found for name in part.names) == sorted(weights)
    assert steps == [(i + 1, len(found)) for i in range(len(found))]
    loss = {name: part.divergence for part in found for name in part.names}
    gates = [f"model.layers.{i}.mlp.gate_proj.weight" for i in range(2)]
    assert loss[gates[0]] > 100 * loss[gates[1]]
    assert loss["lm_head.weight"] > 0
    for part in found:
        assert part.errors[3] == 1
        assert part.errors[2] > part.errors[3] > part.errors[4] > part.errors[5] > part.errors[6] > part.errors[8] > 0


@pytest.mark.parametrize("budget", [3.5, 4.5, 6.0])
def test_a_measured_folder_keeps_to_its_budget(source, ops, tokens, tmp_path, budget):
    request = Request(quantize=f"measured:{budget}:32", calibration=Calibration(ops, tokens, "text"))
    report = convert(source, tmp_path / "out", request)
    assert budget - 0.5 < report.bits_per_weight <= budget + 0.01
    assert len({tensor.target for tensor in report.tensors if "bit" in tensor.target}) > 1
    again = open_checkpoint(tmp_path / "out")
    for tensor in report.tensors:
        assert again.stored_as(tensor.name).lower().replace("f32", "float32") == tensor.target


def test_a_measured_folder_spares_routers_and_convolutions(ops, tiny_family, tmp_path):
    moe = open_checkpoint(tiny_family("lfm2_moe"))
    ids = tiny_models.tokens(tiny_family("lfm2_moe"))
    report = convert(moe, tmp_path / "out", Request(quantize="measured:5:32", calibration=Calibration(ops, ids, "x")))
    assert 4.5 < report.bits_per_weight <= 5.01
    targets = {tensor.name: tensor.target for tensor in report.tensors}
    for name, target in targets.items():
        whole = name.endswith((".gate.weight", ".conv.conv.weight", "expert_bias")) or "norm" in name
        assert ("bit" in target) != whole, name
    switched = [f"model.layers.1.feed_forward.switch_mlp.{part}_proj.weight" for part in ("gate", "up")]
    assert targets[switched[0]] == targets[switched[1]]
    assert np.isfinite(check_loss(ops, moe, tmp_path / "out", SAMPLE[-400:]).kl)


def test_the_model_writes_the_same_text_every_time(source, ops):
    decoder, tokenizer = load_decoder(ops, source), load_tokenizer(source)
    steps = []
    first = written_tokens(ops, decoder, tokenizer, lambda done, total: steps.append(done / total))
    assert first == written_tokens(ops, decoder, tokenizer)
    assert len(first) == 512
    assert len(set(first)) > 50
    assert steps[-1] == 1


def test_measuring_needs_a_text(source, tmp_path):
    with pytest.raises(DataError, match=r"measuring needs"):
        convert(source, tmp_path / "out", Request(quantize="measured:4"))


# --- what is packed already


@pytest.mark.parametrize(("quantize", "kept"), [(None, True), ("4", True), ("4:32", True), ("4:64", False)])
def test_integers_are_kept_unless_others_are_asked_for(llama, tmp_path, quantize, kept):
    report = convert(llama, tmp_path / "out", Request(quantize=quantize))
    again = open_checkpoint(tmp_path / "out")
    rows = {tensor.name: tensor for tensor in report.tensors}
    name = "model.layers.1.self_attn.q_proj.weight"
    assert (rows[name].source, rows[name].target) == ("Q4_1", "4-bit:32" if kept else "4-bit:64")
    assert (rows[name].error == 0) == kept
    np.testing.assert_array_equal(dense(llama.read(name)), dense(again.read(name))) if kept else None
    assert rows["model.embed_tokens.weight"].target == (
        "8-bit:32" if quantize is None else "6-bit:" + (quantize + ":64")[2:4]
    )
    assert rows["model.norm.weight"].error == 0


def k_quants(base: Checkpoint, scale: float = 1.0003) -> Checkpoint:
    """Packed tensors whose scales need float32, as a K-quant's do."""

    def change(name: str, value):
        if not isinstance(value, Packed):
            return value
        return replace(value, scales=value.scales * np.float32(scale), biases=value.biases * np.float32(scale))

    return Changed.of(base, change=change)


def test_scales_of_k_quants(llama, tmp_path):
    wide = k_quants(llama)
    half = convert(wide, tmp_path / "half", Request())
    exact = convert(wide, tmp_path / "exact", Request(exact=True))
    assert exact.bits_per_weight > half.bits_per_weight
    for before, after in zip(half.tensors, exact.tensors, strict=True):
        packed = "bit" in before.target
        assert after.error == 0
        assert 0 < before.error < 1e-3 if packed and before.error is not None else before.error == 0
    name = "model.layers.0.mlp.up_proj.weight"
    folders = [open_checkpoint(tmp_path / form) for form in ("half", "exact")]
    values = [folder.read(name) for folder in (wide, *folders)]
    assert all(isinstance(value, Packed) for value in values)
    for value in values[1:]:
        np.testing.assert_array_equal(value.weight, values[0].weight)  # pyright: ignore[reportAttributeAccessIssue]
    assert [value.scales.dtype.name for value in values[1:]] == ["float16", "float32"]  # pyright: ignore[reportAttributeAccessIssue]
    convert(folders[1], tmp_path / "again", Request())  # from a folder, scales stay as they are
    assert open_checkpoint(tmp_path / "again").read(name).scales.dtype == np.float32  # pyright: ignore[reportAttributeAccessIssue]
    tiny = convert(k_quants(llama, 1e-9), tmp_path / "tiny", Request())
    assert max(tensor.error or 0 for tensor in tiny.tensors) == 0  # float16 has no such scales: kept in float32


@pytest.mark.parametrize("kind", AFFINE)
def test_affine_blocks_are_exact_in_an_mlx_folder(llama, tmp_path, kind):
    """Random blocks of each type, beside the gguf package's own numbers."""
    raw, name = blocks(kind, 32, 256), "model.layers.0.mlp.up_proj.weight"
    value = decode(raw.reshape(-1), kind, (32, 256), name)
    changed = Changed.of(llama, change=lambda own, other: value if own == name else other)
    report = convert(changed, tmp_path / "out", Request(exact=True))
    read = open_checkpoint(tmp_path / "out").read(name)
    assert isinstance(read, Packed)
    np.testing.assert_array_equal(dequantize(read), gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]))
    assert {tensor.error for tensor in report.tensors if tensor.name == name} == {0}


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_dense_tensors_take_the_dtype_that_was_asked_for(source, tmp_path, dtype):
    report = convert(source, tmp_path / "out", Request(dtype=dtype))
    assert {tensor.target for tensor in report.tensors} == {dtype or "float32"}
    assert (max(tensor.error or 0 for tensor in report.tensors) == 0) == (dtype is None)


def test_a_searched_gguf_type_is_weighed_too(source, ops, tokens, tmp_path):
    plain = convert(source, tmp_path / "a.gguf", Request(to="gguf", quantize="4"))
    weighed = convert(
        source, tmp_path / "b.gguf", Request(to="gguf", quantize="Q4_1", calibration=Calibration(ops, tokens, "x"))
    )
    assert [tensor.target for tensor in plain.tensors] == [tensor.target for tensor in weighed.tensors]
    assert {tensor.target for tensor in plain.tensors} == {"Q4_1", "Q8_0", "F32"}
    assert (tmp_path / "a.gguf").read_bytes() != (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_experts_in_a_gguf_file_are_weighed_too(tmp_path, ops, tokens, name):
    """Their stacks are called otherwise in each form."""
    experts = open_checkpoint(gguf_models.write(name, tmp_path))
    for file, calibration in (("a.gguf", None), ("b.gguf", Calibration(ops, tokens, "x"))):
        convert(experts, tmp_path / file, Request(to="gguf", quantize="Q4_1", calibration=calibration))
    plain, weighed = (open_checkpoint(tmp_path / file) for file in ("a.gguf", "b.gguf"))
    for weight in plain.names():
        if plain.stored_as(weight) == "Q4_1" and "embed" not in weight:
            assert not np.array_equal(dense(plain.read(weight)), dense(weighed.read(weight))), weight


# --- refused before anything is written


@pytest.mark.parametrize(
    ("place", "request_", "words"),
    [
        ("out.gguf", Request(), "`to` mlx writes a folder"),
        ("out", Request(to="gguf"), "writes a file that ends in .gguf"),
        ("out", Request(to="onnx"), "`to` 'onnx'"),
        ("out", Request(to="huggingface", quantize="4"), "transformers reads dense weights only"),
        (
            "out.gguf",
            Request(to="gguf", quantize="4:64"),
            "unknown `quantize` '4:64' for a GGUF file; expected one of F32",
        ),
        ("out.gguf", Request(to="gguf", dtype="float16"), "`dtype`: a GGUF file's type is `quantize`"),
        ("out", Request(quantize="q4_0"), "is a GGUF type: say `to` gguf"),
        ("out", Request(dtype="int8"), "unknown `dtype` 'int8'; expected one of float32"),
        ("out", Request(to="huggingface", exact=True), "`exact` is about the scales of an mlx folder"),
    ],
)
def test_requests_that_make_no_sense(source, tmp_path, place, request_, words):
    with pytest.raises(DataError) as refused:
        convert(source, tmp_path / place, request_)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_never_written_into(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "in")
    for place in (folder / "out", folder / "deep" / "out", folder / ".." / "in" / "out"):
        with pytest.raises(DataError, match="lies inside"):
            convert(open_checkpoint(folder), place, Request())
    with pytest.raises(DataError, match="exists already"):
        convert(open_checkpoint(folder), folder, Request())
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in tiny_model.iterdir())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "request_",
    [
        Request(),
        Request(quantize="4:64"),
        Request(to="huggingface"),
        Request(to="huggingface", dtype="bfloat16"),
        Request(to="gguf", quantize="Q8_0"),
    ],
)
def test_room_on_the_disk_is_asked_for_first(source, llama, tmp_path, monkeypatch, request_, packed):
    from partita_convert import planning

    checkpoint = llama if packed and request_.to != "gguf" else source
    name = "out.gguf" if request_.to == "gguf" else "out"
    written = sum(tensor.nbytes for tensor in convert(checkpoint, tmp_path / name, request_).tensors)
    asked, free = [], [written - 1]

    def disk_usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(free[0])

    monkeypatch.setattr(planning, "_BESIDE", 0)
    monkeypatch.setattr(planning.shutil, "disk_usage", disk_usage)
    with pytest.raises(DataError, match=f"{disk_size(written)} .*needed.* {disk_size(written - 1)} .*free"):
        convert(checkpoint, tmp_path / "deep" / "er" / name, request_)
    assert asked == [tmp_path]
    assert not (tmp_path / "deep").exists()
    free[0] = int(1.35 * written)
    convert(checkpoint, tmp_path / "deep" / "er" / name, request_)


class Usage:
    def __init__(self, free: int):
        self.free = free


# --- the report


def test_the_report_adds_up(source, tmp_path):
    report = convert(source, tmp_path / "out", Request(quantize="4"))
    document = json.loads(json.dumps(report.as_json(), allow_nan=False))
    weights = sum(math.prod(row["shape"]) for row in document["tensors"])
    assert document["bits_per_weight"] == pytest.approx(8 * sum(row["bytes"] for row in document["tensors"]) / weights)
    assert document["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert document["source_bytes"] == (source.path / "model.safetensors").stat().st_size
    again = open_checkpoint(tmp_path / "out")
    for row in document["tensors"]:
        before, after = (dense(checkpoint.read(row["name"])).astype(np.float64) for checkpoint in (source, again))
        assert row["error"] == pytest.approx(
            np.sqrt(np.square(after - before).sum() / np.square(before).sum()), rel=1e-3
        )
    summary = {kind.name: kind for kind in kinds(report.tensors)}
    assert summary["embedding and head"].target == "6-bit:64"
    assert summary["norms and others"].error == 0
    assert sum(kind.count for kind in summary.values()) == len(report.tensors)
    first, *_ = worst(report.tensors)
    assert first.error == max(tensor.error or 0 for tensor in report.tensors)


def test_an_error_without_bound_is_no_json_number(tmp_path):
    from partita_convert.write_folder import WrittenTensor

    report = Report(tmp_path, "mlx", 1, 1, (WrittenTensor("a", (2,), "F32", "float16", 4, math.inf),))
    assert report.as_json()["tensors"][0]["error"] is None


def test_memory_is_that_of_a_piece(tmp_path):
    """Three matrices of 8 MB are quantized, and cast, with less than one more of them in memory."""
    import tracemalloc

    (folder := tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    weights = {
        f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal((1024, 2048), np.float32).astype(np.float32)
        for i in range(3)
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard_of", "rope_theta": 1e4, "head_dim": 64}))
    for request in (Request(quantize="3"), Request(dtype="bfloat16"), Request(to="huggingface", dtype="float16")):
        source = open_checkpoint(folder)
        tracemalloc.start()
        convert(source, tmp_path / f"{request.to}-{request.quantize}-{request.dtype}", request)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 15_000_000, request
