"""Every backend of the registry, required: one that is missing fails here and is never skipped."""

from __future__ import annotations

import os

import pytest

import partita_backends
from partita.backend import Backend

NAMES = os.environ.get("PARTITA_BACKENDS", ",".join(partita_backends.names())).split(",")


@pytest.fixture(params=NAMES, scope="session")
def ops(request: pytest.FixtureRequest) -> Backend:
    """A backend computing in float32, where backends agree."""
    return partita_backends.load(request.param, dtype="float32")


@pytest.fixture(scope="session")
def oracle() -> Backend:
    return partita_backends.load("numpy")
