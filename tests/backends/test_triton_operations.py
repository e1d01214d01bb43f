"""The Triton kernels as operations that torch knows: traced on a GPU that is not there, each is one operation with the
right shapes and no number is read or sent; what they write is declared; and a backend on a GPU takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from partita.backend import Rule, Sinks
from partita.quantization import Packed, quantize_minmax, quantize_weight
from partita_backends.torch import experts, weights
from partita_backends.torch.weights import from_numpy

HALF, INTS = torch.bfloat16, torch.int32


@pytest.fixture(scope="module")
def kernels(triton_device: str) -> Any:
    assert triton_device
    from partita_backends.torch import cuda, triton_attention, triton_products, triton_write

    return cuda, triton_attention, triton_write, triton_products


@pytest.fixture
def chosen(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of kernels, as if it had been found to work on a GPU."""
    monkeypatch.setattr(weights, "_found_on_gpu", lambda: (kernels[0], None))
    return kernels[0]


class Names(TorchDispatchMode):
    """Names of operations that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "partita" or (function.namespace == "aten" and not function.is_view):
            self.found.append(function.name())
        return function(*args, **(kwargs or {}))


def empty(*shape: int, dtype: torch.dtype = HALF) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def words(*shape: int, bits: int = 4, scales: torch.dtype = HALF) -> Packed:
    """Of an array of that shape, in groups of 32."""
    *leading, n = shape
    grid = (empty(*leading, n // 32, dtype=scales) for _ in range(2))
    return Packed(empty(*leading, n * bits // 32, dtype=INTS), *grid, bits, 32)


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [1, 8])
def test_a_step_of_attention_is_an_operation_each(kernels: Any, packed: bool, tokens: int) -> None:
    _, attention, writing, _ = kernels
    shape = (2, 2, 64, 32)
    keys, values = (words(*shape, bits=bits, scales=torch.float16) if packed else empty(*shape) for bits in (8, 4))
    angles = (empty(2, tokens, 16, dtype=torch.float32), empty(2, tokens, 16, dtype=torch.float32))
    index, held, x = empty(2, tokens, dtype=INTS), empty(2, 64, dtype=INTS), empty(2, tokens, 8, 32)
    mask = empty(2, tokens, 5, dtype=torch.float32)
    rule, sinks = Rule(index, held, 50, 5, index), (empty(2, 2, 2, 5, 32), mask, mask)
    with Names() as names:
        y = writing.hadamard(writing.rotate(x, *angles, 6))
        q = y[:, :, :4].transpose(1, 2)
        writing.store(keys, values, y[:, :, 4:], index)
        options: dict[str, Any] = {"softcap": 5.0, "sink_logits": None}
        y = attention.attend(q, keys, values, rule, scale=0.1, sinks=Sinks(q, *sinks), **options)
    assert y.shape == q.shape == (2, 4, tokens, 32)
    assert y.transpose(1, 2).is_contiguous()
    assert (y.dtype, y.device.type) == (HALF, "cuda")
    assert names.found == ["partita::rotate", "partita::hadamard", "partita::store", "partita::flash_decode"]


def test_what_is_written_is_declared(kernels: Any, triton_device: str) -> None:
    """torch runs each operation, and compares what it changed and gave with its declaration and its fake."""
    del kernels
    operations, checks = torch.ops.partita, ("test_schema", "test_faketensor")
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> torch.Tensor:
        return from_numpy(rng.standard_normal(shape).astype(np.float32)).to(triton_device)

    def side(bits: int) -> tuple[Any, ...]:
        packed = quantize_minmax(rng.standard_normal((1, 1, 8, 32)).astype(np.float32), bits, 32)
        return *(from_numpy(part).to(triton_device) for part in (packed.weight, *packed.grid)), bits

    q, k, held = floats(1, 2, 1, 32), floats(1, 1, 1, 32), torch.arange(8, dtype=INTS, device=triton_device)[None]
    at, both = held[:, 3:4], floats(1, 1, 2, 32)
    turn = (both, floats(1, 1, 16), floats(1, 1, 16), 1)
    torch.library.opcheck(operations.rotate.default, turn, test_utils=checks)
    torch.library.opcheck(operations.hadamard.default, (both,), test_utils=checks)
    torch.library.opcheck(operations.store.default, (both, at, *side(8), *side(4), 32), test_utils=checks)
    sinks = (q.clone(), floats(2, 1, 1, 5, 32), torch.zeros(1, 1, 5, device=triton_device), q[..., 0].clone())
    attend = (q, at, held, *side(8), *side(4), 32, *sinks, 4, 5, 0.1, None, floats(2), 2)
    torch.library.opcheck(operations.flash_decode.default, attend, test_utils=checks)
    stack = quantize_weight(rng.standard_normal((2, 8, 32)).astype(np.float32), 4, 32)
    parts = [from_numpy(part).to(triton_device) for part in (stack.weight, *stack.grid)]
    one, form, index = [part[0] for part in parts], (4, 32), torch.zeros(1, 1, 2, dtype=INTS, device=triton_device)
    torch.library.opcheck(operations.packed_product.default, (floats(1, 32), *one, *form), test_utils=checks)
    torch.library.opcheck(operations.packed_product_back.default, (floats(3, 8), *one, *form), test_utils=checks)
    torch.library.opcheck(operations.rms_norm_back.default, (both, both, floats(32), 1e-5), test_utils=checks)
    torch.library.opcheck(operations.glu_back.default, (both, both, both, 0), test_utils=checks)
    torch.library.opcheck(operations.packed_rows.default, (at[0], *one, *form, HALF), test_utils=checks)
    torch.library.opcheck(operations.expert_product.default, (k[None, 0], index, *parts, *form), test_utils=checks)


def test_buffers_are_contiguous(kernels: Any) -> None:
    _, attention, writing, _ = kernels
    buffer = torch.zeros(1, 8, 2, 32).transpose(1, 2)
    index = torch.zeros(1, 1, dtype=INTS)
    with pytest.raises(ValueError, match="contiguous"):
        writing.store(buffer, buffer, torch.zeros(1, 1, 4, 32), index)
    rule = Rule(index, index.expand(1, 8), None, 0, index)
    options: dict[str, Any] = {"scale": 1.0, "sinks": None, "softcap": None, "sink_logits": None}
    with pytest.raises(ValueError, match="contiguous"):
        attention.attend(torch.zeros(1, 2, 1, 32), buffer, buffer, rule, **options)


# The backend's choice, on a GPU that is not there


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("rows", [1, 8, 32])
def test_few_rows_are_one_operation(chosen: Any, rows: int) -> None:
    weight = chosen.Words(words(48, 64))
    x = empty(1, rows, 64)
    with Names() as names:
        y = weights.product(x, weight, HALF)
    assert (y.shape, y.dtype, y.device.type) == ((1, rows, 48), HALF, "cuda")
    assert names.found == ["partita::packed_product"]


@pytest.mark.usefixtures("fake_cuda")
def test_rows_of_an_embedding_are_one_operation(chosen: Any) -> None:
    weight = chosen.Words(words(48, 64))
    index = empty(2, 3, dtype=INTS)
    with Names() as names:
        y = weights.rows(weight, index)
    assert (y.shape, y.dtype) == ((2, 3, 64), torch.float32)
    assert names.found == ["partita::packed_rows"]


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("tokens", [1, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_experts_are_one_operation(chosen: Any, tokens: int, packed: bool) -> None:
    stack = experts.Experts(words(8, 48, 64) if packed else empty(8, 48, 64), ())
    x, index = empty(1, tokens, 1, 64), empty(1, tokens, 4, dtype=INTS)
    with Names() as names:
        y = experts.product(x, stack, index, HALF)
    assert (y.shape, y.dtype) == ((1, tokens, 4, 48), HALF)
    assert names.found == ["partita::expert_product"]


def test_what_is_prepared_for_a_gpu(chosen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors go nowhere here: a device of that kind is not at hand."""
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where, **how: self)
    device = torch.device("cuda")
    for bits in range(2, 9):
        prepared = weights.prepare(quantize_weight(np.ones((8, 64), np.float32), bits, 32), device, HALF)
        assert isinstance(prepared, chosen.Words)
        assert prepared.packed.bits == bits
    odd = quantize_weight(np.ones((8, 96), np.float32), 4, 48)
    assert isinstance(weights.prepare(odd, device, HALF), weights.Quantized)
    stack = experts.prepare(quantize_weight(np.ones((3, 8, 64), np.float32), 6, 32), device, HALF)
    assert isinstance(stack.stacked, Packed)
    assert [part.packed.weight.data_ptr() - stack.stacked.weight.data_ptr() for part in stack.each] == [0, 384, 768]
