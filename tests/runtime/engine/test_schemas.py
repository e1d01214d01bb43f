"""Replies that are held to schemas, many at once, each drawn at temperature 1 by a model that knows nothing of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest

import partita
from partita.engine.constraint import Grammars
from partita.engine.engine import Engine
from partita.engine.request import Constraint, Finished, Request
from partita.inference.sampling import Sampling
from partita.language_model import LanguageModel

from .driver import CACHE, Driver


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS = (
    closed(
        name={"type": "string", "maxLength": 12},
        age={"type": "integer", "minimum": 0, "maximum": 120},
        tags={"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    ),
    closed(city={"type": "string", "maxLength": 16}, warm={"type": "boolean"}, unit={"enum": ["C", "F"]}),
    {
        "type": "array",
        "items": closed(title={"type": "string", "minLength": 1, "maxLength": 8}, done={"type": "boolean"}),
        "minItems": 1,
        "maxItems": 2,
    },
    closed(
        address={"type": "string", "format": "ipv4"},
        code={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,4}$"},
        note={"anyOf": [{"type": "string", "maxLength": 6}, {"type": "null"}]},
    ),
)


def check(model: LanguageModel, count: int, cache: Mapping[str, Any], rows: int) -> None:
    """That as many replies, under one schema after the other, are all valid."""
    grammars = Grammars(model.tokenizer, model.config.vocab_size)
    driver = Driver(
        Engine({"": model}, model.cache_spec(**cache), max_waiting=count, max_rows=rows, matchers=grammars.matcher)
    )
    stops = model.tokenizer.stop_ids
    for id in range(count):
        prompt = model.encode(f"Thing {id}, as JSON:", raw=True)
        sampling = Sampling(temperature=1.0, seed=id)
        constraint = Constraint("json_schema", json.dumps(SCHEMAS[id % len(SCHEMAS)]))
        driver.engine.submit(Request(id, prompt, 300, sampling, tuple(stops), constraint=constraint))
    driver.run()
    for id in range(count):
        assert driver.said[id][-1] == Finished(id, "stop")
        said = model.tokenizer.decode(token for token in driver.tokens(id) if token not in stops)
        jsonschema.validate(json.loads(said), SCHEMAS[id % len(SCHEMAS)], format_checker=jsonschema.FormatChecker())


def test_random_replies_side_by_side_are_valid(numpy_model: LanguageModel) -> None:
    check(numpy_model, 12, {**CACHE, "context": 512}, 4)


@pytest.mark.slow
def test_two_hundred_replies_of_the_default_model_are_valid(default_model: Any) -> None:
    check(partita.load(default_model), 200, {"context": 1024}, 8)
