"""Weights that are not finite, and ids that no row of the embedding has: one line, on every backend and decode path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import partita_backends
from partita.backend import Backend
from partita.checkpoint.open import open_checkpoint
from partita.draft_model import ModelDraft
from partita.errors import CheckpointError, DataError
from partita.inference.perplexity import compare, token_losses
from partita.inference.sampling import Sampling
from partita.inference.speculative import PromptLookup
from partita.language_model import LanguageModel, load
from partita_convert.activations import importance

REPEATED = [5, 6, 7, 8] * 6


@pytest.fixture(params=partita_backends.names(), scope="module")
def ops(request: pytest.FixtureRequest) -> Backend:
    return partita_backends.load(request.param, dtype="float32")


def changed(folder: Path, target: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def all_nan(tensors: dict[str, np.ndarray]) -> None:
    for value in tensors.values():
        value[...] = np.nan


def one_row(number: float) -> Callable[[dict[str, np.ndarray]], None]:
    """Of the head: one token's logit alone is not finite."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["lm_head.weight"][100] = number

    return change


BROKEN = {"all": all_nan, "nan": one_row(np.nan), "inf": one_row(np.inf)}


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0, top_k=5, seed=1), Sampling(presence_penalty=1)]
)
@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what is damaged
def test_no_token_is_chosen_by_numbers_that_are_none(
    ops: Backend, tiny_model: Path, tmp_path: Path, sampling: Sampling, damage: str
) -> None:
    model = load(changed(tiny_model, tmp_path / "m", BROKEN[damage]), backend=ops)
    for drafter in (None, PromptLookup(), ModelDraft(model, load(tiny_model, backend=ops))):
        for alternatives in (0, 2):
            reply = model.session().generate(
                REPEATED, sampling=sampling, max_tokens=8, draft=drafter, alternatives=alternatives
            )
            with pytest.raises(CheckpointError, match=r"logits are not finite .* its weights are damaged"):
                next(reply)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_perplexity_is_a_number(ops: Backend, tiny_model: Path, tmp_path: Path) -> None:
    model = load(changed(tiny_model, tmp_path / "m", all_nan), backend=ops)
    caches = [model.session(prefixes=None).cache for _ in range(3)]
    with pytest.raises(CheckpointError, match="logits are not finite"):
        token_losses(ops, model.decoder, caches[0], REPEATED)
    with pytest.raises(CheckpointError, match="logits are not finite"):
        compare(ops, model.decoder, *caches[1:], REPEATED)


@pytest.mark.parametrize("drafted", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_reply_ends_where_its_numbers_do(ops: Backend, tiny_model: Path, tmp_path: Path, drafted: bool) -> None:
    """The embedding of the second token that is chosen is damaged: the two tokens come, and then the line."""
    said: dict[str, object] = {"sampling": Sampling(presence_penalty=100), "draft": PromptLookup() if drafted else None}
    whole = load(tiny_model, backend=ops)
    first, second = (
        piece.token.id for piece in whole.session().generate(REPEATED, max_tokens=2, **said) if piece.token
    )
    assert second not in (first, *REPEATED)

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.embed_tokens.weight"][second] = np.nan

    model = load(changed(tiny_model, tmp_path / "m", change), backend=ops)
    reply = model.session().generate(REPEATED, max_tokens=9, **said)
    assert [piece.token.id for piece in (next(reply), next(reply)) if piece.token] == [first, second]
    with pytest.raises(CheckpointError, match="not finite"):
        next(reply)


def test_the_hint_names_the_dtype(tiny_model: Path, tmp_path: Path) -> None:
    model = load(changed(tiny_model, tmp_path / "m", all_nan), backend="torch", device="cpu", dtype="bfloat16")
    with pytest.raises(CheckpointError, match=r"bfloat16: .*`dtype` float32"):
        next(model.session().generate([1, 2]))


def uses(model: LanguageModel, ids: list[int]) -> list[Callable[[], object]]:
    session = model.session(prefixes=None)
    return [
        lambda: list(session.generate(ids, max_tokens=1)),
        lambda: list(session.generate(ids, max_tokens=1, sampling=Sampling(presence_penalty=1))),
        lambda: list(session.generate(ids, max_tokens=1, draft=PromptLookup())),
        lambda: token_losses(model.ops, model.decoder, session.cache, ids),
        lambda: importance(model.ops, open_checkpoint(model.path), ids),
    ]


@pytest.mark.parametrize("wrong", [-1, 303, 2**31 - 1, 2**40])
def test_ids_beyond_the_embedding_are_refused_on_every_backend(ops: Backend, tiny_model: Path, wrong: int) -> None:
    """MLX would read past the matrix, and numpy's negative ids would be others."""
    model = load(tiny_model, backend=ops)
    assert model.config.vocab_size <= 303
    for use in uses(model, [1, wrong, 2])[: 4 if wrong == 2**40 else None]:
        with pytest.raises(DataError, match=f"{wrong}"):
            use()


def test_a_tokenizer_of_another_model_is_refused_at_loading(tiny_model: Path, tmp_path: Path) -> None:
    rows = json.loads((tiny_model / "config.json").read_text())["vocab_size"]

    def fewer(by: int) -> Path:
        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                tensors[name] = tensors[name][: rows - by].copy()

        path = changed(tiny_model, tmp_path / f"{by}", change)
        config = json.loads((path / "config.json").read_text()) | {"vocab_size": rows - by, "eos_token_id": 1}
        (path / "config.json").write_text(json.dumps(config))
        return path

    with pytest.raises(CheckpointError, match=f"tokenizer has {rows} tokens .*{rows - 9} rows"):
        load(fewer(9), backend="numpy")
    model = load(fewer(1), backend="numpy")  # the last is a control token, which no text becomes
    assert list(model.session().generate(model.encode("hello", raw=True), max_tokens=1))
    with pytest.raises(DataError, match=f"token {rows - 1} .* {rows - 1}"):
        list(model.session().generate(model.encode("hello"), max_tokens=1))
