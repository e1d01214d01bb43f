"""Importance matrices: both of llama.cpp's forms in, one out, what is damaged or another's; budgets of GGUF files."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

import partita_backends
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.gguf.reader import open_gguf
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError, UnsupportedModel
from partita.quantization import Packed, dequantize
from partita_convert.activations import importance
from partita_convert.convert import convert
from partita_convert.gguf.imatrix import read_imatrix
from partita_convert.gguf.write import plan_of
from partita_convert.layouts import as_mlx
from partita_convert.planning import Calibration, Request

from .. import gguf_models, tiny_models
from .test_k_quants import wide  # noqa: F401  # pyright: ignore[reportUnusedImport]

NAME, OURS = "blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"


def dat(entries: dict[str, np.ndarray], calls: int = 3) -> bytes:
    """llama.cpp's older form."""
    body = struct.pack("<i", len(entries))
    for name, mean in entries.items():
        raw = (mean * calls).astype("<f4").tobytes()
        body += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, mean.size) + raw
    return body + struct.pack("<ii", calls, 4) + b"text"


def theirs(path: Path, tensors: dict[str, np.ndarray], kind: str = "imatrix") -> Path:
    """The newer form, by the `gguf` package."""
    writer = gguf.GGUFWriter(path, arch="")
    writer.add_type(kind)
    for name, value in tensors.items():
        writer.add_tensor(name, value.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def source(wide: Path) -> Checkpoint:  # noqa: F811
    return open_checkpoint(wide)


def test_both_forms_say_the_same(source: Checkpoint, tmp_path: Path) -> None:
    mean = np.linspace(0.5, 2, 256)
    old, planned = tmp_path / "i.dat", plan_of(source)
    old.write_bytes(dat({NAME: mean, "blk.99.ffn_up.weight": mean}))
    new = theirs(tmp_path / "i.gguf", {f"{NAME}.in_sum2": 7 * mean[None], f"{NAME}.counts": np.full((1, 1), 7)})
    for path in (old, new):
        found = read_imatrix(path, planned)
        assert set(found) == {OURS}
        np.testing.assert_allclose(found[OURS], mean, rtol=1e-6)


def test_experts_are_weighed_each_by_the_rows_that_it_saw(tmp_path: Path) -> None:
    planned = plan_of(open_checkpoint(gguf_models.write("qwen3_moe", tmp_path)))
    (stack,) = (tensor for tensor in planned if tensor.gguf_name == "blk.0.ffn_up_exps.weight")
    experts, _, n = stack.shape
    sums, counts = np.zeros((experts, n)), np.zeros((experts, 1))
    sums[1], counts[1] = 6, 2
    sums[2], counts[2] = 2, 2
    name = stack.gguf_name
    path = theirs(tmp_path / "i.gguf", {f"{name}.in_sum2": sums, f"{name}.counts": counts})
    found = read_imatrix(path, planned)[stack.name]
    assert found.shape == (experts, n)
    expected = np.full((experts, n), 2.0)  # of all, for those that saw none
    expected[1], expected[2] = 3, 1
    np.testing.assert_allclose(found, expected)
    old = tmp_path / "i.dat"  # counts are those of calls: an expert's sums were made means before
    old.write_bytes(dat({name: expected.reshape(-1)}))
    np.testing.assert_allclose(read_imatrix(old, planned)[stack.name], expected, rtol=1e-6)
    tensors = {f"{name}.in_sum2": sums, f"{name}.counts": np.ones((experts - 1, 1))}
    with pytest.raises(DataError, match=f"{experts - 1} counts for {experts} matrices"):
        read_imatrix(theirs(tmp_path / "damaged.gguf", tensors), planned)


def test_what_experts_saw_is_kept_and_read_again(tmp_path: Path) -> None:
    source = open_checkpoint(gguf_models.write("qwen3_moe", tmp_path))
    calibration = Calibration(partita_backends.load("numpy", dtype="float32"), tiny_models.tokens(source.path), "text")
    request = Request("gguf", "Q4_0", calibration=calibration, save_imatrix=tmp_path / "kept.gguf")
    convert(source, tmp_path / "m.gguf", request)
    planned = plan_of(source)
    read, measured = read_imatrix(tmp_path / "kept.gguf", planned), measure(calibration, source)
    assert any(tensor.shape[:-2] for tensor in planned)
    for tensor in planned:
        if tensor.name in read:
            assert read[tensor.name].shape == (*tensor.shape[:-2], tensor.shape[-1])
            np.testing.assert_allclose(read[tensor.name], measured[tensor.name], rtol=1e-6)


def measure(calibration: Calibration, source: Checkpoint) -> dict[str, np.ndarray]:
    assert calibration.tokens is not None
    return importance(calibration.ops, as_mlx(source), calibration.tokens)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no importance matrix"),
        (b"\x00\x00\x00\x00", "no importance matrix"),
        (b"PK\x03\x04 and so on", "no importance matrix"),
        (dat({NAME: np.ones(256)})[:300], "cut off"),
        (dat({NAME: np.ones(255)}), "255 numbers, the model's matrix 256 columns"),
        (dat({NAME: np.full(256, np.nan)}), "negative or not finite"),
        (dat({NAME: -np.ones(256)}), "negative or not finite"),
        (dat({"blk.77.ffn_up.weight": np.ones(256)}), "no matrix of this model"),
        (b"GGUF\x03\x00\x00\x00", "i.dat"),
    ],
)
def test_what_is_damaged_or_anothers(data: bytes, words: str, source: Checkpoint, tmp_path: Path) -> None:
    (path := tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        read_imatrix(path, plan_of(source))
    assert "\n" not in str(caught.value)
    assert caught.value.field == "imatrix"


def test_gguf_files_that_are_none(source: Checkpoint, tmp_path: Path) -> None:
    planned, one = plan_of(source), np.ones((1, 256))
    for kind, tensors, words in (
        ("model", {f"{NAME}.in_sum2": one}, "general.type is not imatrix"),
        ("imatrix", {f"{NAME}.in_sum2": one}, "counts is missing"),
    ):
        with pytest.raises(DataError, match=words):
            read_imatrix(theirs(tmp_path / f"{kind}.gguf", tensors, kind), planned)
    with pytest.raises(DataError, match="cannot be read"):
        read_imatrix(tmp_path / "nowhere.gguf", planned)


@pytest.fixture
def calibration(wide: Path) -> Calibration:  # noqa: F811
    ops = partita_backends.load("numpy", dtype="float32")
    return Calibration(ops, tiny_models.tokens(wide), "text")


def test_what_was_measured_is_kept_and_read_again(source: Checkpoint, calibration: Calibration, tmp_path: Path) -> None:
    kept = tmp_path / "kept.gguf"
    request = Request("gguf", "Q4_K_M", calibration=calibration, save_imatrix=kept)
    convert(source, tmp_path / "a.gguf", request)
    convert(source, tmp_path / "b.gguf", Request("gguf", "Q4_K_M", imatrix=kept))
    convert(source, tmp_path / "c.gguf", Request("gguf", "Q4_K_M"))
    a, b, c = (open_gguf(tmp_path / f"{name}.gguf") for name in "abc")
    differs = [name for name in a.tensors if not np.array_equal(a.raw(name), c.raw(name))]
    assert NAME in differs
    dense = [
        dequantize(value) if isinstance(value := open_checkpoint(file.path).read(OURS), Packed) else value
        for file in (a, b)
    ]
    assert np.square(dense[0] - dense[1]).sum() < 1e-4 * np.square(dense[0]).sum()  # sums were rounded to float32
    file = open_gguf(kept)
    assert file.metadata["general.type"] == "imatrix"
    assert {f"{NAME}.in_sum2", f"{NAME}.counts"} <= set(file.tensors)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("mlx", "4", imatrix=Path("i.dat")), "`imatrix` is only for a GGUF file .* `to` gguf"),
        (Request("gguf", "F16", imatrix=Path("i.dat")), "`imatrix` is only .* `quantize` such as Q4_K_M"),
        (Request("gguf", None, save_imatrix=Path("i.dat")), "`save_imatrix` is only .* `quantize` such as"),
        (Request("gguf", "Q4_K_M", imatrix=Path("i"), save_imatrix=Path("j")), "leave one out"),
        (Request("gguf", "Q4_K_M", save_imatrix=Path("j.gguf")), "nothing is measured without a `calibration`"),
        (Request("gguf", "measured:4.5:32"), "groups of their own"),
        (Request("gguf", "measured:many"), "bits a weight must be from 2 to 10"),
        (Request("gguf", "MEASURED:4.5"), "measuring needs a `calibration` text"),
    ],
)
def test_what_makes_no_sense(request_: Request, words: str, source: Checkpoint, tmp_path: Path) -> None:
    place = tmp_path / ("m.gguf" if request_.to == "gguf" else "m")
    with pytest.raises(DataError, match=words):
        convert(source, place, request_)
    assert not place.exists()


def test_what_is_measured_is_kept_beside_source_and_result(source: Checkpoint, tmp_path: Path) -> None:
    place, inside = tmp_path / "m.gguf", source.path / "i.gguf"
    for kept, words in ((place, "`save_imatrix` names the place of the model"), (inside, "lies inside")):
        with pytest.raises(DataError, match=words):
            convert(source, place, Request("gguf", "Q4_K_M", save_imatrix=kept))
    assert not place.exists()
    assert not inside.exists()


@pytest.mark.parametrize("quantize", ["Q4_K_M", "measured:6"])
def test_a_model_that_gguf_cannot_express_is_refused_before_it_is_run(
    quantize: str, calibration: Calibration, tmp_path: Path
) -> None:
    source, done = open_checkpoint(tiny_models.write("lfm2_moe", tmp_path)), []
    with pytest.raises(UnsupportedModel, match=r"experts with scale 1\.5"):
        convert(
            source,
            tmp_path / "m.gguf",
            Request("gguf", quantize, calibration=calibration),
            on_progress=lambda *step: done.append(step),
        )
    assert not done


@pytest.mark.parametrize("budget", [3.5, 5.0])
def test_a_measured_file_keeps_to_its_budget(
    budget: float, source: Checkpoint, calibration: Calibration, tmp_path: Path
) -> None:
    request = Request("gguf", f"measured:{budget}", calibration=calibration)
    report = convert(source, tmp_path / "m.gguf", request)
    weights = [tensor for tensor in report.tensors if len(tensor.shape) > 1]
    bits = 8 * sum(tensor.nbytes for tensor in report.tensors) / sum(np.prod(tensor.shape) for tensor in weights)
    assert budget - 0.5 < bits <= budget
    kinds = {tensor.target for tensor in weights}
    assert len(kinds) > 1
    assert kinds <= {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q5_0", "Q5_1"}
