"""A page of a served application, and the fixtures of the folder above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ..scripted import Script
from ..served import Served
from .page import Page


@pytest.fixture
def page(served: Callable[..., Served]) -> Callable[..., Page]:
    """page(play, …): one that has the server's token; as `served`."""

    def make(play: Any = Script("the quick brown fox"), **more: Any) -> Page:  # noqa: B008
        return Page(served(play, **more))

    return make
