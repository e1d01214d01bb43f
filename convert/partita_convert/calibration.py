"""Texts to measure on when a person gives none: a short one that is kept here, and one that the model writes itself.

Invariant: the same model gives the same tokens.

The short text shows which columns of a weight matter; almost any text does (measured: German prose and even random ids
came within 2 % of speeches in perplexity, nothing at all lost 13 %). How much each part of a model matters is asked on
text that the model itself finds likely, in whatever languages it knows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from partita.backend import Backend
from partita.cache.kv_format import KVFormat
from partita.cache.spec import plan
from partita.cache.state import Cache
from partita.model.decoder import Decoder
from partita.text.tokenizer import Tokenizer

ROWS, LENGTH = 8, 64
_SEED = 7

SAMPLE = """\
The harbour was still dark when Maria carried the first crates down to the boat. Wind from the north-west, force four,
rain by noon: she had read the forecast twice. "You could stay at home," said her brother. "And you could help me with
these," she answered.

How a tide table is read: find the day, then the port, and add the correction in minutes. For example, with high water
at 06:42 and a correction of +0:25, expect it at 07:07. In 2019 the highest tide of the year came on 21 March, 4.8 m
above datum, which was 12 % more than the mean.

def mean(values: list[float]) -> float:
    \"\"\"The arithmetic mean; an empty list has none.\"\"\"
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

Q: Why does bread rise?
A: Yeast eats sugar and gives off carbon dioxide; the dough holds the bubbles, because its gluten stretches.

- Boil two litres of water with a spoonful of salt.
- Add 500 g of pasta and stir once.
- After nine minutes, taste it; then drain.

Am Abend saßen alle am Tisch und redeten über das Wetter. Le lendemain, le marché ouvrait à huit heures. A las seis de
la tarde la plaza se llenó de gente. 明天早上我们坐火车去北京。

If x + 3 = 10, then x = 7; and since 7 is prime, it has no divisors but 1 and itself. The parliament, elected for four
years, votes on the budget before the end of December; without a majority the old one goes on, month by month.
"""


def written_tokens(
    ops: Backend, decoder: Decoder, tokenizer: Tokenizer, on_progress: Callable[[int, int], None] | None = None
) -> list[int]:
    """What the model writes by itself, drawn at temperature 1 with a fixed seed: ROWS texts, one after another."""
    random = np.random.default_rng(_SEED)
    first = tokenizer.bos_id if tokenizer.bos_id is not None else min(tokenizer.stop_ids, default=0)
    dense = KVFormat.parse("auto", dense_bits=32 if ops.decode_dtype == "float32" else 16)
    context = min(2 * LENGTH, decoder.config.max_positions)
    cache = Cache(ops, plan(decoder.config, dense, context=context), ROWS)
    ids = np.full((ROWS, 1), first, np.int32)
    written = [ids]
    length = min(LENGTH, context)
    for i in range(1, length):
        logits = ops.to_numpy(decoder(ops, ops.array(ids), cache)).astype(np.float64)
        ids = (logits + random.gumbel(size=logits.shape)).argmax(-1).astype(np.int32)[:, None]
        written.append(ids)
        if on_progress is not None:
            on_progress(i, length - 1)
    return np.concatenate(written, 1).reshape(-1).tolist()
