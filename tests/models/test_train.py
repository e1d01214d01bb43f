"""The loop on tiny models: accumulation, resuming, other backends, packed bases, and a text learnt by heart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import partita_backends
from partita.adapters.lora import LoraConfig
from partita.backend import Backend
from partita.checkpoint.open import open_checkpoint
from partita.data.batches import Batch, Batches
from partita.data.dataset import DatasetBuilder
from partita.inference.sampling import Sampling
from partita.language_model import LanguageModel
from partita.model.load import load_decoder
from partita.quantization import quantize_weight
from partita.text.load import load_tokenizer
from partita.training.initialize import initialise, trained
from partita.training.optim import AdamW
from partita.training.packed import Sequences
from partita.training.state import Best, load_best
from partita.training.trainable import adapted, full
from partita.training.trainer import Evaluation, Event, Finished, Saved, Step, TrainConfig, Trainer
from partita_convert.write_folder import write_huggingface, write_mlx

from .. import bounds
from ..runtime.training.runs import Fixed, batch_of, documents, full_model, gradients, lora

CONFIG = TrainConfig(6, 5e-3, "cosine", warmup=2, accumulate=2, checkpoint_every=1)


@pytest.fixture(params=["torch", "mlx"])
def ops(request: pytest.FixtureRequest) -> Backend:
    return partita_backends.load(request.param, dtype="float32")


def source(seed: int = 0) -> Batches:
    """Real batches: 21 documents of 8 to 30 tokens in rows of 32, two rows a batch; an epoch ends on the way."""
    random, builder = np.random.default_rng(9), DatasetBuilder(32)
    for _ in range(21):
        tokens = random.integers(0, 280, random.integers(8, 30)).tolist()
        builder.add_record([(tokens, [i > 3 for i in range(len(tokens))])])
    return Batches(builder.build(), 2, 32, packing=True, seed=seed)


def trainer(ops: Backend, path: Path, method: str = "lora", config: TrainConfig = CONFIG, **options: Any) -> Trainer:
    adapters = LoraConfig(rank=4, alpha=8, dropout=0.1, dora=method == "dora")
    model, values = full_model(ops, path) if method == "full" else lora(ops, path, adapters)
    validation = source(seed=3).one_epoch
    return Trainer(ops, model, values, config, source(), validation=validation, **options)


def losses(events: Iterator[Event]) -> list[tuple[int, float, float]]:
    return [(event.step, event.loss, event.grad_norm) for event in events if isinstance(event, Step)]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_batch_of_four_equals_four_of_one(ops: Backend, tiny_model: Path, method: str) -> None:
    """Of different lengths: each token counts the same. AdamW divides a gradient by its own size and so makes much of
    one that is rounding alone; beside an eps of 1 a step is the gradient times the rate."""
    found = [document[: 10 + 7 * i] for i, document in enumerate(documents(4, 40, 280))]
    ways = {1: [batch_of([[document] for document in found])], 4: [batch_of([[document]]) for document in found]}
    runs = []
    for accumulate, batches in ways.items():
        model, values = full_model(ops, tiny_model) if method == "full" else lora(ops, tiny_model)
        config = TrainConfig(5, 0.5, "constant", accumulate=accumulate, optimizer=AdamW(eps=1.0))
        run = Trainer(ops, model, values, config, Fixed(batches))
        runs.append((losses(run.run()), run.state().values))
    (ours, values), (theirs, others) = runs
    assert theirs[-1][1] < theirs[0][1] - 0.1  # it has moved
    error = bounds.gradients(tiny_model)
    np.testing.assert_allclose([loss for _, loss, _ in ours], [loss for _, loss, _ in theirs], rtol=error)
    np.testing.assert_allclose([norm for *_, norm in ours], [norm for *_, norm in theirs], rtol=error)
    bounds.assert_all_near(values, others, error)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_resuming_at_every_step_gives_the_same_bits(
    ops: Backend, tiny_model: Path, tmp_path: Path, method: str
) -> None:
    expected = trainer(ops, tiny_model, method)
    whole = losses(expected.run())
    assert [step for step, _, _ in whole] == [1, 2, 3, 4, 5, 6]
    found, run = [], None
    for _ in range(6):  # each run is left after one step, and another process goes on
        run = trainer(ops, tiny_model, method, folder=tmp_path / method)
        run.resume()
        for event in run.run():
            if isinstance(event, Step):
                found.append((event.step, event.loss, event.grad_norm))
            if isinstance(event, Saved):
                break
    assert found == whole
    assert run is not None
    for name, value in expected.state().values.items():
        assert np.array_equal(value, run.state().values[name]), name
    assert run.best == expected.best


def test_a_run_goes_on_on_another_backend(tiny_model: Path, tmp_path: Path) -> None:
    torch, mlx = (partita_backends.load(name, dtype="float32") for name in ("torch", "mlx"))
    whole = losses(trainer(torch, tiny_model).run())
    for event in trainer(torch, tiny_model, folder=tmp_path).run():
        if isinstance(event, Saved) and event.step == 3:
            break
    other = trainer(mlx, tiny_model, folder=tmp_path)
    assert other.resume()
    rest = losses(other.run())
    assert [step for step, _, _ in rest] == [4, 5, 6]
    trained = min(batch.trained for batch in source(seed=3).one_epoch())
    error = bounds.loss(tiny_model, trained)
    np.testing.assert_allclose([loss for _, loss, _ in rest], [loss for _, loss, _ in whole[3:]], rtol=error)


def test_recomputing_is_no_other_run(ops: Backend, tiny_model: Path) -> None:
    plain, recomputed = (
        losses(trainer(ops, tiny_model, config=replace(CONFIG, grad_checkpoint=flag)).run()) for flag in (False, True)
    )
    np.testing.assert_allclose(plain, recomputed, rtol=bounds.gradients(tiny_model))


@pytest.mark.parametrize("name", ["gemma3", "qwen3_moe"])
def test_a_loss_computes_with_the_instance_it_is_handed(
    ops: Backend, tiny_family: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both passes, and its state too: the instance that everything was made with computes nothing of it."""
    model, values = lora(ops, tiny_family(name), LoraConfig(rank=4, alpha=8, targets="q_proj,o_proj"))
    batch = batch_of([documents(2, 20, 280)])
    view = Sequences(ops, model.decoder.config).view(batch.positions, batch.segments)
    steps = (
        "embed",
        "linear",
        "adapted_linear",
        "moe_linear",
        "rms_norm",
        "rotate",
        "glu",
        "attention",
        "checkpoint",
        "chunked_sum",
    )

    def refused(*args: Any, **options: Any) -> Any:
        raise AssertionError("computed with the shared instance")

    def loss(own: Backend, values: dict[str, Any]) -> tuple[Any, tuple[()]]:
        for step in steps:
            monkeypatch.setattr(ops, step, refused)
        return model.loss(own, values, batch, view, checkpoint=True), ()

    (total, _), grads = ops.value_and_grad(loss)(values)
    ops.launch(total, *grads.values())
    assert all(np.isfinite(ops.to_numpy(x)).all() for x in (total, *grads.values()))


@pytest.mark.parametrize("dora", [False, True])
def test_packed_bases_give_the_gradients_of_dense_ones(
    ops: Backend, tiny_family: Callable[[str], Path], tmp_path: Path, dora: bool
) -> None:
    """QLoRA: nothing is lost on the way through packed weights, a tied packed head among them."""
    checkpoint = open_checkpoint(tiny_family("gemma3"))
    write_mlx(checkpoint, tmp_path / "packed", transform=lambda name, x: _packed(x))
    write_huggingface(open_checkpoint(tmp_path / "packed"), tmp_path / "dense")
    assert "quantization" in json.loads((tmp_path / "packed/config.json").read_text())
    config, batch = LoraConfig(rank=4, alpha=8, dora=dora), batch_of([documents(2, 50, 280)], masked=5)
    loss, grads = gradients(ops, *lora(ops, tmp_path / "packed", config, spread=0.05), batch, checkpoint=True)
    expected, dense = gradients(ops, *lora(ops, tmp_path / "dense", config, spread=0.05), batch)
    assert loss == pytest.approx(expected, rel=bounds.loss(tmp_path / "dense", batch.trained))
    bounds.assert_all_near(grads, dense, bounds.gradients(tmp_path / "dense"))


def _packed(x: Any) -> Any:
    return quantize_weight(x, 4, 32) if x.ndim == 2 else x


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_text_is_learnt_and_recited(ops: Backend, tiny_model: Path, method: str) -> None:
    """From random weights, or by an adapter (whose frozen head has no row for the end); a session then says it."""
    base = open_checkpoint(tiny_model)
    tokenizer = load_tokenizer(base)
    text = "the quick brown fox thinks that the lazy dog jumps over the end of the day"
    ids = tokenizer.encode(text)
    end = [base.config["eos_token_id"]] if method == "full" else []
    batches = Fixed([batch_of([[[*ids, *end]]])])
    config = TrainConfig(100, 1e-2, "cosine", warmup=5, optimizer=AdamW(weight_decay=0.0))
    if method == "full":
        start: Any = initialise({**base.config, "tie_word_embeddings": True}, seed=1, path=tiny_model)
        model, values = full(ops, load_decoder(ops, start, stack=False), start)
    else:
        start = base
        lora_config = LoraConfig(rank=16, alpha=32)
        model, values = adapted(ops, load_decoder(ops, base, stack=False), lora_config)
    run = Trainer(ops, model, values, config, batches)
    assert losses(run.run())[-1][1] < 0.1
    decoder = model.bind(ops, run.values)
    if method == "full":  # what is written is what was trained
        decoder = load_decoder(ops, trained(start, run.state().values))
    speaker = LanguageModel("pupil", tiny_model, ops, decoder, tokenizer, "pupil")
    count = len(ids) - 3 + len(end)
    pieces = list(speaker.session().generate(ids[:3], sampling=Sampling(temperature=0), max_tokens=count))
    assert pieces[-1].finish_reason == ("stop" if end else "length")
    assert tokenizer.decode(ids[:3]) + "".join(piece.text for piece in pieces) == text


@pytest.mark.parametrize(
    "name",
    [
        *("llama-biased", "qwen3", "gemma3", "phi3", "olmo2", "smollm3", "glm4", "hunyuan", "cohere2"),
        *("qwen3_5", "olmo_hybrid", "lfm2", "lfm3"),
    ],
)
def test_every_family_begins_from_nothing(tiny_family: Callable[[str], Path], name: str) -> None:
    """Exactly the tensors of a published checkpoint, and a loss that begins at the logarithm of the vocabulary."""
    ops = partita_backends.load("torch", dtype="float32")
    published = open_checkpoint(tiny_family(name))
    drawn = initialise(published.config, seed=0)
    assert set(drawn.names()) == set(published.names())
    assert {key: drawn.shape(key) for key in drawn.names()} == {key: published.shape(key) for key in drawn.names()}
    model, values = full(ops, load_decoder(ops, drawn, stack=False), drawn)
    assert values.keys() == set(drawn.names())
    loss, grads = gradients(ops, model, values, batch_of([documents(2, 40, 280)]))
    assert loss == pytest.approx(np.log(published.config["vocab_size"]), rel=0.05)
    assert all(np.isfinite(grad).all() for grad in grads.values())
    assert not np.array_equal(drawn.read(drawn.names()[0]), initialise(published.config, seed=1).read(drawn.names()[0]))


def test_early_stop_keeps_the_best(ops: Backend, tiny_model: Path, tmp_path: Path) -> None:
    """Two evaluations without a new best end the run; resumed, it is still at its end."""
    config = TrainConfig(50, 1e-3, "constant", evaluate_every=2, patience=2)
    run, said = trainer(ops, tiny_model, "full", config, folder=tmp_path), iter([3.0, 2.0, 2.5, 2.0])
    run.evaluate = lambda: next(said)
    kept, events = {}, []
    for event in run.run():
        events.append(event)
        if event == Evaluation(2, 2.0, True):
            kept = {name: np.array(value) for name, value in run.state().values.items()}
    assert events[-1] == Finished(6, "patience")
    assert run.best == Best(2, 2.0, 2)
    best = load_best(tmp_path)
    assert best is not None
    assert all(np.array_equal(value, best[name]) for name, value in kept.items())
    again = trainer(ops, tiny_model, "full", config, folder=tmp_path)
    assert again.resume()
    assert list(again.run()) == [Finished(6, "patience")]


def test_one_batch_more_than_it_had(tiny_model: Path) -> None:
    """A padded row and a batch without anything trained leave the loss as it was."""
    ops = partita_backends.load("torch", dtype="float32")
    batch = batch_of([[document] for document in documents(2, 20, 280)])
    empty: Batch = replace(batch, weights=np.zeros_like(batch.weights))
    runs = []
    for accumulate, batches in ((1, [batch]), (2, [batch, empty])):
        model, values = lora(ops, tiny_model)
        config = TrainConfig(3, 1e-2, "constant", accumulate=accumulate)
        runs.append(losses(Trainer(ops, model, values, config, Fixed(batches)).run()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", ["qwen3_5", "olmo_hybrid"])
def test_a_new_model_with_a_state_gives_something(tiny_family: Callable[[str], Path], name: str) -> None:
    """Norms that add one begin at 0, those of what a head gives never do: it would be nothing."""
    config = open_checkpoint(tiny_family(name)).config
    drawn = initialise(config)
    norms = [name for name in drawn.names() if name.endswith(("linear_attn.norm.weight", "linear_attn.o_norm.weight"))]
    decays = [np.exp(drawn.read(name)) for name in drawn.names() if name.endswith("A_log")]
    assert len(norms) == len(decays) == 3
    assert all((drawn.read(norm) == 1).all() for norm in norms)
    assert all(((decay > 0) & (decay <= 16)).all() and len(set(decay.tolist())) > 1 for decay in decays)
