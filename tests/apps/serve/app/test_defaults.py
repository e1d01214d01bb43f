"""What a chat's settings are where nobody chose them: whose word each is, by what a model's makers recommend."""

from __future__ import annotations

from dataclasses import fields

from partita.inference.sampling import Sampling
from partita_apps.serve.app.asks import NAMES
from partita_apps.serve.app.defaults import defaults_of


def test_every_setting_but_the_instructions_has_a_default() -> None:
    assert defaults_of({}).keys() == {*NAMES} - {"system"}
    assert {each.name for each in fields(Sampling)} <= defaults_of({}).keys()


def test_without_a_recommendation_all_is_ours() -> None:
    found = defaults_of({})
    assert {each["by"] for each in found.values()} == {"partita's"}
    assert (found["temperature"]["value"], found["min_p"]["value"]) == (0.7, 0.05)


def test_what_the_makers_recommend_is_the_models() -> None:
    found = defaults_of({"do_sample": True, "top_p": 0.8, "top_k": 20})
    assert found["top_p"] == {"value": 0.8, "by": "the model's"}
    assert found["top_k"] == {"value": 20, "by": "the model's"}
    assert found["temperature"] == {"value": 1.0, "by": "the model's"}
    assert found["min_p"] == {"value": 0.0, "by": "partita's"}


def test_a_model_that_is_not_sampled_takes_the_most_probable_token() -> None:
    found = defaults_of({"do_sample": False, "top_p": 0.8})
    assert found["temperature"] == {"value": 0.0, "by": "the model's"}
    assert found["top_p"] == {"value": 1.0, "by": "partita's"}


def test_values_that_make_no_sense_recommend_nothing() -> None:
    assert defaults_of({"temperature": -3, "top_k": "many"}) == defaults_of({})
