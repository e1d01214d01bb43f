"""What the model says to a few prompts, before and after. Greedy, so that the difference is the training's alone.

Prompts are the user's, or beginnings of documents that were held out of training, where the text that the data has
next is shown beside them. Decides nothing about training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.load import Dataset, Splits
from ..errors import DataError, PartitaError
from ..language_model import LanguageModel
from .prepare import Prepared

Spelled = Callable[[str], str]
OF_DATA = 2  # prompts, where none was given
_LONGEST = 256  # tokens of a prompt out of the data
_OPENING = 16  # tokens of a text that has no prompt of its own
_LOOKED_AT = 200  # documents


@dataclass(frozen=True)
class Prompt:
    """expected: how the data goes on; None for a prompt of the user's."""

    ids: tuple[int, ...]
    text: str
    expected: str | None = None


def prompts(prepared: Prepared) -> list[Prompt]:
    """Those of `--sample`, or a few out of the data."""
    settings, tokenizer = prepared.settings, prepared.tokenizer
    if not settings.sample_tokens:
        return []
    if settings.sample:
        if not prepared.chats:  # read as the texts of the data are
            return [Prompt(tuple(_raw(prepared, text)), text) for text in settings.sample]
        speaker = _language_model(prepared, None)
        return [Prompt(tuple(speaker.encode(text, **settings.variables)), text) for text in settings.sample]
    return _of_data(prepared.splits, tokenizer, settings.sample_tokens)


def _raw(prepared: Prepared, text: str) -> list[int]:
    if not text.strip():
        raise DataError("`sample`: the prompt is empty: give some text", field="sample")
    return prepared.tokenizer.encode(text, specials=prepared.settings.control_tokens)


def replies(prepared: Prepared, values: Mapping[str, Any], asked: Sequence[Prompt], spelled: Spelled) -> dict[str, str]:
    """The model's answers with these values of its trainables, by the prompts' texts. spelled: for messages."""
    if not asked:
        return {}
    model, count = _language_model(prepared, values), prepared.settings.sample_tokens
    return {prompt.text: _reply(model, prompt, count, spelled) for prompt in asked}


def _reply(model: LanguageModel, prompt: Prompt, count: int, spelled: Spelled) -> str:
    """A sample that cannot be made says why: it is no reason to lose a run."""
    context = min(len(prompt.ids) + count, model.config.max_positions)
    try:
        session = model.session(prefixes=None, context=context, sinks=0)
        pieces = session.generate(prompt.ids, max_tokens=count, continues=prompt.expected is not None)
        return "".join(piece.text for piece in pieces)
    except PartitaError as error:
        return f"({spelled(str(error))})"


def _language_model(prepared: Prepared, values: Mapping[str, Any] | None) -> LanguageModel:
    model, settings = prepared.model, prepared.settings
    decoder = model.decoder if values is None else model.bind(prepared.ops, values)
    path = prepared.checkpoint.path
    return LanguageModel(settings.model, path, prepared.ops, decoder, prepared.tokenizer, "")


def _of_data(splits: Splits, tokenizer: Any, count: int) -> list[Prompt]:
    data: Dataset = splits.valid if splits.valid is not None else splits.train
    found: list[Prompt] = []
    for i in range(min(len(data), _LOOKED_AT)):
        ids, trained = data.document(i)
        first = int(np.argmax(trained))  # the first trained token
        length = first if first > 2 else min(_OPENING, len(ids) - 1)  # a text is trained from its beginning
        if not 0 < length <= _LONGEST:
            continue
        rest = ids[length : length + count]
        begun = ids[:length].tolist()
        text = tokenizer.decode(begun, specials=True)
        if any(prompt.text == text for prompt in found):
            continue
        found.append(Prompt(tuple(begun), text, tokenizer.decode(rest.tolist())))
        if len(found) == OF_DATA:
            break
    return found
