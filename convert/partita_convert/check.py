"""What a conversion lost, on a text: perplexity of source and result, and the divergence of their predictions.

Not here: the measures (`partita.inference.perplexity`). Both models are in memory, and read the text side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from partita.backend import Backend
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.checkpoint.base import Checkpoint
from partita.checkpoint.open import open_checkpoint
from partita.errors import DataError
from partita.inference.perplexity import compare, perplexity
from partita.model.load import check_whole, load_decoder, read_config
from partita.text.load import load_tokenizer

from .report import Check

TOKENS = 2048
"""Of the text, at most."""


def check_tokens(source: Checkpoint, text: str) -> list[int]:
    """The first tokens of `text` as the source's tokenizer splits it; no weight is read.

    DataError for a text of fewer than two tokens, UnsupportedModel for a source that cannot be run.
    """
    read_config(source)
    tokens = load_tokenizer(source).encode(text)[:TOKENS]
    if len(tokens) < 2:
        raise DataError(
            f"`check`: the text is too short, {len(tokens)} of the 2 tokens that are needed: give more of it",
            field="check",
        )
    return tokens


def check_other(source: Checkpoint, other: Checkpoint) -> None:
    """Whether another file can be judged beside the result: DataError for one with another vocabulary, CheckpointError
    for a damaged one, UnsupportedModel for one that cannot be run. No weight is read."""
    check_whole(other)
    sizes = [read_config(checkpoint).vocab_size for checkpoint in (source, other)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"`against`: {other.path.name} has {sizes[1]} tokens and {source.path.name} {sizes[0]}: give a file of the "
            "same model",
            field="against",
        )


def check_loss(
    ops: Backend, source: Checkpoint, result: Path, text: str, on_progress: Callable[[int, int], None] | None = None
) -> Check:
    """Both through an unquantized cache. source: with an adapter fused into it, if the result has one.

    Errors as for `check_tokens`.
    """
    tokens = check_tokens(source, text)
    reference, tested = load_decoder(ops, source), load_decoder(ops, open_checkpoint(result))
    dense = KVFormat.parse("auto", dense_bits=32 if ops.decode_dtype == "float32" else 16)
    before, after = (Cache(ops, plan(decoder.config, dense)) for decoder in (reference, tested))
    found = compare(ops, reference, before, after, tokens, changed=tested, on_progress=on_progress)
    return Check(len(tokens), perplexity(found.reference_losses), perplexity(found.losses), found.kl, found.top1)
