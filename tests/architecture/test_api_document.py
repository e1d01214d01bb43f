"""docs/api.md is what docs/api.py makes of the docstrings, and has everything that the package names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import partita

DOCS = Path(__file__).parents[2] / "docs"


def test_the_document_is_made_of_the_docstrings() -> None:
    spec = importlib.util.spec_from_file_location("api", DOCS / "api.py")
    assert spec is not None
    assert spec.loader is not None
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    assert {*api.FUNCTIONS, *api.CLASSES, "__version__"} == set(partita.__all__)
    assert (DOCS / "api.md").read_text(encoding="utf-8") == api.document(), "run `python docs/api.py`"
