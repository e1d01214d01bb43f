"""What a reply must look like, as a constraint for the engine: `response_format`, and how tools may be called.

Not here: notations (`call_grammars`), and what holds a reply to it (`partita.engine.constraint`). Invariants: what
cannot be enforced is refused where it was asked for (a format, strict tools that must be called), and said in a warning
where it is only help (calls at the model's choice); a constraint that is given compiles.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from partita.engine.grammars import check
from partita.engine.request import Constraint
from partita.errors import DataError
from partita.text.reply.formats import ReplyFormat
from partita.text.reply.parser import ReplyParser

from .asked import Ask, Format, Refused, Tool
from .call_grammars import Offer, schema_of, written
from .lark import ANYTHING, Writer
from .model_text import ModelText
from .schemas import prepared
from .tools import form_of, offered

Json = dict[str, Any]
_LINES = r"(/\n{1,2}/)?"  # between a thought and what follows it
_ANY_OBJECT = {"type": "object"}
_TAIL = 64  # tokens of a prompt in which a thought that it holds ends


def constraint_for(ask: Ask, text: ModelText, prompt: Sequence[int] = ()) -> Constraint | None:
    """What the reply to a prompt must be, None where it is free. Takes milliseconds, with large schemas more.

    Raises Refused for what was asked for and cannot be enforced.
    """
    tools, form = offered(ask), form_of(ask, text)
    if ask.messages is None:
        form, tools = ReplyFormat(), ()
    if ask.tool_choice.mode == "required":
        tools = [tool for tool in tools if ask.tool_choice.name in (None, tool.name)]
        if not tools:
            raise Refused("`tool_choice` asks for a call of a tool that is not there", field="tool_choice")
    if not tools and ask.format is None:
        return None
    found = _Reply(ask, text, form, tools).constraint()
    thought, thinking = _thought(text, form, prompt)
    between = Writer(text.tokenizer).literal(form.dialect.front) if form.dialect else _LINES
    return msgspec.structs.replace(found, thought=thought, thinking=thinking, between=between if thought else "")


def _thought(text: ModelText, form: ReplyFormat, prompt: Sequence[int]) -> tuple[tuple[str, str] | None, bool]:
    """The markers of a thought that may stand in front, and whether the prompt has begun it."""
    block = form.thought
    if block is None:
        return None, False
    markers = block.begin, block.ends[0]
    if ReplyParser(form, text.tokenizer, prompt).thinking:
        return markers, True
    before = text.tokenizer.decode(prompt[-_TAIL:], specials=True).rstrip()
    return None if before.endswith(markers[1]) and not form.dialect else markers, False


@dataclass(frozen=True)
class _Reply:
    """What is asked of one reply."""

    ask: Ask
    text: ModelText
    form: ReplyFormat
    tools: Sequence[Tool]

    def constraint(self) -> Constraint:
        """The constraint, without what the prompt says of thoughts."""
        spoken = None if self.ask.format is None else self._spoken(self.ask.format)
        if not self.tools:
            assert spoken is not None  # or nothing was asked for
            return spoken
        try:
            return _checked(self._calls([(tool, schema_of(tool)) for tool in self.tools]))
        except DataError as error:
            return self._loosened(str(error))

    def _loosened(self, why: str) -> Constraint:
        """With any object as the arguments of tools whose schemas cannot be enforced. why: all of them cannot."""
        schemas, lines = list[tuple[Tool, Json]](), list[str]()
        for tool in self.tools:
            try:
                schema = schema_of(tool)
                _checked(self._calls([(tool, schema)]))
            except DataError as error:
                schema = _ANY_OBJECT
                lines.append(f"the arguments of {tool.name} are not enforced: {error}")
                if tool.strict and self._must_call:
                    raise Refused(f"`tools`: {lines[-1]}", field="tools") from error
            schemas.append((tool, schema))
        if not lines:  # each by itself, but not together
            schemas = [(tool, _ANY_OBJECT) for tool in self.tools]
            lines.append(f"the arguments of tools are not enforced: {why}")
        found = msgspec.structs.replace(self._calls(schemas), warning="; ".join(lines))
        try:
            return _checked(found)
        except DataError as error:
            if self._must_call or self.ask.format is not None:
                raise Refused(f"`tools`: {error}", field="tools") from error
            # the engine finds the same, and lets the reply be free
            return found if found.triggers else msgspec.structs.replace(found, grammar=f"start: {ANYTHING}")

    @property
    def _must_call(self) -> bool:
        return self.ask.tool_choice.mode == "required"

    def _calls(self, schemas: Sequence[tuple[Tool, Json]]) -> Constraint:
        """The reply's calls, or perhaps its calls, of tools with these arguments."""
        writer, ask = Writer(self.text.tokenizer), self.ask
        offers = [Offer(tool.name, schema) for tool, schema in schemas]
        calls = written(self.text.tokenizer, writer, self.form, offers, many=ask.parallel_tool_calls)
        if ask.format is None and not self._must_call:
            triggers = (calls.trigger,) if calls.trigger else ()
            return Constraint("lark", writer.grammar(calls.behind), triggers, calls.first, once=calls.once)
        whole = calls.whole
        if not self._must_call and ask.format is not None:
            whole = f"{writer.rule(whole)} | {self._said(writer, _schema(ask.format))}"
        return Constraint("lark", writer.grammar(whole))

    def _spoken(self, form: Format) -> Constraint:
        """Speech alone. Raises Refused."""
        try:
            schema = _schema(form)
            if not self.form.dialect:
                return _checked(Constraint("json_schema", json.dumps(schema)))
            writer = Writer(self.text.tokenizer)
            return _checked(Constraint("lark", writer.grammar(self._said(writer, schema))))
        except DataError as error:
            raise Refused(f"`response_format`: {error}", field="response_format") from error

    def _said(self, writer: Writer, schema: Json) -> str:
        """Speech that is JSON of a schema."""
        front = f"{writer.literal(self.form.dialect.speech)} " if self.form.dialect else ""
        return f"{front}{writer.json(schema)}"


def _schema(form: Format) -> Json:
    return _ANY_OBJECT if form.kind == "json_object" else prepared(form.schema)


def _checked(constraint: Constraint) -> Constraint:
    check(constraint)
    return constraint
