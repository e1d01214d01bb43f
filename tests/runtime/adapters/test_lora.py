"""Adapters: which projections get them, what they begin with, what is refused, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import partita_backends
from partita.adapters.lora import LoraConfig, LoraLinear, attach, chosen, for_inference
from partita.backend import Backend
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError, UnsupportedModel
from partita.model.config import ExpertsConfig
from partita.model.decoder import Decoder
from partita.model.layers import Linear
from partita.model.load import load_decoder
from partita.model.weights import WeightSpec
from partita.quantization import quantize_weight
from partita.training.trainable import adapted
from partita_backends.numpy import NumpyBackend

from ... import bounds
from ..training.runs import lora

SPEC = WeightSpec("some.q_proj.weight", (48, 64), "q", 0)


@pytest.fixture(params=partita_backends.names(), scope="module")
def ops(request: pytest.FixtureRequest) -> Backend:
    return partita_backends.load(request.param, dtype="float32")


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Decoder:
    return load_decoder(NumpyBackend(), open_checkpoint(tiny_model), stack=False)


def names(decoder: Decoder, **settings) -> list[str]:
    return [linear.name for _, linear in chosen(decoder, LoraConfig(**settings))]


def test_all_projections_or_some_of_all_layers_or_the_last(decoder: Decoder) -> None:
    everything = names(decoder)
    assert len(everything) == 2 * 7
    assert everything == [name for name in everything if name.startswith("model.layers.")]
    assert names(decoder, targets="v_proj, q_proj", layers=1) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": "q_proj,x_proj"}, "`targets` 'x_proj'; expected some of down_proj, gate_proj, k_proj"),
        ({"targets": "lm_head"}, "`targets` 'lm_head'"),
        ({"layers": 3}, "`layers` must be <= 2"),
        ({"targets": " , "}, "`targets` names no projection"),
        ({"rank": 0}, "`rank`"),
        ({"alpha": 0.0}, "`alpha`"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"layers": 0}, "`layers`"),
    ],
)
def test_what_cannot_be_is_refused(decoder: Decoder, settings: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        names(decoder, **settings)


def test_experts_are_left_out_and_refused_by_name(decoder: Decoder) -> None:
    """A model whose MLPs are experts has projections of attention alone."""
    attention = tuple(replace(block, mlp=None) for block in decoder.blocks)
    mixed = replace(decoder, config=replace(decoder.config, experts=ExpertsConfig(4, 2, 32)), blocks=attention)
    assert names(mixed) == names(mixed, targets="k_proj,o_proj,q_proj,v_proj")
    with pytest.raises(UnsupportedModel, match=r"`targets` up_proj: the experts .* or k_proj,o_proj,q_proj,v_proj"):
        names(mixed, targets="q_proj,up_proj")
    assert len(names(mixed, targets="q_proj,v_proj")) == 4
    first, *others = decoder.blocks
    partly = replace(mixed, blocks=(first, *(replace(block, mlp=None) for block in others)))
    assert names(partly) == names(mixed)  # no MLP of a dense layer: its name is that of experts too


def test_families_name_their_own_projections(tiny_family: Callable[[str], Path]) -> None:
    ops = NumpyBackend()
    fused = load_decoder(ops, open_checkpoint(tiny_family("phi3")), stack=False)
    assert {name.rpartition(".")[2] for name in names(fused)} == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    values = adapted(ops, fused, LoraConfig(rank=2))[1]
    shapes = {linear.name: linear.specs[0].shape for _, linear in chosen(fused, LoraConfig())}
    for name, value in values.items():
        module, which, _ = name.rsplit(".", 2)
        out, size = shapes[module]
        assert value.shape == ((2, size) if which == "lora_A" else (out, 2))


def test_a_decoder_of_stacked_projections_is_a_programmers_mistake(tiny_model: Path) -> None:
    stacked = load_decoder(NumpyBackend(), open_checkpoint(tiny_model))
    with pytest.raises(ValueError, match="stack=False"):
        names(stacked)


def test_initial_values_are_pefts_and_the_same_on_every_backend(ops: Backend, tiny_model: Path) -> None:
    config = LoraConfig(rank=8, dora=True)
    _, values = lora(ops, tiny_model, config)
    _, expected = lora(NumpyBackend(), tiny_model, config)
    assert values.keys() == expected.keys()
    assert len(values) == 3 * 14
    for name, value in expected.items():
        mine = ops.to_numpy(values[name])
        assert mine.dtype == np.float32
        if "magnitude" in name:
            np.testing.assert_allclose(mine, value, rtol=bounds.drift(2 * 128))  # the lengths of rows
            stored = open_checkpoint(tiny_model).read(name.removesuffix("lora_magnitude_vector") + "weight")
            np.testing.assert_allclose(value, np.linalg.norm(np.asarray(stored), axis=1), rtol=bounds.drift(2 * 128))
        else:
            assert np.array_equal(mine, value)
            assert ("lora_B" in name) == (not value.any())
    a = expected["model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert abs(a).max() <= 64**-0.5
    assert a.std() == pytest.approx(64**-0.5 / 3**0.5, rel=0.1)  # uniform
    other = lora(NumpyBackend(), tiny_model, replace(config, seed=1))[1]
    assert not np.array_equal(a, other["model.layers.0.self_attn.q_proj.lora_A.weight"])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_what_a_projection_computes(ops: Backend, packed: bool, biased: bool) -> None:
    random = np.random.default_rng(0)
    w, x = (random.standard_normal(shape).astype(np.float32) for shape in ((48, 64), (2, 9, 64)))
    a, b = (random.standard_normal(shape).astype(np.float32) * 0.2 for shape in ((4, 64), (48, 4)))
    bias, magnitude = (random.standard_normal(48).astype(np.float32) for _ in range(2))
    stored = quantize_weight(w, 4, 32) if packed else w
    exact = NumpyBackend().prepare(stored)
    base = Linear(ops.prepare(stored), ops.prepare_vector(bias) if biased else None, (SPEC,))
    layer = LoraLinear(base, ops.array(a), ops.array(b), 0.5)
    shift = bias if biased else 0.0

    def computed(layer: LoraLinear) -> np.ndarray:
        def run(ops: Backend, _: dict) -> tuple:
            y = layer(ops, ops.array(x))
            return ops.sum(y.reshape(-1), 0), (y,)

        return ops.to_numpy(ops.value(run)({})[1][0])  # within `value`, products of few rows are exact too

    merged = exact.astype(np.float64) + 0.5 * b @ a
    error = bounds.drift(64 + 4 + 8)  # a row, the rank, and what is done to a product
    bounds.assert_near(computed(layer), x @ merged.T + shift, error)
    squares = ops.array((exact**2).sum(1))
    dora = replace(layer, magnitude=ops.array(magnitude), base_squares=squares)
    expected = x @ (merged * (magnitude / np.linalg.norm(merged, axis=1))[:, None]).T + shift
    bounds.assert_near(computed(dora), expected, 2 * error)  # a row's length besides
    still = dora.for_inference(ops)
    assert still.magnitude is None
    bounds.assert_near(computed(still), expected, 2 * error)
    assert (layer.name, layer.bias is None) == ("some.q_proj", not biased)


def test_an_adapted_model_generates_through_the_cache(ops: Backend, tiny_model: Path) -> None:
    """The logits of an adapted model are those of the model whose weights hold the product."""
    config = LoraConfig(rank=4, alpha=8, dora=True)
    model, values = lora(ops, tiny_model, config, spread=0.1)
    host = {name: ops.to_numpy(value) for name, value in values.items()}
    checkpoint = open_checkpoint(tiny_model)

    class Merged:
        def __getattr__(self, name: str):
            return getattr(checkpoint, name)

        def read(self, name: str):
            value = np.asarray(checkpoint.read(name))
            module = name.removesuffix(".weight")
            if f"{module}.lora_A.weight" not in host:
                return value
            value = value + 2.0 * host[f"{module}.lora_B.weight"] @ host[f"{module}.lora_A.weight"]
            length = np.linalg.norm(value, axis=1)
            return value * (host[f"{module}.lora_magnitude_vector"] / length)[:, None]

        def read_stored(self, name: str):
            return self.read(name)

    tokens = np.random.default_rng(0).integers(0, 280, (1, 20)).astype(np.int32)
    bound = model.bind(ops, values)
    merged = load_decoder(ops, Merged())  # pyright: ignore[reportArgumentType]

    def logits(decoder: Decoder) -> np.ndarray:
        cache = Cache(ops, plan(decoder.config, KVFormat.parse("32")))
        return ops.to_numpy(decoder(ops, ops.array(tokens), cache, every=True))

    bounds.assert_near(logits(bound), logits(merged), bounds.logits(tiny_model))


def test_the_base_is_left_as_it_was(tiny_model: Path) -> None:
    ops = NumpyBackend()
    decoder = load_decoder(ops, open_checkpoint(tiny_model), stack=False)
    adapters, values, places = attach(ops, decoder, LoraConfig(rank=2))
    assert isinstance(decoder.blocks[0].mixer.out, Linear)
    out = adapters.blocks[0].mixer.out
    assert isinstance(out, LoraLinear)
    assert out.a is None
    assert out.base is decoder.blocks[0].mixer.out
    bound = for_inference(ops, adapters, values, places)
    assert bound.blocks[0].mixer.out.a is values["model.layers.0.self_attn.o_proj.lora_A.weight"]


def test_shapes_are_those_of_the_loader(decoder: Decoder) -> None:
    for _, linear in chosen(decoder, LoraConfig()):
        assert linear.weight.shape == linear.specs[0].shape
