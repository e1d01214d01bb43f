"""A tiny model on every backend, in float32, and rows whose classes are small: they are moved within a few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import partita
import partita_backends
from partita.backend import Backend
from partita.cache import spec as cache_spec
from partita.engine import buckets, reading, room
from partita.language_model import LanguageModel


@pytest.fixture(params=partita_backends.names(), scope="package")
def ops(request: pytest.FixtureRequest) -> Backend:
    return partita_backends.load(request.param, dtype="float32")


@pytest.fixture(scope="package")
def model(ops: Backend, tiny_model: Path) -> LanguageModel:
    return partita.load(tiny_model, backend=ops)


@pytest.fixture(scope="package")
def numpy_model(tiny_model: Path) -> LanguageModel:
    """For what does not depend on a backend."""
    return partita.load(tiny_model, backend=partita_backends.load("numpy"))


@pytest.fixture(autouse=True)
def small_classes() -> Iterator[None]:
    """Of 16, 64, 256 tokens, in blocks of 16 slots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "FIRST", 16)
        for module in (buckets, reading):
            patch.setattr(module, "AHEAD", 4)
        patch.setattr(cache_spec, "BLOCK", 16)
        yield
