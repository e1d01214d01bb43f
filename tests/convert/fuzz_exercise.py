"""Everything that a user reaches by naming a model, done to one model: all of it ends well or in a PartitaError."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from partita.checkpoint import open_checkpoint
from partita.errors import MAX_MESSAGE, PartitaError
from partita.families import parse
from partita.quantization import Packed, dequantize
from partita.tokenizer import Tokenizer


def exercise(path: Path) -> str:
    """All that a user reaches by naming the model. Returns how far it got."""
    try:
        checkpoint = open_checkpoint(path)
        checkpoint.fingerprint()
        names = checkpoint.names()
    except PartitaError as error:
        return told(error)
    outcome = "opened"
    for name in names:
        checkpoint.stored_as(name)
        shape = checkpoint.shape(name)
        try:
            value = checkpoint.read(name)
        except PartitaError as error:
            outcome = told(error)
            continue
        assert tuple(value.shape) == shape, (name, value.shape, shape)
        with np.errstate(all="ignore"):
            assert (dequantize(value) if isinstance(value, Packed) else value).shape == shape
    try:
        use(checkpoint.load_tokenizer())
    except PartitaError as error:
        outcome = told(error)
    try:
        parse(checkpoint.config)
    except PartitaError as error:
        outcome = told(error)
    return outcome


def use(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab <|im_end|> é\n", bos=False, specials=True) + tokenizer.encode("abcd", bos=False)
    tokenizer.decode([*ids, *range(min(tokenizer.vocab_size, 300)), 2**31])
    for i in range(min(tokenizer.vocab_size, 40)):
        tokenizer.token_text(i)


def told(error: PartitaError) -> str:
    """A message for a person: one line, of a length that fits a screen."""
    text = str(error)
    assert text.isprintable(), repr(text[:2000])
    assert 0 < len(text) <= MAX_MESSAGE, repr(text[:2000])
    return type(error).__name__
