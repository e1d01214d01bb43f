"""An adapter's change on its way into what is written: how much arrives, and what becomes of it where bits are few."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from partita.adapters.read import Adapter, LowRank
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError
from partita.quantization import Packed, dequantize
from partita.units import disk_size
from partita_convert.card import card
from partita_convert.changed import Changed
from partita_convert.convert import convert
from partita_convert.planning import Request

Q, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def source(tiny_model: Path) -> Checkpoint:
    return open_checkpoint(tiny_model)


@pytest.fixture(scope="module")
def packed(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("packed") / "four"
    convert(source, folder, Request(quantize="4:32"))
    return open_checkpoint(folder)


def adapter(source: Checkpoint, size: float) -> Adapter:
    """Changes of two weights whose numbers are about `size`."""
    rng = np.random.default_rng(3)
    changes = {}
    for name in (Q, DOWN):
        rows, columns = source.shape(name)
        a, b = (rng.standard_normal(shape, np.float32) for shape in ((4, columns), (rows, 4)))
        changes[name] = LowRank(a, b, size / 2, None)
    return Adapter(Path("tuned"), "peft", changes, {}, None, 0.0)


def dense(value: np.ndarray | Packed) -> np.ndarray:
    return dequantize(value) if isinstance(value, Packed) else value.astype(np.float32)


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("out", Request()),
        ("out", Request(quantize="4")),
        ("out", Request(to="huggingface", dtype="bfloat16")),
        ("out.gguf", Request(to="gguf")),
        ("out.gguf", Request(to="gguf", quantize="Q4_1")),
    ],
)
def test_what_is_written_has_the_change(source, tmp_path, name, request_):
    tuned = adapter(source, 0.1)
    arguments = {key: value for key, value in vars(request_).items() if key != "adapter"}
    report = convert(source, tmp_path / name, Request(**arguments, adapter=tuned))
    convert(source, tmp_path / f"plain-{name}", request_)
    changed, plain = open_checkpoint(tmp_path / name), open_checkpoint(tmp_path / f"plain-{name}")
    assert set(report.retained) == {Q, DOWN}
    for weight, share in report.retained.items():
        moved = dense(changed.read(weight)) - dense(plain.read(weight))
        delta = tuned.changes[weight].scale * (tuned.changes[weight].b @ tuned.changes[weight].a)
        assert share == pytest.approx(np.vdot(moved, delta) / np.vdot(delta, delta), abs=1e-3)
        assert 0.9 < share < 1.1
    untouched = "model.layers.0.mlp.up_proj.weight"
    np.testing.assert_array_equal(dense(changed.read(untouched)), dense(plain.read(untouched)))


def test_bits_are_raised_for_a_change_that_a_grid_would_lose(packed, tmp_path):
    tuned = adapter(packed, 0.004)
    raised = convert(packed, tmp_path / "raised", Request(adapter=tuned), card=card(packed, "partita convert"))
    kept = convert(packed, tmp_path / "kept", Request(adapter=tuned, policy="keep"))
    rows = {tensor.name: tensor for tensor in raised.tensors}
    assert {rows[name].source for name in (Q, DOWN)} == {"4-bit:32"}
    assert rows["model.layers.0.mlp.up_proj.weight"].target == "4-bit:32"
    assert all(rows[name].target != "4-bit:32" and raised.retained[name] >= 0.9 for name in (Q, DOWN))
    assert {tensor.target for tensor in kept.tensors if tensor.name in (Q, DOWN)} == {"4-bit:32"}
    assert kept.least_retained is not None
    assert kept.least_retained < 0.9
    readme = (tmp_path / "raised" / "README.md").read_text()
    assert f"| 1 | 4-bit:32 | {rows[DOWN].target} |" in readme
    why = raised.why_raised
    assert why is not None
    assert "2 of 2 weights that the adapter changes have more bits (4-bit:32 → " in why
    assert f"{min(item.share for item in raised.raised.values()):.0%} to " in why
    assert all(item.share == pytest.approx(kept.retained[name]) for name, item in raised.raised.items())
    assert "`adapter_loss` keep" in why
    assert why in readme
    assert raised.as_json()["raised"] == why
    assert kept.why_raised is None


def test_what_raising_costs_is_the_difference_to_keeping_the_loss(packed, tmp_path):
    tuned = adapter(packed, 0.004)
    asked = Request(adapter=tuned), Request(to="gguf", quantize="Q4_1", adapter=tuned), Request("gguf", adapter=tuned)
    for i, request in enumerate(asked):
        ending = ".gguf" if request.to == "gguf" else ""
        raised = convert(packed, tmp_path / f"raised{i}{ending}", request)
        kept = convert(packed, tmp_path / f"kept{i}{ending}", replace(request, policy="keep"))
        extra = sum(tensor.nbytes for tensor in raised.tensors) - sum(tensor.nbytes for tensor in kept.tensors)
        assert raised.why_raised is not None
        assert f", {disk_size(extra)} more: rounding would have left" in raised.why_raised
        rows = {row["name"]: row for row in raised.as_json()["tensors"]}
        assert {name for name, row in rows.items() if "wanted" in row} == {Q, DOWN}
        assert {tensor.name: tensor.target for tensor in kept.tensors}[Q] == rows[Q]["wanted"]
        assert rows[Q]["retained_in_wanted"] == pytest.approx(kept.retained[Q])


def test_without_a_wish_a_gguf_file_keeps_the_type_where_the_change_fits(packed, tmp_path):
    report = convert(packed, tmp_path / "out.gguf", Request(to="gguf", adapter=adapter(packed, 0.1)))
    assert {tensor.target for tensor in report.tensors if tensor.name in (Q, DOWN)} == {"Q4_1"}
    assert report.why_raised is None


@pytest.mark.parametrize("request_", [{}, {"to": "gguf", "quantize": "Q4_1"}])
def test_a_loss_is_refused_with_the_figure(packed, tmp_path, request_):
    place = tmp_path / ("out.gguf" if request_ else "out")
    with pytest.raises(DataError, match=r"q_proj\.weight: -?\d+ % of the adapter"):
        convert(packed, place, Request(adapter=adapter(packed, 0.004), policy="refuse", **request_))
    assert list(tmp_path.iterdir()) == []


def test_a_wider_gguf_type_for_a_change_that_would_be_lost(packed, tmp_path):
    request = Request(to="gguf", quantize="Q4_1", adapter=adapter(packed, 0.004))
    report = convert(packed, tmp_path / "out.gguf", request)
    targets = {tensor.name: tensor.target for tensor in report.tensors}
    assert targets["model.layers.0.mlp.up_proj.weight"] == "Q4_1"
    assert "Q4_1" not in {targets[Q], targets[DOWN]}
    assert all(share >= 0.9 for share in report.retained.values())


def test_a_head_that_is_wider_than_asked_is_measured_as_it_is_written(source, tmp_path):
    name = "lm_head.weight"
    rng = np.random.default_rng(3)
    a, b = (
        rng.standard_normal(shape, np.float32) for shape in ((2, source.shape(name)[1]), (source.shape(name)[0], 2))
    )
    tuned = Adapter(Path("tuned"), "peft", {name: LowRank(a, b, 0.01)}, {})
    report = convert(source, tmp_path / "out.gguf", Request(to="gguf", quantize="Q4_1", adapter=tuned))
    convert(source, tmp_path / "plain.gguf", Request(to="gguf", quantize="Q4_1"))
    changed, plain = (dense(open_checkpoint(tmp_path / file).read(name)) for file in ("out.gguf", "plain.gguf"))
    assert {tensor.name: tensor.target for tensor in report.tensors}[name] == "Q8_0"
    delta = 0.01 * (b @ a)
    assert report.retained[name] == pytest.approx(np.vdot(changed - plain, delta) / np.vdot(delta, delta), abs=1e-5)


def test_rows_that_no_block_divides(source, tmp_path):
    """80 columns of a down projection: F16 in a file of four bits, with an adapter as without."""

    def narrow(name: str, value):
        return value[..., :80] if "down_proj" in name else value[:80] if "gate" in name or "up_proj" in name else value

    class Narrow(Changed):
        def shape(self, name: str) -> tuple[int, ...]:
            return self.read(name).shape

    base = Narrow.of(source, change=narrow, config={**source.config, "intermediate_size": 80})
    report = convert(base, tmp_path / "out.gguf", Request(to="gguf", quantize="Q4_1", adapter=adapter(base, 0.1)))
    assert {tensor.name: tensor.target for tensor in report.tensors}[DOWN] == "F16"
    assert report.retained[DOWN] == pytest.approx(1, abs=1e-2)
