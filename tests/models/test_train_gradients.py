"""Gradients of whole models: against finite differences in float64, between backends, and by every way to the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import partita_backends
from partita.adapters.lora import LoraConfig
from partita.backend import Backend
from partita.checkpoint.open import open_checkpoint
from partita.data.batches import Batch
from partita.errors import BackendUnavailable, UnsupportedModel
from partita.training.initialize import initialise
from partita_backends.numpy import NumpyBackend

from .. import bounds, tiny_models
from ..conditioning import Conditioned
from ..runtime.training.runs import batch_of, documents, full_model, gradients, lora, mean_loss

METHODS = ("lora", "dora", "full")
BESIDE_EXPERTS = {
    "lfm2_moe": "q_proj,k_proj,v_proj,in_proj,out_proj",
    **dict.fromkeys(("laguna", "laguna-elements"), "q_proj,k_proj,v_proj,g_proj,o_proj"),
}
"""What adapters are put on in a family whose experts are not trained."""
Gradients = tuple[float, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def backends() -> dict[str, Backend]:
    return {name: partita_backends.load(name, dtype="float32") for name in ("torch", "mlx")}


@pytest.fixture(params=["torch", "mlx"])
def ops(request: pytest.FixtureRequest, backends: dict[str, Backend]) -> Backend:
    return backends[request.param]


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Packed rows longer than the window, one of them with padding; the first targets are not trained."""
    found = documents(5, 60, 280)
    return batch_of([found[:2], found[2:4], found[4:]], masked=3)


def made(ops: Backend, folder: Path, method: str):
    if method == "full":
        return full_model(ops, folder)
    return lora(ops, folder, LoraConfig(rank=4, alpha=8, dora=method == "dora"), spread=0.05)


def assert_same(found: Gradients, expected: Gradients, folder: Path, batch: Batch, conditioning: float = 1.0) -> None:
    """Losses and gradients of two computations of the same."""
    assert found[0] == pytest.approx(expected[0], rel=bounds.loss(folder, batch.trained) * conditioning)
    bounds.assert_all_near(found[1], expected[1], bounds.gradients(folder) * conditioning)


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "gemma3",
        "hunyuan",
        "ministral3",
        "cohere2",
        "muse_glimmer",
        "muse_glimmer-odd",
        "gemma4",
        "qwen3_5",
        "olmo_hybrid",
        "lfm2",
        "lfm2-biased",
        "lfm2_moe",
        "lfm3",
        "laguna",
        "laguna-elements",
    ],
)
def test_adapters_gradients_are_slopes(
    backends: dict[str, Backend], tiny_family: Callable[[str], Path], name: str
) -> None:
    """Every trainable, in the direction of its gradient and at an entry: central differences in float64."""
    found = documents(2, 50, 280)
    batch = batch_of([[found[0], found[1][:20]]], masked=3)
    folder, step = tiny_family(name), 1e-5
    exact = Conditioned()
    config = LoraConfig(rank=4, alpha=8, targets=BESIDE_EXPERTS[name]) if name in BESIDE_EXPERTS else None
    model, values = lora(exact, folder, config, spread=0.05)
    loss, grads = gradients(backends["torch"], *lora(backends["torch"], folder, config, spread=0.05), batch)
    plain = mean_loss(exact, model, values, batch)
    conditioning = exact.conditioning(model.decoder.config)
    assert loss == pytest.approx(plain, rel=bounds.loss(folder, batch.trained) * conditioning)
    assert grads.keys() == values.keys()
    random, error = np.random.default_rng(0), bounds.gradients(folder) * conditioning
    for trainable in values:
        grad = grads[trainable].astype(np.float64)
        entry = np.zeros_like(grad)
        entry[np.unravel_index(random.choice(grad.size, p=abs(grad).ravel() / abs(grad).sum()), grad.shape)] = 1
        for direction, size in ((grad / np.linalg.norm(grad), np.linalg.norm(grad)), (entry, abs(grad).max())):
            ends = [{**values, trainable: values[trainable] + sign * step * direction} for sign in (1, -1)]
            above, below = (mean_loss(exact, model, end, batch) for end in ends)
            bounds.assert_near((above - below) / (2 * step), (grad * direction).sum(), error, size)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma4", "muse_glimmer"])
def test_every_weights_gradient_is_a_slope(
    backends: dict[str, Backend], tiny_family: Callable[[str], Path], name: str
) -> None:
    """Embedding, norms and projections: in the direction of the gradient, and at entries that matter, in float64."""
    batch = batch_of([[document[:16] for document in documents(2, 30, 280)]], masked=3)
    folder, step = tiny_family(name), 1e-5
    exact = NumpyBackend(dtype="float64")
    model, values = full_model(exact, folder)
    _, grads = gradients(backends["torch"], *full_model(backends["torch"], folder), batch)
    assert grads.keys() == values.keys()
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"} <= grads.keys()
    random, error = np.random.default_rng(1), bounds.gradients(folder)
    for trainable, found in grads.items():
        grad = found.astype(np.float64)
        length, share = np.linalg.norm(grad), abs(grad).ravel() / abs(grad).sum()
        directions = [grad / length]
        for at in random.choice(grad.size, 3 if "norm" in trainable or "embed" in trainable else 1, p=share):
            directions.append(np.zeros_like(grad))
            directions[-1].flat[at] = 1
        for direction in directions:
            ends = [{**values, trainable: values[trainable] + sign * step * direction} for sign in (1, -1)]
            above, below = (mean_loss(exact, model, end, batch) for end in ends)
            size = length if direction is directions[0] else abs(grad).max()
            bounds.assert_near((above - below) / (2 * step), (grad * direction).sum(), error, size)


@pytest.mark.parametrize("name", ["llama", "gemma4", "muse_glimmer"])
def test_they_are_those_of_transformers(ops: Backend, tiny_family: Callable[[str], Path], name: str) -> None:
    """A control token comes first, whose embedding is near zero and which sees nothing but itself. Without the
    first few tokens, which mean padding or a picture to transformers: it trains no embedding of the one, and puts
    something else in place of the other's."""
    folder = tiny_family(name)
    model, values = full_model(ops, folder)
    tokens = [model.decoder.config.vocab_size - 1, *(6 + token for token in documents(1, 30, 280)[0])]
    batch = batch_of([[tokens]])
    assert_same(gradients(ops, model, values, batch), tiny_models.reference_gradients(folder, tokens), folder, batch)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "gemma3",
        "gemma2",
        "qwen2",
        "phi3",
        "olmo3",
        "granite",
        "glm4",
        "hunyuan",
        "ministral3",
        "cohere2",
        "muse_glimmer",
        "gemma4",
        "qwen3_5",
        "olmo_hybrid",
        "lfm2",
        "lfm3",
    ],
)
def test_mlx_and_torch_agree(
    backends: dict[str, Backend], tiny_family: Callable[[str], Path], batch: Batch, name: str, method: str
) -> None:
    theirs, mine = (
        gradients(ops, *made(ops, tiny_family(name), method), batch) for ops in (backends["torch"], backends["mlx"])
    )
    conditioning = 1.0
    if name in ("qwen3_5", "olmo_hybrid"):
        exact = Conditioned()
        model, values = made(exact, tiny_family(name), method)
        mean_loss(exact, model, values, batch)
        conditioning = exact.conditioning(model.decoder.config)
    assert_same(mine, theirs, tiny_family(name), batch, conditioning)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "gemma4-experts", "lfm2_moe", "laguna", "laguna-elements"])
def test_mlx_and_torch_agree_behind_experts(
    backends: dict[str, Backend], tiny_family: Callable[[str], Path], batch: Batch, name: str
) -> None:
    """Adapters on attention; gradients pass through frozen experts, routers and learned sink logits."""
    targets = BESIDE_EXPERTS.get(name, "q_proj,k_proj,v_proj,o_proj")
    config = LoraConfig(rank=4, alpha=8, targets=targets)
    theirs, mine = (
        gradients(ops, *lora(ops, tiny_family(name), config, spread=0.05), batch, checkpoint=True)
        for ops in (backends["torch"], backends["mlx"])
    )
    assert_same(mine, theirs, tiny_family(name), batch)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_sixteen_bits_stay_near(
    backends: dict[str, Backend], tiny_family: Callable[[str], Path], batch: Batch, method: str, dtype: str
) -> None:
    """Trained values, gradients and losses are float32 whatever the stream is: four layers that round twelve times,
    there and back. In the mean square over many tokens that is half of what one entry may be off."""
    error = bounds.drift(2 * 4 * 12, "bfloat16")
    short = batch_of([[documents(1, 6, 280)[0]]])  # few rows: no way for decoding is taken
    for fed, bound in ((batch, error / 2), (short, error)):
        expected = gradients(backends["torch"], *made(backends["torch"], tiny_family("llama"), method), fed)
        ops = partita_backends.load("torch", dtype=dtype)
        model, values = made(ops, tiny_family("llama"), method)
        loss, grads = gradients(ops, model, values, fed, checkpoint=True)
        assert loss == pytest.approx(expected[0], rel=0.02)
        assert all(grad.dtype == np.float32 for grad in grads.values())
        vectors = [np.concatenate([one[name].ravel() for name in sorted(one)]) for one in (grads, expected[1])]
        assert np.linalg.norm(vectors[0] - vectors[1]) < bound * np.linalg.norm(vectors[1])


@pytest.mark.parametrize("method", METHODS)
def test_recomputing_and_small_chunks_change_nothing(
    ops: Backend, tiny_family: Callable[[str], Path], batch: Batch, method: str
) -> None:
    model, values = made(ops, tiny_family("gemma3"), method)
    expected = gradients(ops, model, values, batch)
    again = gradients(ops, model, values, batch, checkpoint=True, rows=17)
    assert_same(again, expected, tiny_family("gemma3"), batch)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_packed_rows_equal_rows_of_one_document(
    ops: Backend, tiny_family: Callable[[str], Path], name: str, method: str
) -> None:
    """Documents longer than Mistral's window, and padding where there was none."""
    found = documents(4, 57, 280, seed=4)
    together = batch_of([found[:3], found[3:]], masked=2)
    apart = batch_of([[document] for document in found], masked=2)
    model, values = made(ops, tiny_family(name), method)
    found, separate = (gradients(ops, model, values, batch) for batch in (together, apart))
    assert_same(found, separate, tiny_family(name), together)


def test_padding_changes_nothing(ops: Backend, tiny_family: Callable[[str], Path], batch: Batch) -> None:
    model, values = made(ops, tiny_family("llama"), "lora")
    expected = gradients(ops, model, values, batch)

    def wider(x: np.ndarray, fill: int) -> np.ndarray:
        return np.pad(x, ((0, 1), (0, 9)), constant_values=fill)

    padded = Batch(
        wider(batch.tokens, 5),
        wider(batch.targets, 7),
        wider(batch.weights, 0),
        wider(batch.positions, 0),
        wider(batch.segments, -1),
    )
    assert_same(gradients(ops, model, values, padded), expected, tiny_family("llama"), batch)


def test_a_fresh_adapter_changes_nothing(ops: Backend, tiny_family: Callable[[str], Path], batch: Batch) -> None:
    folder = tiny_family("llama")
    expected, error = mean_loss(ops, *full_model(ops, folder), batch), bounds.loss(folder, batch.trained)
    for config in (LoraConfig(), LoraConfig(rslora=True, targets="q_proj,v_proj", layers=1), LoraConfig(dora=True)):
        assert mean_loss(ops, *lora(ops, folder, config), batch) == pytest.approx(expected, rel=error)


def test_numpy_says_that_it_cannot_train(tiny_family: Callable[[str], Path], batch: Batch) -> None:
    ops = NumpyBackend()
    with pytest.raises(BackendUnavailable, match="`backend` torch or mlx"):
        gradients(ops, *lora(ops, tiny_family("llama")), batch)


def test_dropout_is_the_same_on_every_backend_and_in_a_second_pass(
    backends: dict[str, Backend], tiny_family: Callable[[str], Path], batch: Batch
) -> None:
    config = LoraConfig(rank=4, alpha=8, dropout=0.3, seed=5)
    found = {}
    for key, recompute in (("torch", False), ("torch", True), ("mlx", True)):
        ops = backends[key]
        model, values = lora(ops, tiny_family("llama"), config, spread=0.05)
        assert model.dropout is not None
        plain = gradients(ops, model, values, batch)[0]
        model.dropout.draw = (1, 0, 0)
        found[key, recompute] = gradients(ops, model, values, batch, checkpoint=recompute)
        assert found[key, recompute][0] != pytest.approx(plain, rel=1e-4)
        model.dropout.draw = (2, 0, 0)
        assert gradients(ops, model, values, batch)[0] != pytest.approx(found[key, recompute][0], rel=1e-4)
    for again in list(found.values())[1:]:
        assert_same(again, found["torch", False], tiny_family("llama"), batch)


def test_weights_scale_a_tokens_loss(ops: Backend, tiny_family: Callable[[str], Path], batch: Batch) -> None:
    model, values = made(ops, tiny_family("llama"), "lora")
    doubled = replace(batch, weights=batch.weights * 2)
    expected, again = (gradients(ops, model, values, each) for each in (batch, doubled))
    assert_same(again, expected, tiny_family("llama"), batch)  # a mean over twice the weight


@pytest.mark.parametrize(("name", "part"), [("qwen3_moe", "experts"), ("granite_swa", "sink logits")])
def test_what_is_not_trained_is_named(
    backends: dict[str, Backend], tiny_family: Callable[[str], Path], name: str, part: str
) -> None:
    with pytest.raises(UnsupportedModel, match=f"the {part} of a {name} model cannot be trained: use `method` lora"):
        full_model(backends["torch"], tiny_family(name))
    with pytest.raises(UnsupportedModel, match=f"a {name} model has {part}, which cannot be trained from nothing"):
        initialise(open_checkpoint(tiny_family(name)).config)
