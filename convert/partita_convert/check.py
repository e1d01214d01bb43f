"""What a conversion lost, on a text: perplexity of source and result, and the divergence of their predictions.

Not here: the measures (`partita.perplexity`). Both models are in memory, and read the text side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from partita.backend import Backend
from partita.cache import Cache
from partita.cache_spec import plan
from partita.checkpoint import Checkpoint, open_checkpoint
from partita.kv_format import KVFormat
from partita.loading import load_decoder
from partita.perplexity import compare, perplexity

from .report import Check

TOKENS = 2048
"""Of the text, at most."""


def check_loss(
    ops: Backend, source: Checkpoint, result: Path, text: str, on_progress: Callable[[int, int], None] | None = None
) -> Check:
    """Both through an unquantized cache, on the first tokens of `text` as the source's tokenizer splits it.

    source: with an adapter fused into it, if the result has one. DataError for a text of fewer than two tokens.
    """
    tokens = source.load_tokenizer().encode(text)[:TOKENS]
    reference, tested = load_decoder(ops, source), load_decoder(ops, open_checkpoint(result))
    dense = KVFormat.parse("auto", dense_bits=32 if ops.decode_dtype == "float32" else 16)
    before, after = (Cache(ops, plan(decoder.config, dense)) for decoder in (reference, tested))
    found = compare(ops, reference, before, after, tokens, changed=tested, on_progress=on_progress)
    return Check(len(tokens), perplexity(found.reference_losses), perplexity(found.losses), found.kl, found.top1)
