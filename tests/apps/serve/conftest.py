"""Registries of scripted models over tiny folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import chat_forms

from .scripted import Play, Script, ScriptedRegistry, scripted


@pytest.fixture(scope="session")
def form_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model whose replies have a form of `chat_forms`, written once a session."""
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            made[name] = chat_forms.write_model(tmp_path_factory.mktemp("forms") / name, name)
        return made[name]

    return write


@pytest.fixture
def registry(tiny_model: Path, form_model: Callable[[str], Path]) -> Callable[..., ScriptedRegistry]:
    """registry(play, form=None, **text): one model named tiny; form: of `chat_forms`, None for plain replies."""

    def make(play: Play = Script("hello"), form: str | None = None, **text: Any) -> ScriptedRegistry:  # noqa: B008
        return scripted(tiny_model if form is None else form_model(form), play, **text)

    return make
