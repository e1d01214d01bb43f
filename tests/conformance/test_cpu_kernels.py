"""The kernels of torch's CPU against the same weights dequantized, and what holds without numba."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import partita_backends
from partita.backend import Backend
from partita.quantization import Packed, dequantize, pack, quantize_weight
from partita_backends.kernels import blocks, products
from partita_backends.torch import cpu, weights

from .. import bounds

BITS = (1, 2, 3, 4, 5, 6, 8)


def torch(dtype: str = "auto", threads: int = 1) -> Backend:
    return partita_backends.load("torch", device="cpu", dtype=dtype, threads=threads)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    import torch as library

    before = library.get_num_threads()
    yield
    library.set_num_threads(before)


def packed(bits: int, group_size: int, out: int = 80, size: int = 256) -> Packed:
    rng = np.random.default_rng(bits)
    return quantize_weight(rng.standard_normal((out, size)).astype(np.float32), bits, group_size)


def inputs(rows: int, size: int = 256) -> np.ndarray:
    x = np.random.default_rng(rows).standard_normal((1, rows, size)).astype(np.float32)
    x[..., 3] *= 40  # an outlier, as residual streams have
    return x


def rounded(x: np.ndarray) -> np.ndarray:
    """Each 16 numbers to 127 steps of the largest: the rule itself, in numpy."""
    parts = x.reshape(*x.shape[:-1], -1, 16)
    scale = np.abs(parts).max(-1, keepdims=True) / np.float32(127)
    per = np.where(scale > 0, 1 / np.where(scale > 0, scale, np.float32(1)), np.float32(0)).astype(np.float32)
    return (np.rint(parts * per).astype(np.float64) * scale).reshape(x.shape)


def product(ops: Backend, x: np.ndarray, weight: Any) -> np.ndarray:
    return ops.to_numpy(ops.linear(ops.array(x), weight))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [16, 32, 64, 128])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_a_few_rows_are_rounded_to_8_bits_and_multiplied_exactly(bits: int, group_size: int, rows: int) -> None:
    ops, weight, x = torch(), packed(bits, group_size), inputs(rows)
    found, dense = product(ops, x, ops.prepare(weight)), dequantize(weight).astype(np.float64)
    size = (np.abs(rounded(x)) @ np.abs(dense).T).max()
    bounds.assert_near(found, rounded(x) @ dense.T, bounds.drift(256 + 4), size)
    # nothing but that: an input is off by half a step at most
    step = np.repeat(np.abs(x.reshape(1, rows, -1, 16)).max(-1), 16, -1) / 127
    assert (np.abs(found - x @ dense.T) <= 0.51 * step @ np.abs(dense).T).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [16, 32, 64, 128])
@pytest.mark.parametrize("rows", [1, 5, 97])
def test_float32_rounds_nothing(bits: int, group_size: int, rows: int) -> None:
    ops, weight, x = torch("float32"), packed(bits, group_size), inputs(rows)
    dense = dequantize(weight).astype(np.float64)
    size = (np.abs(x) @ np.abs(dense).T).max()
    bounds.assert_near(product(ops, x, ops.prepare(weight)), x @ dense.T, bounds.drift(256 + 8), size)


@pytest.mark.parametrize("rows", [17, 97])
def test_a_prompt_is_exact(rows: int) -> None:
    weight, x = packed(4, 32), inputs(rows)
    size = (np.abs(x) @ np.abs(dequantize(weight)).T).max()
    exact = x.astype(np.float64) @ dequantize(weight).T
    bounds.assert_near(product(torch(), x, torch().prepare(weight)), exact, bounds.drift(256 + 8), size)


@pytest.mark.parametrize("shape", [(7, 64), (33, 80), (100, 48)])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_shapes_that_fill_no_block(shape: tuple[int, int], dtype: str) -> None:
    weight = packed(6 if shape[1] % 32 else 4, 16 if shape[1] % 32 else 32, *shape)
    ops, x = torch(dtype), inputs(3, shape[1])
    prepared = ops.prepare(weight)
    assert isinstance(prepared, cpu.Blocked)
    multiplied = rounded(x) if dtype == "auto" else x
    size = (np.abs(x) @ np.abs(dequantize(weight)).T).max()
    expected = multiplied.astype(np.float64) @ dequantize(weight).T
    bounds.assert_near(product(ops, x, prepared), expected, bounds.drift(shape[1] + 8), size)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("bits", [4, 6])
def test_a_row_gives_the_same_bits_alone_and_among_others_on_any_number_of_threads(dtype: str, bits: int) -> None:
    weight, x = packed(bits, 32), inputs(8)
    ops = torch(dtype)
    together = product(ops, x, ops.prepare(weight))
    for row in range(8):
        np.testing.assert_array_equal(product(ops, x[:, row : row + 1], ops.prepare(weight))[0, 0], together[0, row])
    two = torch(dtype, threads=2)
    np.testing.assert_array_equal(product(two, x, two.prepare(weight)), together)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_blocks_hold_the_same_numbers(bits: int, centred: bool, dtype: Any) -> None:
    rng = np.random.default_rng(bits)
    integers = rng.integers(0, 2**bits, (50, 96), dtype=np.uint8)
    scales = (2.0 ** rng.integers(-20, 3, (50, 3)) * (1 + rng.integers(0, 2**7, (50, 3)) / 2**7)).astype(dtype)
    middle = -(2 ** (bits - 1))
    biases = (scales.astype(np.float32) * middle).astype(dtype) if centred else (scales * -3).astype(dtype)
    weight = Packed(pack(integers, bits), scales, biases, bits, 32)
    arranged = blocks.arrange(weight)
    assert (len(arranged.biases) == 0) == centred
    np.testing.assert_array_equal(blocks.dense(arranged, 0, arranged.count), dequantize(weight))
    np.testing.assert_array_equal(blocks.dense(arranged, 1, 2), dequantize(weight)[32:])
    chosen = np.asarray([49, 0, 31, 49, 32])
    found = np.empty((len(chosen), weight.shape[1]), np.float32)
    blocks.rows(arranged, chosen, found)
    np.testing.assert_array_equal(found, dequantize(weight)[chosen])
    assert arranged.nbytes <= 64 * 96 * bits / 8 + 2 * 64 * 3 * scales.itemsize


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_what_is_not_finite_shows(value: float, dtype: str) -> None:
    ops, x = torch(dtype), inputs(2)
    x[0, 1, 100] = value
    found = product(ops, x, ops.prepare(packed(4, 32)))
    assert np.isfinite(found[0, 0]).all()
    assert not np.isfinite(found[0, 1]).any()


def test_small_and_zero_inputs() -> None:
    ops, weight = torch(), packed(4, 32)
    np.testing.assert_array_equal(product(ops, np.zeros((1, 1, 256), np.float32), ops.prepare(weight)), 0)
    tiny = product(ops, np.full((1, 1, 256), 1e-42, np.float32), ops.prepare(weight))
    assert np.abs(tiny).max() < 1e-38


def test_groups_that_are_no_whole_units_are_torch_s() -> None:
    weight = packed(4, 16)
    odd = replace(weight, group_size=48, scales=np.ones((80, 2), np.float32), biases=np.ones((80, 2), np.float32))
    odd = replace(odd, weight=weight.weight[:, :12])
    ops, x = torch(), inputs(2, 96)
    prepared = ops.prepare(odd)
    assert isinstance(prepared, weights.Quantized)
    bounds.assert_near(product(ops, x, prepared), x.astype(np.float64) @ dequantize(odd).T, bounds.drift(100))


def test_no_copy_of_the_weight_is_kept() -> None:
    weight = packed(4, 32, 512, 1024)
    prepared: Any = torch().prepare(weight)
    assert prepared.blocks.nbytes <= weight.nbytes
    assert [name for name, value in vars(prepared).items() if isinstance(value, Packed | np.ndarray)] == []


# Without numba


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_found", lambda: (None, "No module named 'numba'"))


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_torch_s_int4_kernel_takes_their_place(bits: int, group_size: int, rows: int) -> None:
    ops = torch()
    weight, x = packed(bits, group_size), inputs(rows)
    prepared, expected = ops.prepare(weight), x.astype(np.float64) @ dequantize(weight).T
    size = (np.abs(x) @ np.abs(dequantize(weight)).T).max()
    first = product(ops, x, prepared)  # before the operands are made: in float32
    bounds.assert_near(first, expected, bounds.drift(256 + 4), size)
    second = product(ops, x, prepared)  # inputs, scales, offsets and one or two products rounded
    assert np.abs(second - first).max() > 0
    bounds.assert_near(second, expected, bounds.gamma(5, "bfloat16"), size)


@pytest.mark.usefixtures("without")
def test_a_weight_that_the_int4_kernel_does_not_take_is_multiplied_all_the_same() -> None:
    ops = torch()
    weight = packed(4, 32, 7, 64)
    x = np.ones((1, 1, 64), np.float32)
    prepared = ops.prepare(weight)
    for _ in range(2):
        found = product(ops, x, prepared)
        bounds.assert_near(found, x.astype(np.float64) @ dequantize(weight).T, bounds.drift(64 + 4))


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize("kv", [None, (8, 4)])
def test_attention_without_them(oracle: Backend, kv: tuple[int, int] | None) -> None:
    rng, ops = np.random.default_rng(0), torch("float32")
    q, k, v = (rng.standard_normal((2, heads, t, 32)).astype(np.float32) for heads, t in ((4, 2), (2, 40), (2, 40)))
    mask = np.where(rng.random((2, 2, 40)) < 0.3, np.float32(-1e30), np.float32(0))
    given = [oracle.quantize(x, bits, 32) for x, bits in zip((k, v), kv, strict=True)] if kv else [k, v]
    mine = [x.map(ops.array) if isinstance(x, Packed) else ops.array(x) for x in given]
    found = ops.cached_attention(ops.array(q), *mine, ops.array(mask), scale=0.2, sinks=None, softcap=None)
    expected = oracle.cached_attention(q, *given, mask, scale=0.2, sinks=None, softcap=None)
    scores = 0.2 * np.abs(np.einsum("bhtd,bhcd->bhtc", q, np.repeat(k, 2, 1))).max()
    bounds.assert_near(
        ops.to_numpy(found), expected, 2 * bounds.attention(32, 40, score=scores, value=np.abs(v).max()), 1
    )


@pytest.mark.usefixtures("without")
def test_it_is_said_once() -> None:
    said: list[str] = []
    partita_backends.load("torch", device="cpu", on_fallback=said.append)
    assert len(said) == 1
    assert "numba cannot be used (No module named 'numba')" in said[0]
    torch_line = next(status for status in partita_backends.status(partita_backends.survey()) if status.name == "torch")
    assert "numba cannot be used" in torch_line.reason


# What is compiled


def python(program: str, **environment: str) -> str:
    roots = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "PYTHONPATH": roots, **environment}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


PRODUCT = """
import numpy as np
from partita.quantization import quantize_weight
from partita_backends.kernels import blocks, compiled, products
x = np.ones((1, 64), np.float32)
y = np.empty((1, 64), np.float32)
kernel, arguments = products.integer_product(x, blocks.arrange(quantize_weight(np.eye(64, dtype=np.float32), 4, 32)), y)
kernel(*arguments)
hits = sum(kernel.stats.cache_hits.values())
print(compiled.KEPT, hits, int(np.rint(y.sum())))
"""


def test_a_second_process_takes_what_the_first_compiled(tmp_path: Path) -> None:
    assert python(PRODUCT, PARTITA_CACHE=str(tmp_path)).split() == ["True", "0", "64"]
    assert list(tmp_path.glob("kernels/*/*/*.nbi"))
    assert python(PRODUCT, PARTITA_CACHE=str(tmp_path)).split() == ["True", "1", "64"]


def test_a_folder_that_cannot_be_written_costs_the_compilation_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert python(PRODUCT, PARTITA_CACHE=str(tmp_path / "file" / "no")).split() == ["False", "0", "64"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("backend", ["numpy", "mlx"])
def test_other_backends_do_not_import_numba(backend: str) -> None:
    if backend not in partita_backends.names():
        pytest.fail("no such backend")
    program = f"""
import sys, partita_apps.cli, partita_backends
partita_backends.load({backend!r}, device="cpu")
print("numba" in sys.modules)
"""
    assert python(program).strip() == "False"


def test_integers_of_a_unit_never_overflow() -> None:
    """The largest integers against the largest inputs: 16 products of 15 * 127 a plane, in a short."""
    for bits in BITS:
        integers = np.full((32, 64), 2**bits - 1, np.uint8)
        weight = Packed(pack(integers, bits), np.ones((32, 2), np.float32), np.zeros((32, 2), np.float32), bits, 32)
        for sign in (1, -1):
            x = np.full((1, 64), sign * 127, np.float32)
            found = np.empty((1, 32), np.float32)
            kernel, arguments = products.integer_product(x, blocks.arrange(weight), found)
            kernel(*arguments)
            np.testing.assert_array_equal(found, sign * 64 * 127 * (2**bits - 1))
