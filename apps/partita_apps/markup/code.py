"""A block of code as HTML: a figure with the language's name and its text in colours, which `style` gives.

The language is what the author said; none is guessed. Colours are for the languages below, whose lexers read in
time that grows with the text, up to LONGEST characters and LONGEST_LINE a line; everything else is shown without.
Invariant: the text of the figure's `code` is the code, character by character.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from .style import coloured

LONGEST = 32_000  # characters
LONGEST_LINE = 2_000
_LABEL = 40  # characters of a language's name
_NAMES = """bash bat c cmake cpp csharp css dart diff docker elixir erlang fortran fsharp go graphql groovy haskell html
http ini java javascript json julia kotlin latex lua make matlab nasm nginx nix objective-c ocaml perl php powershell
protobuf python pycon r ruby rust scala scheme scss sql swift toml typescript vb.net vim xml yaml zig console"""
_ALSO = """sh bash, shell bash, zsh bash, shell-session console, terminal console, c++ cpp, cc cpp, h c, hpp cpp, cu
cpp, cuda cpp, metal cpp, c# csharp, cs csharp, f# fsharp, dockerfile docker, golang go, hs haskell, htm html, svg
xml, js javascript, jsx javascript, mjs javascript, node javascript, ts typescript, tsx typescript, jl julia, kt
kotlin, tex latex, makefile make, asm nasm, objc objective-c, objectivec objective-c, ps1 powershell, pwsh
powershell, proto protobuf, py python, python3 python, jsonc json, json5 json, rb ruby, rs rust, yml yaml, patch
diff, cfg ini, conf ini, postgresql sql, mysql sql, sqlite sql"""
LANGUAGES: dict[str, str] = {name: name for name in _NAMES.split()}
LANGUAGES |= dict(re.findall(r"([^\s,]+)\s+([^\s,]+)", _ALSO))
"""What people write -> the lexer's name."""


def figure(code: str, info: str = "") -> str:
    """info: what stands behind a fence's opening; its first word is the language."""
    name = next(iter(re.split(r"[\s{,:]", info.strip().lstrip("{."), maxsplit=1)), "")[:_LABEL]
    label = f"<figcaption>{escape(name)}</figcaption>" if name else ""
    language = f' data-language="{escape(name)}"' if name else ""
    return f'<figure class="code"{language}>{label}<pre><code>{_coloured(code, name.lower())}</code></pre></figure>\n'


def _coloured(code: str, language: str) -> str:
    lexer = _lexer(language) if len(code) <= LONGEST else None
    if lexer is None or any(len(line) > LONGEST_LINE for line in code.split("\n")):
        return escape(code)
    pieces: list[str] = []
    last, text = "", ""
    for kind, value in lexer.get_tokens(code):
        name = _class(kind)
        if name == last or not value.strip():
            text += value
        else:
            pieces.append(_span(last, text))
            last, text = name, value
    return "".join([*pieces, _span(last, text)])


def _class(kind: Any) -> str:
    """Pygments' short name of a kind of token that has a colour, else nothing."""
    from pygments.token import STANDARD_TYPES

    while kind not in STANDARD_TYPES:
        kind = kind.parent
    name = STANDARD_TYPES[kind]
    return name if name in coloured() else ""


def _span(name: str, text: str) -> str:
    return f'<span class="{name}">{escape(text)}</span>' if name and text else escape(text)


def _lexer(language: str) -> Any:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(LANGUAGES[language], stripnl=False, ensurenl=False) if language in LANGUAGES else None
    except ClassNotFound:  # a pygments that is older than the list
        return None
