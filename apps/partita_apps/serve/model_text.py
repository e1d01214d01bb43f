"""The text side of a loaded model: messages to ids, and how ids are read. Knows no HTTP, no process and no array.

Everything here comes from a checkpoint's files; weights are not read. Invariant: what is given here may be used from
any thread, and a conversation's ids do not depend on which others were encoded before it, but for replies: those stay
as they were generated, as long as a conversation goes on with their text.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from partita.checkpoint.open import open_checkpoint
from partita.errors import TemplateError
from partita.inference.sampling import Sampling, recommended
from partita.text.chat_template import ChatTemplate, chat_parts
from partita.text.load import load_tokenizer
from partita.text.reply.formats import ReplyFormat
from partita.text.tokenizer import Tokenizer
from partita.text.transcript import Transcript

from ..conversation.settings import usual_sampling
from .asked import Message

MAX_TRANSCRIPTS = 32
MAX_CHARACTERS = 16 << 20  # of all transcripts of a model
_MARK = "9aae68a9"  # what a probe of the template looks for


@dataclass(frozen=True)
class Prompt:
    """ids: of a conversation, with the beginning of a reply; with one BOS where the model was trained with one."""

    ids: list[int]
    transcript: Transcript | None = field(default=None, repr=False)


class ModelText:
    """name: in the registry. context: tokens that the loaded model's cache has room for. usual: how a conversation with
    it samples. rows: of its embedding, so that larger ids are none. endless: whether its cache goes on when it is full,
    forgetting what is oldest, where a conversation with another model is refused.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        context: int,
        usual: Sampling,
        rows: int | None = None,
        endless: bool = False,
    ) -> None:
        self.name, self.tokenizer, self.template = name, tokenizer, template
        self.context, self.usual, self.endless = context, usual, endless
        self.rows = tokenizer.vocab_size if rows is None else rows
        self._transcripts = Transcripts(tokenizer, template)

    @classmethod
    def open(cls, name: str, path: Path, *, context: int, endless: bool = False) -> ModelText:
        """From the files of a checkpoint, a folder or a `.gguf` file. Takes a moment: for a thread.

        Raises CheckpointError and UnsupportedModel for files that cannot be read, TemplateError for a template that
        does not compile. A base model has none, and only completes text.
        """
        checkpoint = open_checkpoint(path)
        tokenizer = load_tokenizer(checkpoint)
        template = None if tokenizer.chat_template is None else ChatTemplate.of(tokenizer)
        usual, _ = usual_sampling(recommended(checkpoint.generation_config))
        rows = checkpoint.embedding_rows()
        text = cls(name, tokenizer, template, context=context, usual=usual, rows=rows, endless=endless)
        text.ask_template()
        return text

    def ask_template(self) -> None:
        """Have the template answer now, and not at the first request, what is asked of it once."""
        for name in ("reply_format", "system_first", "system_later"):
            getattr(self, name)

    @cached_property
    def reply_format(self) -> ReplyFormat:
        """How thoughts and tool calls are marked in replies."""
        return ReplyFormat.of(self.tokenizer, self.template)

    @cached_property
    def system_first(self) -> bool:
        """Whether the template writes a system message that stands in front of all others."""
        return self._renders([_said("system", _MARK), _said("user", "?")])

    @cached_property
    def system_later(self) -> bool:
        """Whether it writes one that stands between turns."""
        return self._renders([_said("user", "?"), _said("assistant", "!"), _said("system", _MARK), _said("user", "?")])

    def _renders(self, messages: Sequence[Message]) -> bool:
        try:
            return self.template is not None and _MARK in self.template.render(messages)
        except TemplateError:
            return False

    async def encode(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> Prompt:
        """A conversation through the chat template, which is given the variables besides.

        Raises TemplateError where the template does not take it, or there is none.
        """
        return await asyncio.to_thread(self._transcripts.encode, messages, variables)

    async def complete(self, text: str) -> Prompt:
        """Text as it stands; control tokens' literals are those tokens."""
        return Prompt(await asyncio.to_thread(self.tokenizer.encode, text, specials=True))

    def add_reply(self, prompt: Prompt, ids: Sequence[int]) -> None:
        """What was generated behind a prompt, without the token that ended it: a conversation may go on with it."""
        self._transcripts.add_reply(prompt, ids)


class Transcripts:
    """What is known of the conversations with one model, the least recently used forgotten first.

    No transcript that others may find is changed: one that grows is a copy, which takes the other's place.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._kept: list[Transcript] = []  # the least recently used first
        self._lock = threading.Lock()

    def encode(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> Prompt:
        parts = chat_parts(self._tokenizer, self._template, messages, **variables)
        assert self._template is not None  # or chat_parts had refused
        with self._lock:
            kept = list(self._kept)
        best = max(kept, key=lambda each: each.known(parts), default=None)
        shared = 0 if best is None else best.known(parts)
        found = Transcript(self._tokenizer, self._template) if best is None or not shared else best.copy()
        ids = found.encode_parts(parts)
        self._keep(found, best if best is not None and shared == best.length else None)
        return Prompt(ids, found)

    def add_reply(self, prompt: Prompt, ids: Sequence[int]) -> None:
        if prompt.transcript is None or not ids:
            return
        grown = prompt.transcript.copy()
        grown.add_reply(ids)
        self._keep(grown, prompt.transcript)

    def _keep(self, new: Transcript, instead: Transcript | None) -> None:
        with self._lock:
            kept = [each for each in self._kept if each is not instead]
            kept.append(new)
            size = sum(each.length for each in kept)
            while len(kept) > MAX_TRANSCRIPTS or (size > MAX_CHARACTERS and len(kept) > 1):
                size -= kept.pop(0).length
            self._kept = kept

    def __len__(self) -> int:
        return len(self._kept)


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}
