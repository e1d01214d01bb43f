"""A tokenizer made here, with a template of one's choice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partita.text.chat_template import ChatTemplate
from partita.text.load import tokenizer_from_folder

from .templates import train_library


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary")
    train_library(path)
    return path


@pytest.fixture(scope="module")
def with_template(vocabulary, tmp_path_factory):
    """A tokenizer and its template by the template's source and the names of its BOS and EOS."""

    def make(source: str | None, bos: str | None = None, eos: str | None = "<|im_end|>", adds_bos: bool = False):
        path = tmp_path_factory.mktemp("model")
        (path / "tokenizer.json").write_bytes((vocabulary / "tokenizer.json").read_bytes())
        config = {"bos_token": bos, "eos_token": eos, "add_bos_token": adds_bos, "chat_template": source}
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = tokenizer_from_folder(path)
        return tokenizer, ChatTemplate.of(tokenizer) if source else None

    return make
