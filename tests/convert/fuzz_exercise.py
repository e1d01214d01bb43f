"""Everything that a user reaches by naming a model, done to one model: all of it ends well or in a PartitaError."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import partita_backends
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.errors import PartitaError
from partita.model.families.parse import parse
from partita.model.load import load_decoder
from partita.printable import MAX_MESSAGE, printable
from partita.quantization import Packed, dequantize
from partita.text.load import load_tokenizer
from partita.text.tokenizer import Tokenizer


def exercise(path: Path) -> str:
    """All that a user reaches by naming the model. Returns how far it got."""
    try:
        checkpoint = open_checkpoint(path)
        checkpoint.fingerprint()
        names = checkpoint.names()
    except PartitaError as error:
        return checked(error)
    outcome = "opened"
    for name in names:
        checkpoint.stored_as(name)
        shape = checkpoint.shape(name)
        try:
            value = checkpoint.read(name)
        except PartitaError as error:
            outcome = checked(error)
            continue
        assert tuple(value.shape) == shape, (name, value.shape, shape)
        with np.errstate(all="ignore"):
            assert (dequantize(value) if isinstance(value, Packed) else value).shape == shape
    try:
        use(load_tokenizer(checkpoint))
    except PartitaError as error:
        outcome = checked(error)
    try:
        config = parse(checkpoint.config)
    except PartitaError as error:
        return checked(error)
    try:
        return decode(checkpoint) if config.num_layers <= 2 and outcome == "opened" else outcome
    except PartitaError as error:
        checked(error)
        return outcome


def decode(checkpoint: Checkpoint) -> str:
    """The weights on a device, where the files hold a whole model, and two tokens through it."""
    ops = partita_backends.load("numpy", dtype="float32")
    decoder = load_decoder(ops, checkpoint)
    spec = plan(decoder.config, KVFormat.parse("32"), context=8, sinks=0, chunk=2)
    with np.errstate(all="ignore"):
        logits = decoder(ops, ops.array(np.array([[0, 1]], np.int32)), Cache(ops, spec), every=True)
    assert tuple(logits.shape) == (1, 2, decoder.config.vocab_size)
    return "decoded"


def use(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab <|im_end|> é\n", bos=False, specials=True) + tokenizer.encode("abcd", bos=False)
    tokenizer.decode([*ids, *range(min(tokenizer.vocab_size, 300)), 2**31])
    for i in range(min(tokenizer.vocab_size, 40)):
        tokenizer.token_text(i)


def checked(error: PartitaError) -> str:
    """A message for a person: one line, of a length that fits a screen."""
    text = str(error)
    assert printable(text) == text, repr(text[:2000])
    assert 0 < len(text) <= MAX_MESSAGE, repr(text[:2000])
    return type(error).__name__
