"""docs/models.md says what the tables of families say."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from partita.checkpoint.open import open_checkpoint
from partita.model.families.parse import FAMILIES, parse
from partita.model.families.wrappers import WRAPPERS
from partita.training.initialize import untrained
from partita_apps.suggest.catalogue import read_catalogue

from .. import tiny_models

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("models_document", DOCS / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_what_the_tables_say(made: ModuleType) -> None:
    assert (DOCS / "models.md").read_text(encoding="utf-8") == made.document(), "run `python docs/models.py`"


def test_every_family_has_a_row_whose_markers_are_read(made: ModuleType) -> None:
    assert made.KNOWN.keys() == FAMILIES.keys()
    for known in made.KNOWN.values():
        assert known.thoughts in made.recognised("thought")
        assert known.calls in made.recognised("tool_call")


def test_calls_of_what_is_suggested_for_tools_are_read(made: ModuleType) -> None:
    for model in read_catalogue().model:
        wrapper = WRAPPERS.get(model.model_type)
        texts = wrapper.texts.values() if wrapper else (model.model_type,)
        if "tools" in model.suits:
            assert all(made.KNOWN[kind].calls for kind in texts), model.name


def test_what_is_trained_is_said(made: ModuleType, tiny_family: Callable[[str], Path]) -> None:
    for name in ("llama", "granite_swa", "cohere2", *tiny_models.EXPERTS):
        config = parse(open_checkpoint(tiny_family(name)).config)
        assert (config.model_type in made.FROZEN) == (untrained(config) is not None), name
    forms = {parse(open_checkpoint(tiny_family(name)).config).experts is not None for name in tiny_models.SHAPED}
    assert (forms == {True, False}) == ("gemma4_text" in made.IN_PART)
