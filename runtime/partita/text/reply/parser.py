"""A reply is speech, thoughts and tool calls: told apart while its tokens come. Text things only: no model, no backend.

Not here: which markers a model has (`formats`), and what is written inside a call (`calls`). Invariants:
the parts of a reply are the same however it is split, and nothing is given out that would have to be taken back; the
work is linear in the reply; nothing in a reply raises, and what cannot be understood stays visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tokenizer import Tokenizer
from .blocks import Blocks
from .called import ToolCall
from .formats import ReplyFormat
from .messages import Messages
from .parts import Kind, Part

__all__ = ["Kind", "Part", "ReplyFormat", "ReplyParser", "ToolCall"]


class ReplyParser:
    """Parts of one reply, out of its tokens (`push`) or its text (`push_text`).

    prompt: ids of what the reply answers; a template may have begun the reply there, with a thought for instance.
    tools: those that the model was offered, in OpenAI's form. calls: how many there were before in the conversation,
    so that ids of calls stay different. continues: as in `Tokenizer.stream`.
    """

    def __init__(
        self,
        form: ReplyFormat,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        *,
        tools: Sequence[Any] | None = None,
        calls: int = 0,
        continues: bool = False,
    ) -> None:
        self._controls, self._tokenizer = form.controls, tokenizer
        self._machine = Blocks(form, tools, calls) if form.dialect is None else Messages(form.dialect, tools, calls)
        self._stream = tokenizer.stream(continues=True)
        if form.header is not None:
            for token in _from_last(prompt, form.header):
                self.push(token)
        elif form.opening:
            self.push_text(form.opening)
        self._machine.begin()
        self._stream = tokenizer.stream(continues=continues)

    @property
    def thinking(self) -> bool:
        """Whether what comes next is part of a thought, as far as is certain."""
        return self._machine.thinking

    def push(self, token: int) -> list[Part]:
        """What became certain with a token, perhaps nothing."""
        literal = self._controls.get(token)
        if literal is None or not self._machine.takes(literal):
            return self.push_text(self._stream.push(token))
        self._machine.text(self._stream.finish())
        self._stream = self._tokenizer.stream(continues=True)
        self._machine.control(literal)
        return self._machine.given()

    def push_text(self, text: str) -> list[Part]:
        self._machine.text(text)
        return self._machine.given()

    def finish(self) -> list[Part]:
        """The rest, at the end of the reply. The parser can then not be used again."""
        self._machine.text(self._stream.finish())
        self._machine.end()
        return self._machine.given()


def _from_last(prompt: Sequence[int], header: int) -> Sequence[int]:
    """The end of a prompt, from the last of a token on; nothing where it has none."""
    place = next((i for i in range(len(prompt) - 1, -1, -1) if prompt[i] == header), len(prompt))
    return prompt[place:]
