"""Which markers a model's replies have: chosen from its vocabulary and its template. Reads no reply.

Invariant: a marker that is a control token is recognised by its id alone; one that is text counts only where the
template has it. So nothing that a person types decides how a reply is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...errors import TemplateError
from ..chat_template import ChatTemplate
from ..tokenizer import Tokenizer
from .parts import Kind

WHOLE = "{"
"""What a reply begins with that is a call as a whole, without any marker."""
NAMED = "<|assistant|>"
"""The control token behind which a message is a call if its first line is the name of a tool. The first message of a
reply has it in the prompt."""


@dataclass(frozen=True)
class Block:
    """A part of a reply between two markers.

    ends: any of them; without one a call goes on to the next, or to the end of the reply. notation: of a call, by its
    name in `calls`; "" where a header has the tool's name, and the arguments follow. label: what the text inside begins
    with and is no part of it. mentions: what the template must have besides. bare: recognised only where tools were
    offered, since its beginning is ordinary text, and a part of the call; `NAMED` is none, but what follows it may be.
    """

    kind: Kind
    begin: str
    ends: tuple[str, ...] = ()
    notation: str = ""
    label: str = ""
    mentions: str = ""
    bare: bool = False


BLOCKS = (
    # Qwen3, SmolLM3, DeepSeek and its distillates, OLMo 3, Phi-4, Granite, EXAONE 4, ERNIE 4.5, Hunyuan, Mellum 2,
    # LFM2.5
    Block("thought", "<think>", ("</think>",)),
    Block("thought", "[THINK]", ("[/THINK]",)),  # Magistral, Ministral 3
    Block("thought", "<|channel>", ("<channel|>",), label="thought\n"),  # Gemma 4
    Block("thought", "<seed:think>", ("</seed:think>",)),  # Seed-OSS
    Block("thought", "<|START_THINKING|>", ("<|END_THINKING|>",)),  # Command R7B, Command A
    Block("tool_call", "<tool_call>", ("</tool_call>",), "xml", mentions="<function="),  # Qwen3-Coder, Qwen3.5
    Block("tool_call", "<tool_call>", ("</tool_call>",), "arg_keys", mentions="<arg_key>"),  # GLM-4.5, Laguna
    Block("tool_call", "<tool_call>", ("</tool_call>",), "fenced", mentions="<tool_responses>"),  # Hunyuan
    # Hermes, Qwen2.5 and 3, SmolLM3, Granite, EXAONE 4, ERNIE 4.5, Mellum 2
    Block("tool_call", "<tool_call>", ("</tool_call>",), "json"),
    Block("tool_call", "<seed:tool_call>", ("</seed:tool_call>",), "xml"),  # Seed-OSS
    Block("tool_call", "<|START_ACTION|>", ("<|END_ACTION|>",), "cohere"),  # Command R7B, Command A
    Block("tool_call", "<|tool_call>", ("<tool_call|>",), "gemma"),  # Gemma 4
    Block("tool_call", "<|tool_call|>", ("<|/tool_call|>",), "json"),  # Phi-4-mini; Granite has no end
    Block("tool_call", "<|tool_call_start|>", ("<|tool_call_end|>",), "python"),  # LFM2
    Block("tool_call", "<function_calls>", ("</function_calls>",), "python"),  # OLMo 3
    Block("tool_call", "[TOOL_CALLS]", (), "mistral"),
    Block("tool_call", "<｜tool▁call▁begin｜>", ("<｜tool▁call▁end｜>",), "deepseek"),
    Block("tool_call", "<|python_tag|>", (), "json"),  # Llama 3.x
    Block("tool_call", "<function=", ("</tool_call>",), "xml", bare=True),  # Qwen3-Coder leaves the first marker out
    Block("tool_call", WHOLE, (), "json", mentions="ipython", bare=True),  # Llama 3.x has none
    Block("tool_call", NAMED, (), "named", mentions="metadata", bare=True),  # GLM-4-0414
)
"""Of several with the same beginning, the first that the template has counts."""


@dataclass(frozen=True)
class Dialect:
    """Replies that are messages, each behind a header, instead of text with marked parts.

    needs: control tokens that only its models have. marks: those that begin and end headers and messages. front: what
    each message but the first begins with, whose own is in the prompt. thought, call, speech: what follows there for
    one of this kind; that of a call is followed by the tool's name.
    """

    needs: frozenset[str]
    marks: frozenset[str]
    thought: Block
    call: Block
    speech: str
    front: str = "<|start|>assistant"


HARMONY = Dialect(  # gpt-oss
    frozenset({"<|start|>", "<|channel|>", "<|message|>"}),
    frozenset({"<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"}),
    Block("thought", "<|channel|>analysis<|message|>", ("<|end|>",)),
    Block("tool_call", "<|channel|>commentary to=functions.", ("<|call|>",)),
    "<|channel|>final<|message|>",
)
RECIPIENTS = Dialect(  # Muse Glimmer: whom a message is to says what it is
    frozenset({"<|start|>", "<|message|>", "<|eom|>", "<|eot|>"}),
    frozenset({"<|start|>", "<|message|>", "<|eom|>", "<|eot|>"}),
    Block("thought", " to=self<|message|>", ("<|eom|>",)),
    Block("tool_call", " to=", ("<|eom|>", "<|eot|>"), "invoked"),
    " to=user<|message|>",
)
DIALECTS = (HARMONY, RECIPIENTS)
GENERIC = Block("tool_call", "<tool_call>", ("</tool_call>",), "json")
"""Calls of a model whose template has no tools, and which was told in its prompt to write them so."""
ENVELOPES = {
    "<response>": "</response>",  # Granite, ERNIE 4.5
    "<answer>": "</answer>",  # Hunyuan
    "<|START_RESPONSE|>": "<|END_RESPONSE|>",  # Command R7B, Command A
    "<|START_TEXT|>": "<|END_TEXT|>",  # Command A Vision
}
"""Markers around all that is said, each with the one that ends it."""
NOISE = frozenset(
    {
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<tool_calls>",
        "</tool_calls>",
        *ENVELOPES,
        *ENVELOPES.values(),
    }
)
"""Markers that add nothing to those inside them."""


@dataclass(frozen=True)
class ReplyFormat:
    """How the replies of one model are read. Without blocks and a dialect a reply is all speech.

    controls: literals of control tokens by id. header: the control token that the beginning of a reply begins with in
    the prompt; opening: that beginning as text, where it begins with none.
    """

    blocks: tuple[Block, ...] = ()
    noise: frozenset[str] = frozenset()
    dialect: Dialect | None = None
    controls: Mapping[int, str] = field(default_factory=dict[int, str])
    header: int | None = None
    opening: str = ""

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: ChatTemplate | None) -> ReplyFormat:
        """The format of the models that have this vocabulary and this template."""
        known = tokenizer.controls
        source = (tokenizer.chat_template or "") + (tokenizer.tool_template or "")
        dialect = next((each for each in DIALECTS if known.keys() >= each.needs), None)
        blocks: dict[str, Block] = {}
        for block in BLOCKS:
            if _applies(block, known, source):
                blocks.setdefault(block.begin, block)
        noise = frozenset(literal for literal in NOISE if literal in known or literal in source)
        if template is None or not (blocks or dialect):
            return cls()
        header, opening = _opening(tokenizer, template)
        controls = {token: literal for literal, token in known.items()}
        return cls(() if dialect else tuple(blocks.values()), noise, dialect, controls, header, opening)

    @property
    def calls(self) -> Block | None:
        """The block of tool calls that a model is meant to write, None where it has none."""
        if self.dialect is not None:
            return self.dialect.call
        found = [block for block in self.blocks if block.kind == "tool_call"]
        return next((block for block in found if not block.bare), found[0] if found else None)

    @property
    def thought(self) -> Block | None:
        """The block of thoughts, None where it has none."""
        if self.dialect is not None:
            return self.dialect.thought
        return next((block for block in self.blocks if block.kind == "thought"), None)

    def with_generic_calls(self) -> ReplyFormat:
        """The same for a model that was told to write `GENERIC` calls, which take the place of its own."""
        thoughts = tuple(block for block in self.blocks if block.kind != "tool_call")
        return replace(self, blocks=(*thoughts, GENERIC), dialect=None)


def _applies(block: Block, known: Mapping[str, int], source: str) -> bool:
    if block.begin == WHOLE:  # Llama's tokens, and a template that speaks of them
        return "<|python_tag|>" in known and block.mentions in source
    if block.begin == NAMED:
        return NAMED in known and block.mentions in source
    # a template that only takes thoughts out of what was said, as LFM2.5's, has no more than their end
    marks = (block.begin, *block.ends) if block.kind == "thought" else (block.begin,)
    return (block.begin in known or any(mark in source for mark in marks)) and block.mentions in source


def _opening(tokenizer: Tokenizer, template: ChatTemplate) -> tuple[int | None, str]:
    """What the template puts behind the last message for the reply to begin with: its first control token, or text."""
    question = [{"role": "user", "content": "?"}]
    try:
        without, opened = (template.render(question, add_generation_prompt=add) for add in (False, True))
    except TemplateError:
        return None, ""
    if not opened.startswith(without):
        return None, ""
    opening = opened.removeprefix(without)
    ids = tokenizer.encode(opening, bos=False, specials=True)
    header = ids[0] if ids and ids[0] in tokenizer.controls.values() else None
    return header, "" if header is not None else opening
