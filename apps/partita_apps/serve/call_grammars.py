"""Grammars of tool calls in a model's notation: what `partita.text.reply` reads, written as the model's template does.

Invariant: what a grammar here admits is read back as whole calls of offered tools, with arguments that their schemas
admit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from partita.errors import DataError
from partita.text.reply.formats import Block, Dialect, ReplyFormat
from partita.text.tokenizer import Tokenizer

from .asked import Tool
from .lark import ANYTHING, Writer, any_of, quoted
from .schemas import prepared, resolved
from .value_grammars import GEMMA, PYTHON, TextValues, Values, branches

Json = dict[str, Any]
_LINE = '"\\n"?'
_NO_ARGUMENTS: Json = {"type": "object", "additionalProperties": False}


@dataclass(frozen=True)
class Calls:
    """trigger: the literal behind which a call is certain, "" where there is none; first: another, where the reply
    begins with it. behind: the rest of the reply's part that it begins, as an expression; without a trigger, all of a
    reply that may be calls. once: nothing may follow that part. whole: a reply that is calls and nothing else."""

    trigger: str
    behind: str
    whole: str
    once: bool = False
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer:
    """A tool whose calls are written. schema: of its arguments, prepared."""

    name: str
    schema: Json


@dataclass(frozen=True)
class _Style:
    writer: Writer
    block: Block
    dialect: Dialect | None
    offers: Sequence[Offer]
    source: str  # of the chat template
    many: bool

    def literal(self, text: str) -> str:
        return self.writer.literal(text)

    def each(self, call: Callable[[Offer], str]) -> str:
        """One call of any of the tools."""
        return self.writer.rule(any_of([call(offer) for offer in self.offers]))

    def several(self, call: str, between: str) -> str:
        """One call, or as many as there may be."""
        return f"{call} ({between} {call})*" if self.many else call

    def marked(self, inside: str, between: str = '"\\n"') -> Calls:
        """Calls that each stand between the block's markers."""
        behind = f"{inside} {self.literal(self.block.ends[0])}"
        call = self.writer.rule(f"{self.literal(self.block.begin)} {behind}")
        return Calls(self.block.begin, behind, self.several(call, between), once=not self.many)

    def ended(self) -> bool:
        """Whether the model writes the block's end marker."""
        return any(self.writer.is_control(end) or end in self.source for end in self.block.ends)


def schema_of(tool: Tool) -> Json:
    """What a tool's arguments must be: none, where it describes none. Raises DataError for what is no schema."""
    found = prepared(dict(tool.parameters))
    if not found or (found.get("properties") == {} and "additionalProperties" not in found):
        return _NO_ARGUMENTS
    return found if found.keys() & {"type", "$ref", "anyOf", "oneOf", "allOf"} else {"type": "object", **found}


def written(
    tokenizer: Tokenizer, writer: Writer, form: ReplyFormat, offers: Sequence[Offer], *, many: bool = True
) -> Calls:
    """The calls of these tools in the notation of a model that has one.

    many: whether there may be several in one reply. Raises DataError for schemas that the notation cannot be held to.
    """
    source = (tokenizer.chat_template or "") + (tokenizer.tool_template or "")
    block = form.calls
    assert block is not None  # `tools.form_of` sees to it
    return _NOTATIONS[block.notation](_Style(writer, block, form.dialect, offers, source, many))


# ---------------------------------------------------------------- JSON


def _object(style: _Style, offer: Offer, key: str = "arguments", *, behind: str = "") -> str:
    """`{"name": …, "arguments": {…}}` from behind some of its beginning on."""
    front = f'{{"name": {json.dumps(offer.name)}, "{key}": '.removeprefix(behind)
    return f'{quoted(front)} {style.writer.json(offer.schema)} "}}"'


def _json(style: _Style) -> Calls:
    block = style.block
    if block.begin in ("<|python_tag|>", "{"):
        return _llama(style)
    if block.begin == "<|tool_call|>":
        calls = style.several(style.each(lambda offer: _object(style, offer)), '", "')
        if style.ended():
            return style.marked(f'"[" {calls} "]"', "")
        whole = f'{style.literal(block.begin)} "[" {calls} "]"'
        return Calls(block.begin, f'"[" {calls} "]"', whole, once=True)
    call = style.each(lambda offer: _object(style, offer))
    inline = re.search(rf'{re.escape(block.begin)}{{\\?"', style.source)
    return style.marked(call if inline else f'"\\n" {call} "\\n"')


def _llama(style: _Style) -> Calls:
    """An object whose arguments are "parameters"; the control token in front of it is left out as often as not."""
    begin, tag = '{"name": "', "<|python_tag|>"
    call = style.each(lambda offer: _object(style, offer, "parameters"))
    rest = style.each(lambda offer: _object(style, offer, "parameters", behind=begin))
    more = f'("; " {call})*' if style.many else ""
    whole = f"({style.literal(tag)})? {call} {more}"
    return Calls(f"{tag}{begin}", f"{rest} {more}", whole, once=not style.many, first=(begin,))


def _cohere(style: _Style) -> Calls:
    """A list of objects with numbers of their own."""
    front = quoted('{"tool_call_id": "')

    def call(offer: Offer) -> str:
        name = quoted(f'", "tool_name": {json.dumps(offer.name)}, "parameters": ')
        return f'"    "? {front} /[0-9]/ {name} {style.writer.json(offer.schema)} "}}"'

    calls = style.several(style.each(call), '",\\n"')
    return style.marked(f'"[\\n" {calls} "\\n]"', "")


def _mistral(style: _Style) -> Calls:
    """`name[ARGS]{…}`, or a list of objects before there was a token for it."""
    begin = style.block.begin
    if style.writer.is_control("[ARGS]"):
        call = style.each(lambda offer: f"{style.literal(f'{offer.name}[ARGS]')} {style.writer.json(offer.schema)}")
        behind = style.several(call, style.literal(begin))
        return Calls(begin, behind, f"{style.literal(begin)} {behind}", once=not style.many)
    calls = style.several(style.each(lambda offer: _object(style, offer)), '", "')
    return Calls(begin, f'" "? "[" {calls} "]"', f'{style.literal(begin)} " "? "[" {calls} "]"', once=True)


def _deepseek(style: _Style) -> Calls:
    """`name<sep>{…}`, or from the first versions a fenced block behind `function<sep>name`."""

    def call(offer: Offer) -> str:
        arguments = style.writer.json(offer.schema)
        if "```json" in style.source:
            front = style.literal(f"function<｜tool▁sep｜>{offer.name}\n```json\n")
            return f'{front} {arguments} "\\n```"'
        return f"{style.literal(f'{offer.name}<｜tool▁sep｜>')} {arguments}"

    calls = style.marked(style.each(call), _LINE)
    around = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
    if not all(map(style.writer.is_control, around)):
        return calls
    return Calls(
        calls.trigger,
        calls.behind,
        " ".join([style.literal(around[0]), calls.whole, style.literal(around[1])]),
        calls.once,
    )


def _fenced(style: _Style) -> Calls:
    """The name, and a fenced block behind it; markers around all calls."""

    def call(offer: Offer) -> str:
        front = _line(f"{offer.name}\n```json")
        return f'{front} {style.writer.json(offer.schema)} "\\n```"'

    calls = style.marked(style.each(call), _LINE)
    whole = f"{style.literal('<tool_calls>')} {calls.whole} {style.literal('</tool_calls>')}"
    return Calls(calls.trigger, calls.behind, whole, calls.once)


def _named(style: _Style) -> Calls:
    """A line with the name and the arguments in the next, each call in a message of its own.

    No marker says that a call begins, so that all that is said is in the grammar, too: whatever does not begin with a
    tool's name on a line and a brace.
    """
    call = style.each(lambda offer: f"{_line(offer.name)} {style.writer.json(offer.schema)}")
    whole = style.writer.rule(style.several(call, style.literal(style.block.begin)))
    names = "|".join(re.escape(offer.name).replace("/", r"\/") for offer in style.offers)
    speech = style.writer.terminal(f"{ANYTHING} & ~/\\s*({names})\\n\\s*\\{{(?s:.*)/")
    return Calls("", f"{speech} ({style.literal(style.block.begin)} {whole})? | {whole}", whole)


def _message(style: _Style) -> Calls:
    """A message to a function, which ends the turn."""
    begin = style.block.begin

    def call(offer: Offer) -> str:
        return f"{style.literal(f'{offer.name} <|constrain|>json<|message|>')} {style.writer.json(offer.schema)}"

    calls = style.each(call)
    return Calls(begin, calls, f"{style.literal(begin)} {calls}", once=True)


# ---------------------------------------------------------------- tags, whose values are text


def _pairs(style: _Style, offer: Offer, pair: Callable[[str, Any], str]) -> str:
    """All arguments in the order of the schema, those that are not required at the model's choice."""
    schema = offer.schema
    properties: Json = schema.get("properties") or {}
    needed = set(schema.get("required") or ())
    if needed - properties.keys() or schema.keys() & {"anyOf", "oneOf", "allOf", "$ref", "patternProperties"}:
        raise DataError("its arguments are not described one by one")
    if any(">" in name or "\n" in name or "<" in name for name in properties):
        raise DataError("the name of an argument holds a bracket")
    pairs = [(pair(name, each), name in needed) for name, each in properties.items()]
    return " ".join(found if required else f"({found})?" for found, required in pairs)


def _line(text: str) -> str:
    return quoted(f"{text}\n")


_LINES_END = r"(?s:.*)\n(<parameter=|<\/function>)(?s:.*)"
_INLINE_END = r"\n(?s:.*)|(?s:.*)(<parameter=|<\/parameter>|<\/function>)(?s:.*)"
_INVOKED_END = r"(?s:.*)<\/atem:parameter>(?s:.*)"
_SCALARS = frozenset({"string", "integer", "number", "boolean", "null"})


def _xml(style: _Style) -> Calls:
    """Values on lines of their own; where the template has them beside their tags, those that cannot hold a tag are."""
    inline = re.search(r"<parameter=[^>\n]*>[^\n<\\]+</parameter>", style.source) is not None

    def call(offer: Offer) -> str:
        lines = TextValues(style.writer, offer.schema, "\n</parameter>\n", _LINES_END)
        beside = TextValues(style.writer, offer.schema, "</parameter>\n", _INLINE_END)

        def pair(name: str, schema: Any) -> str:
            tag = f"<parameter={name}>"
            if inline and _is_scalar(schema, offer.schema):
                return f"{quoted(tag)} {beside.value(schema)}"
            return f"{_line(tag)} {lines.value(schema)}"

        return f"{_line(f'<function={offer.name}>')} {_pairs(style, offer, pair)} {quoted('</function>')}"

    return style.marked(f'"\\n" {style.each(call)} "\\n"')


def _is_scalar(schema: Any, root: Json) -> bool:
    """Whether a value is text or a word or a number, of which no constant holds what ends it."""
    found = branches(resolved(schema, root), root)
    constants = [each["const"] for each in found if "const" in each]
    if any(not isinstance(value, str | int | float | None) for value in constants):
        return False
    if any(isinstance(value, str) and ("<" in value or value.startswith("\n")) for value in constants):
        return False
    return all("const" in each or each["type"] in _SCALARS for each in found)


def _arg_keys(style: _Style) -> Calls:
    def call(offer: Offer) -> str:
        values = TextValues(style.writer, offer.schema, "</arg_value>")
        pairs = _pairs(
            style,
            offer,
            lambda name, each: (
                f"{quoted(f'<arg_key>{name}</arg_key>')} {_LINE} {quoted('<arg_value>')} {values.value(each)} {_LINE}"
            ),
        )
        return f"{quoted(offer.name)} {_LINE} {pairs}"

    return style.marked(style.each(call))


def _invoked(style: _Style) -> Calls:
    """A message to each function that is called, whose name stands in its header, and again where it is certain that
    the message calls one."""
    begin, end = "<atem:function_calls>", quoted("</atem:invoke>\n</atem:function_calls>")

    def call(offer: Offer) -> str:
        if any('"' in name for name in offer.schema.get("properties") or ()):
            raise DataError("the name of an argument holds a quotation mark")
        values = TextValues(style.writer, offer.schema, "</atem:parameter>\n", _INVOKED_END)

        def pair(name: str, schema: Any) -> str:
            tag = f'<atem:parameter name="{name}">'
            return f"{quoted(tag)} {values.value(schema)}"

        front = quoted(f'\n<atem:invoke name="{offer.name}">\n')
        return f"{front} {_pairs(style, offer, pair)} {end}"

    def message(offer: Offer) -> str:
        return f"{style.literal(f'{style.block.begin}{offer.name}<|message|>{begin}')} {call(offer)}"

    assert style.dialect is not None
    between = style.literal(f"{style.block.ends[0]}{style.dialect.front}")
    whole = style.several(style.each(message), between)
    return Calls(f"<|message|>{begin}", style.each(call), whole, once=not style.many)


# ---------------------------------------------------------------- Python's and Gemma's calls


def _python(style: _Style) -> Calls:
    def call(offer: Offer) -> str:
        values = Values(style.writer, PYTHON, offer.schema)
        return f'{quoted(f"{offer.name}(")} {values.properties(offer.schema, lambda key: f"{key}=")} ")"'

    one = style.each(call)
    if style.block.begin == "<function_calls>":
        lines = style.several(one, '"\\n"')
        return style.marked(f'"\\n" {lines} "\\n"')
    listed = style.several(one, '", "')
    return style.marked(f'"[" {listed} "]"', "")


def _gemma(style: _Style) -> Calls:
    def call(offer: Offer) -> str:
        values = Values(style.writer, GEMMA, offer.schema)
        return f'{quoted(f"call:{offer.name}{{")} {values.properties(offer.schema, GEMMA.key)} "}}"'

    return style.marked(style.each(call), "")


_NOTATIONS: dict[str, Callable[[_Style], Calls]] = {
    "": _message,
    "json": _json,
    "cohere": _cohere,
    "mistral": _mistral,
    "deepseek": _deepseek,
    "fenced": _fenced,
    "named": _named,
    "xml": _xml,
    "arg_keys": _arg_keys,
    "invoked": _invoked,
    "python": _python,
    "gemma": _gemma,
}
