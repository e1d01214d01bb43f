"""The functions of the package: what they give is what the classes below give."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest

import partita
from partita.finetuning.settings import SCHEDULES, MoreSettings, Settings
from partita.inference.perplexity import token_losses

CHATS = [
    {"messages": [{"role": "user", "content": f"the fox number {i}"}, {"role": "assistant", "content": "the lazy dog"}]}
    for i in range(6)
]
QUICK: dict[str, Any] = {"backend": "torch", "rank": 2, "steps": 2, "max_length": 64, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> partita.LanguageModel:
    return partita.load(tiny_model, backend="numpy")


def said(pieces: Any) -> str:
    return "".join(piece.text for piece in pieces)


def test_keywords_are_fields_of_sampling(model: partita.LanguageModel) -> None:
    how = partita.Sampling(temperature=0.9, top_k=7, seed=3)
    given = said(partita.generate(model, "the fox", sampling=how, max_tokens=8))
    assert said(partita.generate(model, "the fox", temperature=0.9, top_k=7, seed=3, max_tokens=8)) == given
    other = partita.Sampling(temperature=0.9, top_k=7, seed=4)
    assert said(partita.generate(model, "the fox", sampling=other, seed=3, max_tokens=8)) == given
    with pytest.raises(partita.PartitaError, match="temperature"):
        partita.generate(model, "the fox", temperature=-1.0)


def test_a_stop_may_be_one_string(model: partita.LanguageModel) -> None:
    whole = said(partita.generate(model, "the fox", raw=True, max_tokens=12))
    stop = whole[4:6]
    assert said(partita.generate(model, "the fox", raw=True, max_tokens=12, stop=stop)) == whole[: whole.index(stop)]


def test_a_chat_reads_only_what_is_new(model: partita.LanguageModel) -> None:
    session = model.session(prefixes=None)
    messages = [{"role": "user", "content": "the fox"}]
    reply = said(partita.chat(model, messages, session=session, max_tokens=5, temperature=0))
    assert reply == said(partita.generate(model, messages, max_tokens=5))
    messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": "and the dog"}]
    list(partita.chat(model, messages, session=session, max_tokens=3))
    assert session.reused >= len(model.encode("the fox"))


def test_logits_are_those_that_predict(model: partita.LanguageModel) -> None:
    ids = model.encode("the quick brown fox jumps over the lazy dog", raw=True)
    found = partita.logits(model, ids)
    assert (found.dtype, found.shape) == (np.float32, (len(ids), model.config.vocab_size))
    cache = partita.Cache(model.ops, model.cache_spec(context=len(ids), sinks=0))
    losses = token_losses(model.ops, model.decoder, cache, ids)
    log_p = found - np.logaddexp.reduce(found.astype(np.float64), -1)[:, None]
    np.testing.assert_allclose(-log_p[np.arange(len(ids) - 1), ids[1:]], losses, rtol=1e-4, atol=1e-4)
    with pytest.raises(partita.PartitaError):
        partita.logits(model, [])


def test_records_become_an_adapter_that_loads(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    report = partita.finetune(tiny_model, CHATS, out=str(out), sample="the fox", **QUICK)
    assert (report.steps, report.ended, report.adapter, report.model) == (2, "steps", out, None)
    assert [step for step, _ in report.train_loss] == [1, 2]
    assert [sample.prompt for sample in report.samples] == ["the fox"]
    assert json.loads(json.dumps(report.as_json()))["adapter"] == str(out)
    assert [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()] == CHATS
    adapted = partita.load(tiny_model, adapter=str(out), backend="numpy")
    assert said(partita.generate(adapted, "the fox", max_tokens=2)) is not None
    with pytest.raises(partita.PartitaError, match="holds a run already") as caught:
        partita.finetune(tiny_model, CHATS, out=out, **QUICK)
    assert caught.value.field == "out"
    assert partita.finetune(tiny_model, CHATS, out=out, resume=True, sample="the fox", **QUICK).steps == 2


def test_full_training_leaves_a_model(tiny_model: Path, tmp_path: Path) -> None:
    given = {name: value for name, value in QUICK.items() if name != "rank"}
    report = partita.finetune(tiny_model, CHATS, out=tmp_path / "run", method="full", **given)
    assert report.adapter is None
    assert report.model is not None
    assert partita.load(report.model, backend="numpy").config.num_layers > 0


def test_a_misspelt_setting_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    for name, words in (("step", "setting step: did you mean steps?"), ("qqq", "setting qqq: help")):
        with pytest.raises(TypeError, match=re.escape(words)):
            partita.finetune(tiny_model, CHATS, out=tmp_path / "run", **{name: 3})
    assert not (tmp_path / "run").exists()


def test_every_setting_is_a_typed_keyword_and_explained() -> None:
    """Named ones and those of `MoreSettings` together are the fields of `Settings`, with their types and defaults."""
    parameters = inspect.signature(partita.finetune).parameters
    named = parameters.keys() - {"out", "resume", "observer", "more"}
    more, fields = get_type_hints(MoreSettings), get_type_hints(Settings)
    assert named.isdisjoint(more)
    assert named | more.keys() == fields.keys()
    assert more == {**{name: fields[name] for name in more}, "schedule": Literal[SCHEDULES]}
    own = {"model", "data", "sample_tokens"}  # whose default depends on `sample`
    defaults = {name: parameters[name].default for name in named - own}
    assert defaults == {name: getattr(Settings, name) for name in named - own}
    said = inspect.getdoc(partita.finetune)
    for name in more:
        assert re.search(rf"\b{name} = {re.escape(str(getattr(Settings, name)))}\b|{name} = \"", said), name


def test_rarer_settings_reach_the_run(tiny_model: Path, tmp_path: Path) -> None:
    more: MoreSettings = {"schedule": "constant", "warmup": 0, "packing": False, "save_every": 1}
    report = partita.finetune(
        tiny_model, CHATS, out=tmp_path / "run", template_var="tone=dry", targets=["q_proj"], **more, **QUICK
    )
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert {name: kept[name] for name in more} == more
    assert (kept["template_var"], kept["targets"], kept["sample_tokens"]) == (["tone=dry"], "q_proj", 0)
    assert report.samples == ()


def test_a_model_is_converted(tiny_model: Path, tmp_path: Path) -> None:
    report = partita.convert(tiny_model, str(tmp_path / "small"), quantize=8, backend="numpy")
    assert report.as_json()["to"] == "mlx"
    assert report.bits_per_weight < 16
    assert partita.load(tmp_path / "small", backend="numpy").config.num_layers > 0
