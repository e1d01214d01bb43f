"""Tiny models most of whose layers keep a state, on every backend in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import partita
import partita_backends
from partita.language_model import LanguageModel


@pytest.fixture(params=partita_backends.names(), scope="package")
def model(request: pytest.FixtureRequest, tiny_family: Callable[[str], Path]) -> LanguageModel:
    return partita.load(tiny_family("qwen3_5"), backend=partita_backends.load(request.param, dtype="float32"))
