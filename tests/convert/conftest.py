"""Tiny models of every family, and the GGUF files made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from partita.checkpoint.open import open_checkpoint
from partita_convert.gguf.write import write_gguf

from .. import gguf_models


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written-as-gguf")


@pytest.fixture(scope="session")
def written(families: Path) -> Callable[..., Path]:
    """written(name, kind="F32"): a family as GGUF, made once."""

    def get(name: str, kind: str = "F32") -> Path:
        path = families / f"{name}-{kind}.gguf"
        if not path.exists():
            write_gguf(open_checkpoint(gguf_models.write(name, families)), path, kind=kind)
        return path

    return get
