"""What a vocabulary is to a tokenizer: a segmentation engine, the facts beside it, and limits of both.

Not here: reading them from files (`from_folder`, `from_gguf`), and the libraries that segment (`engines`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

MAX_TOKENS = 1 << 19
"""Tokens of a vocabulary, and ids, at most: the largest published ones have 300,000."""
MAX_MERGES = 750_000
"""Of byte-pair vocabularies: the largest published ones have 515,000."""
MAX_TOKEN = 1024
"""Characters of one token, at most: the longest published ones have some 500."""

# Tokens that end a turn in the models people run. They stop generation where the vocabulary has them as control tokens.
END_TOKENS = frozenset(
    {
        "</s>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|eot|>",
        "<|eom|>",
        "<end_of_turn>",
        "<turn|>",
        "<eos>",
        "<EOT>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|end_of_turn|>",
        "<|END_OF_TURN_TOKEN|>",
        "<｜end▁of▁sentence｜>",
        "<|role_end|>",
        "<|endofturn|>",
        "<|observation|>",  # GLM's, behind a call
    }
)


class Engine(Protocol):
    """A vocabulary and its segmentation rule; one implementation for each library."""

    size: int  # one more than the largest token id
    controls: Mapping[str, int]  # control tokens' literals, which are never read from a user's text
    hidden: frozenset[int]  # ids that `decode` leaves out unless asked: controls and the unknown token
    space_prefix: bool  # the first piece of a text carries a space that is not part of the text

    @property
    def pattern(self) -> re.Pattern[str]: ...  # one group that matches any literal of `controls`

    def encode(self, text: str, *, parse: bool, first: bool) -> list[int]:
        """Ids of `text`; `parse`: literals of control tokens are those tokens; `first`: a new text begins here."""
        ...

    def token_text(self, token: int) -> str: ...

    def token_bytes(self, token: int) -> bytes: ...


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says beside the vocabulary itself."""

    bos_id: int | None = None
    eos_id: int | None = None
    stop_ids: frozenset[int] = frozenset()  # every end token that the source names
    adds_bos: bool = False
    chat_template: str | None = None
    tool_template: str | None = None  # for conversations with tools, where that is another one
    special_tokens: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """Literals by what templates call them (`bos_token`); None for one that the source says is not there."""
