"""Registries of scripted models over tiny folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from tests import chat_forms

from .scripted import Play, Script, ScriptedRegistry, scripted
from .served import Served, serving
from .started import Running, Start


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


@pytest.fixture
def served(registry: Callable[..., ScriptedRegistry]) -> Iterator[Callable[..., Served]]:
    """served(play, form, text={…}, **settings): the application on a port of the loopback, with such a registry."""
    with ExitStack() as stack:

        def make(
            play: Play = Script("hello"),  # noqa: B008
            form: str | None = None,
            text: dict[str, Any] | None = None,
            **settings: Any,
        ) -> Served:
            return stack.enter_context(serving(registry(play, form, **(text or {})), **settings))

        yield make


@pytest.fixture
def client() -> Iterator[Callable[[Served], openai.OpenAI]]:
    """client(server): OpenAI's own, closed behind the test."""
    with ExitStack() as stack:
        yield lambda server: stack.enter_context(
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        )


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    begun: list[Running] = []

    def make(*arguments: str | Path, port: int | None = 0, **settings: str) -> Running:
        given = [*map(str, arguments), *([] if port is None else [f"--port={port}"])]
        begun.append(Running(given, {**environment, **settings}, tmp_path))
        return begun[-1]

    yield make
    for each in begun:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        assert each.process.stdout is not None
        each.process.stdout.close()
