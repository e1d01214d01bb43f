"""Replies in Markdown on a terminal: what the screen shows, whatever the width and however the text comes."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from tests.chat_forms import write_model
from tests.screen import Terminal, seen
from tests.scripted import script

from partita.errors import DataError
from partita.text.load import tokenizer_from_folder
from partita_apps.chat.commands import shown as value
from partita_apps.chat.inline import inline
from partita_apps.chat.layout import wrapped
from partita_apps.chat.markdown import Markdown
from partita_apps.conversation.settings import Settings

# Newer Pythons warn of fork in a process that has threads; the child here does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

SCRIPTED = Path(__file__).parent.parent / "scripted.py"
PLACE = "https://example.com/a/path/that/cannot/be/broken?and=it&goes=on&and=on&until=the_end_of_the_line"
REPLY = f"""\
## Two **steps**

1. The quick brown fox jumps over the lazy dog, and *then* the other fox.
   - `fib(3)` of {PLACE}

> A quotation that is longer than forty columns are wide, and so it goes on.

```python
def fib(n):  # a comment that makes this line longer than the forty columns of a narrow terminal
    return "**no**" if n < 2 else fib(n - 1)
```

| name | what it does | cost |
|:-----|--------------|-----:|
| fib | **adds** what came before | 12 |
| sort | puts things in order, and says nothing of how | 1,234 |

中文没有空格，**所以**每个字之后都可以换行，但是标点符号不能在行首，括号也不能在行末。
"""
TABLE_80 = [
    "name     what it does                                                cost",
    "───────  ───────────────────────────────────────────────────────  ───────",
    "fib      adds what came before                                         12",
    "sort     puts things in order, and says nothing of how              1,234",
]


def shown(text: str, width: int = 80, cuts: tuple[int, ...] | list[int] = (), *, styled: bool = True) -> str:
    """All that is written for a text that comes in pieces."""
    markdown, places = Markdown(width, styled=styled), [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return "".join(markdown.push(text[a:b]) for a, b in pairwise(places)) + markdown.finish()


def lines(text: str, width: int = 80, **options: bool) -> list[str]:
    return seen(shown(text, width, **options), width)


# ---------------------------------------------------------------- any text


PARTS = st.sampled_from(
    ["*", "**", "_", "`", "```", "~~~", "~~", "#", "# ", "- ", "1. ", "> ", ">", "|", "|-|", "| a | b |\n|--|--|\n",
     "---", "[", "](", ")", "\\", "<br>", " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "fox", "dog", "x" * 50,
     "y" * 170, "2", "é", "日本", "。", "（", "🎉", "\x1b[2J", "\u200d", "\r", "def f(): pass", "python"]
)  # fmt: skip
TEXTS = st.lists(PARTS, max_size=40).map("".join)
CUTS = st.lists(st.integers(0, 300), max_size=20)


@given(TEXTS, CUTS, st.sampled_from([1, 2, 7, 20, 80]), st.booleans())
def test_the_same_text_in_other_pieces_gives_the_same_screen(text, cuts, width, styled):
    assert shown(text, width, cuts, styled=styled) == shown(text, width, styled=styled)
    assert shown(text, width, range(len(text)), styled=styled) == shown(text, width, styled=styled)


@given(TEXTS, st.sampled_from([8, 20, 80]), st.booleans())
def test_all_words_are_shown_and_nothing_acts_on_the_terminal(text, width, styled):
    found = shown(text, width, styled=styled)
    terminal = Terminal(width)
    terminal.push(found.replace("\n", "\r\n"))
    assert not terminal.styles  # none is left on
    bare = re.sub(r"\x1b\[[0-9;]*m", "", found)
    assert "\x1b" not in bare
    text = text.replace("\r\n", "\n").replace("\x1b", r"\x1b").replace("\r", r"\r")
    assert letters(bare).replace("br", "") == letters(text).replace("br", "")  # in a table it ends a line
    if not styled:
        assert bare == found


@given(TEXTS)
def test_without_styles_everything_is_left_as_it_was_written(text):
    text = re.sub(r"[|\r\x1b]", "", text)
    assert "".join(shown(text, 10**6, styled=False).split()) == "".join(text.split())


def letters(text: str) -> str:
    """What a reader reads: the names of languages and of all else without markers and white space."""
    return "".join(c for c in text if c.isalpha() or c in "🎉。（")


@given(TEXTS, st.sampled_from([20, 80]))
def test_words_that_fit_are_not_broken(text, width):
    for line in lines(text.replace("```", "").replace("~~~", "").replace("    ", " ").replace("\t", " "), width):
        assert cell_len(line) <= width


@pytest.mark.parametrize(
    "text", ["*" * 5000, "**`a" * 500, "> " * 500, "- " * 500, "|" * 5000, "[a](b " * 500, "`" * 999]
)
def test_nothing_is_too_deep(text):
    assert shown(text, 80)


# ---------------------------------------------------------------- blocks


def test_headings_lists_and_quotations_hang_below_their_beginning():
    assert lines("## Two\n- one two three\n  1. four five six\n> one two three", 12) == [
        "Two", "• one two", "  three", "  1. four", "     five", "     six", "│ one two", "│ three",
    ]  # fmt: skip
    assert lines("- one\n> - two\n>\n> three", 12) == ["• one", "│ • two", "│", "│ three"]
    assert "\x1b[1;36mTwo\x1b[0m" in shown("## Two")
    assert "\x1b[1mThree\x1b[0m" in shown("### Three")


def test_code_keeps_its_lines_and_what_was_not_closed_is_code():
    code = "def f(x):\n    return x  # " + "very long " * 10 + "\n\n\n*no*\t`mark`"
    for text in (f"```python\n{code}\n```", f"```python\n{code}", f"~~~\n{code}\n```\n~~~", f"- ```\n{code}\n```"):
        bare = re.sub(r"\x1b\[[0-9;]*m", "", shown(text, 20))
        assert code in bare
        assert bare.splitlines()[0].removeprefix("• ") == text.splitlines()[0].removeprefix("- ")
    found = shown(f"```python\n{code}\n```")
    assert "\x1b[35mdef\x1b[0m \x1b[36mf\x1b[0m" in found
    assert "\x1b[2m# very" in found
    assert "\x1b[32m    two\x1b[0m" in shown('```python\nx = """one\n    two"""\n```')
    assert "\x1b[3" not in shown(f"```what\n{code}\n```")
    long = 'x = """one\ntwo"""\n\n' * 100  # more than is read again
    assert shown(f"```python\n{long}").count("\x1b[32mtwo") == 100
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown("```c\n" + "/* a\n" * 500)) == "```c\n" + "/* a\n" * 500
    assert lines("\n    x = 1  #  very long indeed\nfox", 80) == ["", "    x = 1  #  very long indeed", "fox"]


def test_a_fence_at_the_end_is_shown_once():
    for text in ("```\nx\n```", "> ~~~\n> x\n> ~~~", "```\nx", "```", "````\n```\n````\n", "- ```\n  x\n  ```"):
        shown = lines(text)
        assert [line.strip("│• ") for line in shown] == [line.strip("> -") for line in text.split("\n")]


def test_code_within_a_quotation_ends_with_it():
    assert lines("> ```\n> a  b\nfox *jumps*") == ["│ ```", "│ a  b", "fox jumps"]
    assert lines("> ```\n> a  b\nfox") == ["│ ```", "│ a  b", "fox"]


def test_a_table_has_columns_and_its_cells_are_broken():
    table = REPLY[REPLY.index("| name") : REPLY.index("\n\n中")]
    assert lines(table, 80) == TABLE_80
    narrow = lines(table, 30)
    assert max(map(len, narrow)) <= 30
    assert narrow[0].split() == ["name", "what", "it", "does", "cost"]
    assert narrow[-1].startswith("      ")
    assert lines(table.replace("1,234", "\x07"), 80)[-1].split()[-1] == r"\x07"


def test_what_only_looks_like_a_table_is_text():
    assert lines("| a | b |\nfox") == ["| a | b |", "fox"]
    assert lines("| a | b |") == ["| a | b |"]
    assert lines("| a | b |\n| c | d |\n\n|x|") == ["| a | b |", "| c | d |", "", "|x|"]
    assert lines("| a | b |\n|---|---|\n") == ["a        b", "───────  ───────", ""]
    wide = "|" + " a |" * 30 + "\n|" + "-|" * 30
    assert "".join(lines(wide, 40)).replace(" ", "") == "".join(wide.split())


def test_words_are_shown_as_they_come():
    markdown = Markdown(80)
    assert markdown.push("The fox **jum") == "The fox"
    assert markdown.push("ps** over") == " \x1b[1mjumps\x1b[0m"
    assert markdown.push(" the") == " over"
    assert markdown.push(" *dog ") == " the"
    assert markdown.push("and\n") == " *dog and\n"
    assert markdown.push("日本") == "日"
    assert markdown.finish() == "本"
    assert len(Markdown(80).push("*" + "fox " * 100)) > 300  # what is not closed is not waited for
    assert len(Markdown(80).push("x" * 1000)) > 800
    assert len(Markdown(80).push("```\n" + "x" * 1000)) > 800


# ---------------------------------------------------------------- within a line


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("**a b** *c* _d_ ~~e~~", "1:a b||3:c||3:d||9:e"),
        ("***a*** **b *c* d**", "1;3:a||1:b |1;3:c|1: d"),
        ("`a*b*` ``c ` d`` **`e`**", "36:a*b*||36:c ` d||1;36:e"),
        ("**H**yper**T**ext", "1:H|yper|1:T|ext"),
        ("[a](b.c/d_(e)) ![f](g) [h](h)", "a| (|4:b.c/d_(e)|)||f| (|4:g|)||4:h"),
        ("这**“重要”**的", "这|1:“重要”|的"),
        (r"\*a\* \$5 \(x\)", r"*|a|*||$|5 \(x\)"),
    ],
)
def test_inline_markers(text: str, read: str) -> None:
    found = [f"{style}:{piece}" if style else piece for piece, style in inline(text)]
    assert "|".join(found).replace("| |", "||") == read


@pytest.mark.parametrize(
    "text",
    ["2*3*4", "2 * 3 * 4", "2**3 and 4**5", "f(*args, **kwargs)", "snake_case_name", "__init__", "$x^*$ and $y^*$",
     r"$\mathbf{x}_{i} + y_{j}$", "[1] and [2]", "a ` b", "**a", "a** b", "C:\\new", "it*"],
)  # fmt: skip
def test_what_is_not_a_marker_stays(text: str) -> None:
    assert inline(text) == [(text, "")]


# ---------------------------------------------------------------- notes


def test_notes_hang_and_keep_numbers_with_their_units():
    status = "128 tokens · 58.4/s · first 0.24 s · context 160/2048 · cache 22.5 KiB"
    assert wrapped(status, 40).split("\n") == [
        "128 tokens · 58.4/s · first 0.24 s ·",
        "context 160/2048 · cache 22.5 KiB",
    ]
    assert wrapped(status, 80) == status
    assert wrapped("it needs 22.5 KiB a token", 14).split("\n") == ["it needs", "22.5 KiB a", "token"]
    rows = "  /set NAME VALUE  change a setting of this chat\n  /exit            leave"
    assert wrapped(rows, 40).split("\n") == [
        "  /set NAME VALUE  change a setting of", "                   this chat", "  /exit            leave",
    ]  # fmt: skip
    assert wrapped(rows, 30).split("\n") == [
        "  /set NAME VALUE", "      change a setting of this", "      chat", "  /exit            leave",
    ]  # fmt: skip


def test_switches_are_on_or_off():
    settings = Settings().set_text("plain", "on").set_text("stats", "ON").set_text("stats", "off")
    assert (settings.plain, settings.stats) == (True, False)
    assert (value(settings.plain), value(settings.stats)) == ("on", "off")
    assert Settings.of(settings.document()) == settings
    with pytest.raises(DataError, match="`plain` must be on or off, got 'maybe'"):
        settings.set_text("plain", "maybe")


# ---------------------------------------------------------------- the real terminal


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("markdown") / "thinking", "thinking")


@pytest.fixture
def reply(model: Path, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """reply(text, *options, columns=80, **variables): what the terminal was sent, and the lines that are seen."""

    def run(text: str, *options: str, columns: int = 80, **variables: str) -> tuple[str, list[str]]:
        file = tmp_path / "replies.json"
        file.write_text(json.dumps(script(tokenizer_from_folder(model), text)))
        own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        own |= {"TERM": "xterm", "PYTHONPATH": str(SCRIPTED.parent.parent), **variables}
        line = [str(SCRIPTED), str(file), "chat", str(model), "--backend", "numpy", "-n", "2000"]
        child = pexpect.spawn(
            sys.executable, [*line, "-p", "the fox", *options], env=own, encoding="utf-8", timeout=60,
            dimensions=(24, columns),
        )  # fmt: skip
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0, child.before
        terminal = Terminal(columns)
        terminal.push(str(child.before))
        assert not terminal.hides_cursor
        assert not terminal.styles
        return str(child.before), terminal.lines

    return run


@pytest.mark.parametrize("columns", [80, 40])
def test_a_reply_on_the_screen(reply, columns):
    sent, found = reply(REPLY, "--stats", columns=columns)
    assert found[0] == "Two steps"
    assert "**" not in "".join(line for line in found if "no" not in line)
    assert PLACE in "".join(found)
    text = "\n".join(found)
    assert "中文没有空格，所以每个字之后都可以换行" in text.replace("\n", "")
    assert not any(line.startswith(("，", "。")) for line in found)
    assert "\x1b[35mdef\x1b[0m" in sent
    if columns == 80:
        assert "\n".join(TABLE_80) in text
        assert "   • fib(3) of https" in text
        assert "1. The quick brown fox jumps over the lazy dog, and then the other fox." in found
    else:
        assert found[2:4] == ["1. The quick brown fox jumps over the", "   lazy dog, and then the other fox."]
        at = next(i for i, line in enumerate(found) if line.startswith("│ A quotation"))
        assert found[at : at + 3] == [
            "│ A quotation that is longer than forty",
            "│ columns are wide, and so it goes on.",
            "",
        ]
        assert "than the forty columns of a narrow terminal" in sent  # code is broken by the terminal alone
    assert re.search(r"prompt \d+ tokens · [\d.]+/s ·\speak memory [\d.]+ [MG]iB", text)


def test_a_reply_as_the_model_wrote_it(reply):
    assert reply(REPLY, "--plain")[1][: REPLY.count("\n") + 1][:3] == REPLY.split("\n")[:3]
    sent, _ = reply(REPLY, "--plain", columns=40)
    assert REPLY in sent.replace("\r\n", "\n")
    assert "\n".join(reply("x **y**\n", "--raw", "-n", "9")[1]).startswith("x **y**")
    sent, found = reply(REPLY, NO_COLOR="1", columns=40)
    assert "\x1b" not in sent
    assert found[0] == "## Two **steps**"
    assert found[2:4] == ["1. The quick brown fox jumps over the", "   lazy dog, and *then* the other fox."]


@pytest.mark.parametrize("columns", [80, 40])
def test_the_bar_of_a_prompt_leaves_no_trace(columns):
    program = (
        "from time import sleep\n"
        "from partita_apps.progress import bar\n"
        "print('before')\n"
        "with bar('reading the prompt', delay=0) as advance:\n"
        "    for i in range(5):\n"
        "        advance(i, 5); sleep(0.2)\n"
        "print('after')\n"
    )
    own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = pexpect.spawn(
        sys.executable, ["-c", program], env=own | {"TERM": "xterm"}, encoding="utf-8", dimensions=(24, columns)
    )
    child.expect("reading the prompt.*%")
    sent = str(child.before) + str(child.after)
    child.expect(pexpect.EOF)
    terminal = Terminal(columns)
    terminal.push(sent + str(child.before))
    assert "\n".join(terminal.lines).split() == ["before", "after"]
    assert not terminal.hides_cursor
