"""Vocabularies of the forms of replies, made once."""

from __future__ import annotations

import pytest
from tests.chat_forms import FORMS, write_tokenizer

from partita.text.chat_template import ChatTemplate
from partita.text.load import tokenizer_from_folder
from partita.text.reply.parser import ReplyFormat

from .reply_cases import Forms


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    """Vocabulary and format of every form."""
    found = {}
    for name in FORMS:
        folder = tmp_path_factory.mktemp("forms") / name
        folder.mkdir()
        write_tokenizer(folder, name)
        tokenizer = tokenizer_from_folder(folder)
        found[name] = tokenizer, ReplyFormat.of(tokenizer, ChatTemplate.of(tokenizer))
    return found
