"""One piece of Markdown as HTML: CommonMark with tables, strike-through, task lists, bare links and formulas.

Raw HTML is text, but for BARE, elements without attributes that models write in tables. Images become links: nothing
is loaded. Formulas stand in $, $$, \\( \\), \\[ \\] and amsmath's environments, and never cross a blank line. Not
here: where pieces begin and end (`blocks`). Invariant: the work for a text is bounded by its length times a constant.
A line of text that would need more (BUDGET), and a piece that nests deeper than DEEPEST, are shown as they were
written.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.gfm_autolink import gfm_autolink_plugin
from mdit_py_plugins.tasklists import tasklists_plugin

from partita.printable import visible

from .code import figure
from .formulas import mathml
from .sanitize import Sanitizer

BUDGET = 400_000  # characters of a paragraph times those that open or close something in it
DEEPEST = 20  # quotes and lists in one another
MOST_DEFINITIONS = 200  # lines of a piece that may define links
MOST_LINES = 200  # of a formula
BARE = frozenset({"br", "sub", "sup", "kbd"})
_BARE = re.compile(r"<(/?)(br|sub|sup|kbd) ?/?>", re.IGNORECASE)
_SAFE_LINK = re.compile(r"(?:https?://|mailto:)[^\s]", re.IGNORECASE)
_MARKS = re.compile(r"[\[\]!*_`$<>\\~&:@]")
_DEFINITION = re.compile(r"^[ \t>]*\[", re.MULTILINE)
_ENVIRONMENT = re.compile(r"\\begin\{((?:equation|multline|gather|align|alignat|flalign|eqnarray|[pbBvV]?matrix)\*?)\}")

Definitions = MutableMapping[str, Any]
"""Label (as markdown-it normalises it) -> where a link goes that names it."""


class Pieces:
    """One for many texts, from several threads: it keeps nothing of them."""

    def __init__(self) -> None:
        self._markdown = _parser()
        self._sanitizer = Sanitizer()

    def piece(self, text: str, definitions: Definitions) -> str:
        """Blocks that stand together. definitions: those of the text so far; what the piece defines is added."""
        text = visible(text)
        tokens = self._tokens(text, {"references": definitions})
        html = _plain(text) if tokens is None else self._markdown.renderer.render(tokens, self._markdown.options, {})
        return self._sanitizer.clean(html)

    def begins_at(self, text: str, line: int) -> bool:
        """Whether a block that is in no other one begins at this line of text."""
        tokens: list[Token] = []
        self._markdown.block.parse(text, self._markdown, {}, tokens)
        return any(token.level == 0 and token.map is not None and token.map[0] == line for token in tokens)

    def label(self, text: str) -> str:
        from markdown_it.common.utils import normalizeReference

        return normalizeReference(text)

    def _tokens(self, text: str, env: dict[str, Any]) -> list[Token] | None:
        """None: the piece is shown as it was written."""
        if len(_DEFINITION.findall(text)) > MOST_DEFINITIONS:
            return None
        tokens = self._markdown.parse(text, env)
        return None if any(token.level >= DEEPEST for token in tokens) else tokens


def _plain(text: str) -> str:
    return f'<pre class="plain">{escape(text)}</pre>\n'


def _parser() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "maxNesting": DEEPEST + 2}).enable(["table", "strikethrough"])
    markdown.validateLink = lambda url: _SAFE_LINK.match(url) is not None  # type: ignore[method-assign]
    gfm_autolink_plugin(markdown)
    dollarmath_plugin(
        markdown,
        allow_labels=False,
        allow_space=False,
        allow_digits=False,
        allow_blank_lines=False,
        double_inline=True,
        renderer=lambda source, options: mathml(source, display=options["display_mode"]),
    )
    tasklists_plugin(markdown)
    markdown.inline.ruler.before("escape", "brackets", _inline_brackets)
    markdown.inline.ruler.before("html_inline", "bare", _bare)
    markdown.block.ruler.before("fence", "brackets", _block_brackets)
    markdown.block.ruler.before("blockquote", "environment", _environment, {"alt": ["paragraph", "blockquote", "list"]})
    markdown.core.ruler.at("inline", _inline)
    markdown.core.ruler.push("dress", _dress)
    for name in ("fence", "code_block", "image", "html_inline", "math_display", "math_inline_double", "math_block"):
        markdown.add_render_rule(name, globals()[f"_show_{name}"])
    return markdown


# Rules: what the text holds


def _inline(state: StateCore) -> None:
    """markdown-it's own rule, but for texts that would cost too much."""
    for token in state.tokens:
        if token.type != "inline":
            continue
        token.children = []
        if len(token.content) * len(_MARKS.findall(token.content)) > BUDGET:
            token.children.append(Token("text", "", 0, content=token.content))
        else:
            state.md.inline.parse(token.content, state.md, state.env, token.children)


def _inline_brackets(state: StateInline, silent: bool) -> bool:
    opening = state.src[state.pos : state.pos + 2]
    closing = {r"\(": r"\)", r"\[": r"\]"}.get(opening)
    if closing is None:
        return False
    end = state.src.find(closing, state.pos + 2, state.posMax)
    if end < 0 or not state.src[state.pos + 2 : end].strip():
        return False
    if not silent:
        token = state.push("math_inline" if closing == r"\)" else "math_display", "math", 0)
        token.content = state.src[state.pos + 2 : end]
    state.pos = end + 2
    return True


def _bare(state: StateInline, silent: bool) -> bool:
    found = _BARE.match(state.src, state.pos) if state.src[state.pos] == "<" else None
    if found is None:
        return False
    if not silent:
        state.push("html_inline", "", 0).content = f"<{found[1]}{found[2].lower()}>"
    state.pos = found.end()
    return True


def _block_brackets(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    return _display(state, start, end, silent, r"\[", r"\]")


def _environment(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    found = _ENVIRONMENT.match(_line(state, start))
    return found is not None and _display(state, start, end, silent, "", rf"\end{{{found[1]}}}")


def _display(state: StateBlock, start: int, end: int, silent: bool, opening: str, closing: str) -> bool:
    """Lines from one that begins with `opening` to the first that ends in `closing`, no blank one among them."""
    if state.sCount[start] - state.blkIndent >= 4 or not _line(state, start).startswith(opening):
        return False
    for line in range(start, min(end, start + MOST_LINES)):
        text = _line(state, line)
        if not text or (line > start and state.sCount[line] < state.blkIndent):
            return False
        if text.endswith(closing) and (line > start or len(text) > len(opening) + len(closing)):
            break
    else:
        return False
    if not silent:
        content = state.getLines(start, line + 1, state.blkIndent, False).strip()
        token = state.push("math_block", "math", 0)
        token.block, token.map = True, [start, line + 1]
        token.content = content[len(opening) : len(content) - len(closing)] if opening else content
    state.line = line + 1
    return True


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].strip()


def _dress(state: StateCore) -> None:
    """Classes in place of styles; images within links are their descriptions."""
    for token in state.tokens:
        style = token.attrs.pop("style", None)
        if style is not None:
            token.attrs["class"] = str(style).rpartition(":")[2]
        depth = 0
        for child in token.children or ():
            depth += child.nesting if child.type.startswith("link_") else 0
            if child.type == "image" and depth:
                child.meta["linked"] = True


# What the page gets

Tokens = Sequence[Token]


def _show_fence(self: Any, tokens: Tokens, at: int, options: Any, env: Any) -> str:
    return figure(tokens[at].content, tokens[at].info)


def _show_code_block(self: Any, tokens: Tokens, at: int, options: Any, env: Any) -> str:
    return figure(tokens[at].content)


def _show_image(self: Any, tokens: Tokens, at: int, options: Any, env: Any) -> str:
    token = tokens[at]
    source = str(token.attrs.get("src", ""))
    text = escape(self.renderInlineAsText(token.children or [], options, env) or source)
    if token.meta.get("linked"):
        return text
    return f'<a class="image" href="{escape(source)}">{text}</a>'


def _show_html_inline(self: Any, tokens: Tokens, at: int, options: Any, env: Any) -> str:
    """An element of BARE, or the check box of a task."""
    content = tokens[at].content
    if not content.startswith("<input"):
        return content
    done = "checked=" in content
    return f'<span class="task" role="img" aria-label="{"done" if done else "to do"}">{"☑" if done else "☐"}</span>'


def _show_math_display(self: Any, tokens: Tokens, at: int, options: Any, env: Any) -> str:
    return f'<span class="math display">{mathml(tokens[at].content, display=True)}</span>'


_show_math_inline_double = _show_math_display


def _show_math_block(self: Any, tokens: Tokens, at: int, options: Any, env: Any) -> str:
    return f'<div class="math">{mathml(tokens[at].content, display=True)}</div>\n'
