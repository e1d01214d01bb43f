"""Replies by script: the sampler says what it is told to, and all else is real. Also the command with such replies:

`python scripted.py REPLIES chat …`, REPLIES a JSON file of lists of ids, one for each reply.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from partita.inference.sampling import Sampler
from partita.text.tokenizer import Tokenizer


def script(tokenizer: Tokenizer, *replies: str, ends: bool = True) -> list[list[int]]:
    """Ids of replies, in which control tokens' literals are control tokens. ends: the model ends them itself."""
    stop = [tokenizer.eos_id] * ends
    return [[*tokenizer.encode(text, bos=False, specials=True), *stop] for text in replies]


def sampler(replies: Sequence[Sequence[int]]) -> Callable[..., Sampler]:
    """What stands in for `Sampler`: each new one says the next reply, and behind its end the last token for ever."""
    left: Iterator[Sequence[int]] = iter(replies)

    class Scripted(Sampler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._script = list(next(left))
            self._said = 0

        def __call__(self, logits: Any) -> Any:
            token = self._script[min(self._said, len(self._script) - 1)]
            self._said += 1
            return self._ops.array(np.array([token], np.int32))

    return Scripted


def main() -> None:
    import partita.language_model
    from partita_apps.cli import main

    partita.language_model.Sampler = sampler(json.loads(Path(sys.argv.pop(1)).read_text()))
    main()


if __name__ == "__main__":
    main()
