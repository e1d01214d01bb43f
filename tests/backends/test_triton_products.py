"""The Triton kernels of weights: products and rows of packed words, and experts, against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from partita.quantization import Packed, dequantize, quantize_weight
from partita_backends.torch import dense_parts, weights
from partita_backends.torch.weights import from_numpy

from .. import bounds

BITS = [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.fixture(scope="module")
def kernels(triton_device: str) -> Any:
    from partita_backends.torch import cuda, triton_products

    return triton_products, cuda, triton_device


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def on(device: str, packed: Packed, scales: torch.dtype = torch.float32) -> Packed:
    moved = packed.map(lambda part: from_numpy(part).to(device))
    return Packed(moved.weight, *(part.to(scales) for part in moved.grid), moved.bits, moved.group_size)


def exact(packed: Packed) -> np.ndarray:
    return dequantize(packed).astype(np.float64)


@pytest.mark.parametrize("rows", [1, 2, 17, 40])
@pytest.mark.parametrize("bits", BITS)
def test_products_of_every_width(kernels: Any, bits: int, rows: int) -> None:
    products, _, device = kernels
    weight, x = quantize_weight(normal(37, 224), bits, 32), normal(rows, 224, seed=1)
    y = products.product(from_numpy(x).to(device), on(device, weight))
    bounds.assert_near(y.cpu().numpy(), x @ exact(weight).T, bounds.drift(224 + 4), np.abs(x).max() * 4)


@pytest.mark.parametrize(("group", "size"), [(16, 48), (64, 192), (128, 1152), (256, 512)])
@pytest.mark.parametrize("rows", [1, 3])
def test_products_of_every_group(kernels: Any, group: int, size: int, rows: int) -> None:
    products, _, device = kernels
    for bits in (4, 6):
        weight, x = quantize_weight(normal(9, size), bits, group), normal(rows, size, seed=1)
        y = products.product(from_numpy(x).to(device), on(device, weight))
        bounds.assert_near(y.cpu().numpy(), x @ exact(weight).T, bounds.drift(size + 4), np.abs(x).max() * 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 5])
def test_products_in_sixteen_bits(kernels: Any, dtype: torch.dtype, rows: int) -> None:
    products, _, device = kernels
    weight = quantize_weight(normal(24, 128), 4, 64)
    x, packed = from_numpy(normal(rows, 128, seed=1)).to(dtype), on(device, weight, dtype)
    y = products.product(x.to(device), packed)
    assert y.dtype == dtype
    rounded = on("cpu", weight, dtype)  # scales as they are in the checkpoint
    values = weights.dequantize(rounded, torch.float32).double()
    name = str(dtype).removeprefix("torch.")
    bounds.assert_near(y.cpu().double(), x.double() @ values.T, bounds.gamma(4, name), 30)


@pytest.mark.parametrize("rows", [1, 17, 70])
@pytest.mark.parametrize(("bits", "group", "size"), [*((bits, 32, 224) for bits in BITS), (4, 128, 384), (6, 16, 48)])
def test_gradients_times_the_weight_itself(kernels: Any, bits: int, group: int, size: int, rows: int) -> None:
    """Of rows that lie within longer ones too."""
    products, _, device = kernels
    weight, grads = quantize_weight(normal(37, size), bits, group), normal(rows, 2 * 37, seed=1)
    whole = from_numpy(grads).to(device)
    for part in (slice(0, 37), slice(37, 74)):
        x = products.product_back(whole[:, part], on(device, weight))
        bounds.assert_near(
            x.cpu().numpy(), grads[:, part] @ exact(weight), bounds.drift(37 + 4), np.abs(grads).max() * 4
        )


def test_gradients_in_sixteen_bits(kernels: Any) -> None:
    products, _, device = kernels
    weight = quantize_weight(normal(48, 128), 4, 64)
    grad = from_numpy(normal(5, 48, seed=1)).to(torch.bfloat16)
    x = products.product_back(grad.to(device), on(device, weight, torch.bfloat16))
    assert x.dtype == torch.bfloat16
    values = weights.dequantize(on("cpu", weight, torch.bfloat16), torch.float32).double()
    bounds.assert_near(x.cpu().double(), grad.double() @ values, bounds.gamma(4, "bfloat16"), 30)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_those_of_the_format(kernels: Any, bits: int, dtype: torch.dtype) -> None:
    products, _, device = kernels
    weight = quantize_weight(normal(21, 96), bits, 32)
    index = torch.tensor([20, 0, 3, 3], dtype=torch.int32)
    whole = products.rows(on(device, weight), None, dtype)
    some = products.rows(on(device, weight), index.to(device), dtype)
    expected = torch.from_numpy(dequantize(weight)).to(dtype)
    torch.testing.assert_close(whole.cpu(), expected, rtol=0, atol=0)
    torch.testing.assert_close(some.cpu(), expected[index], rtol=0, atol=0)


def test_many_rows_make_a_part_of_the_weight_dense_at_once(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, cuda, device = kernels
    monkeypatch.setattr(cuda, "GPU_DENSE_AT_ONCE", 96 * 10)
    weight = quantize_weight(normal(35, 96), 4, 32)
    words, x, grad = cuda.Words(on(device, weight)), normal(50, 96, seed=1), normal(50, 35, seed=2)
    assert [len(dense) for _, dense in words.parts(torch.float32)] == [10, 10, 10, 5]
    assert words.product(from_numpy(x).to(device), torch.float32) is None
    forward, back = words.multiply(from_numpy(x).to(device)), words.multiply_back(from_numpy(grad).to(device))
    trained = words.multiply_packed(from_numpy(x).to(device))
    for found in (forward, trained):
        bounds.assert_near(found.cpu().numpy(), x @ exact(weight).T, bounds.drift(100), 16)
    bounds.assert_near(back.cpu().numpy(), grad @ exact(weight), bounds.drift(40), 16)


def test_slices_cover_all_rows() -> None:
    for rows, columns, at_once in ((10, 4, 8), (1, 100, 8), (7, 2, 100)):
        found = [row for part in dense_parts.slices(rows, columns, at_once) for row in range(rows)[part]]
        assert found == list(range(rows))


def test_words_are_the_only_copy(kernels: Any) -> None:
    _, cuda, device = kernels
    weight = quantize_weight(normal(64, 128), 5, 32)
    words = cuda.Words(weight.map(lambda part: from_numpy(part).to(device)))
    tensors = [part for value in vars(words).values() for part in (value.weight, *value.grid)]
    assert sum(part.untyped_storage().nbytes() for part in tensors) == weight.nbytes


def test_groups_that_kernels_do_not_take(kernels: Any) -> None:
    products, _, _ = kernels
    assert products.fits(quantize_weight(normal(2, 64), 4, 32))
    assert not products.fits(quantize_weight(normal(2, 96), 4, 48))


# Experts


@pytest.mark.parametrize("bits", [None, 4, 5, 8])
@pytest.mark.parametrize(("batch", "tokens", "chosen", "shared"), [(1, 1, 4, True), (2, 3, 2, False), (1, 40, 3, True)])
def test_every_entry_goes_through_its_own_expert(
    kernels: Any, bits: int | None, batch: int, tokens: int, chosen: int, shared: bool
) -> None:
    _, cuda, device = kernels
    weight: Any = normal(6, 20, 64)
    weight = weight if bits is None else quantize_weight(weight, bits, 32)
    values = exact(weight) if isinstance(weight, Packed) else weight.astype(np.float64)
    stacked = on(device, weight) if isinstance(weight, Packed) else from_numpy(weight).to(device)
    x = normal(batch, tokens, 1 if shared else chosen, 64, seed=1)
    index = np.random.default_rng(2).integers(0, 6, (batch, tokens, chosen)).astype(np.int32)
    assert cuda.chooses(stacked)
    y = cuda.chosen(from_numpy(x).to(device), stacked, from_numpy(index).to(device), torch.float32)
    rows = np.broadcast_to(x, (*index.shape, 64)).astype(np.float64)
    expected = np.einsum("btki,btkoi->btko", rows, values[index])
    bounds.assert_near(y.cpu().numpy(), expected, bounds.drift(68), 16)


def test_tiles_of_experts_hold_every_entry_once(kernels: Any) -> None:
    products, _, device = kernels
    rng = np.random.default_rng(0)
    for count, number in ((1, 1), (16, 4), (50, 3), (70, 40)):
        flat = rng.integers(0, number, count)
        flat[flat == 1] = 0  # one that nobody chose
        order, tiles = products.tiles_of_experts(torch.from_numpy(flat.astype(np.int32)).to(device), number, 16)
        found = []
        for expert, first, last in tiles.tolist():
            entries = order[first:last].tolist() if first < last else []
            assert len(entries) <= 16
            assert all(flat[entry] == expert for entry in entries)
            found += entries
        assert sorted(found) == list(range(count))
