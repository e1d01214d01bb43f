"""Text that is not ours: nothing of it acts on a terminal, and nothing that can be read is lost."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partita.errors import DataError
from partita.printable import MAX_MESSAGE, json_text, printable, visible

TEXTS = st.text(st.characters(), max_size=80)
ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def acting(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ACTING} - set("\u200c\u200d")


@given(TEXTS)
def test_nothing_acts_on_a_terminal(text: str) -> None:
    assert acting(visible(text)) <= {"\n", "\t"}
    assert acting(printable(text)) == acting(str(DataError(text))) == acting(json_text([text])) == set()


@given(TEXTS)
def test_json_reads_back(text: str) -> None:
    assert json.loads(json_text({text: [text]}, indent=1)) == {text: [text]}


@pytest.mark.parametrize(
    "text",
    ["", "one\n\ttwo", "naïve 日本語 عربى", "می\u200cخواهم", "👩\u200d👩\u200d👧 ❤\ufe0f 🏳\ufe0f\u200d🌈", "e\u0301"],
)
def test_what_people_write_stays(text: str) -> None:
    assert visible(text) == text
    assert printable(text) == text.replace("\n", "\\n").replace("\t", "\\t")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x9b0m\x07", r"\x1b[31mred\x9b0m\x07"),
        ("one\r\ntwo\rthree", "one\ntwo\\rthree"),
        ("gpj.\u202eexe \u2066a\u2069 \ufeff", r"gpj.\u202eexe \u2066a\u2069 \ufeff"),
        ("a\u2028b\u2029c\x85d\x7f", r"a\u2028b\u2029c\x85d\x7f"),
        ("\ud800 \U000e0041", r"\ud800 \U000e0041"),
    ],
)
def test_what_acts_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_message_is_one_line_of_bounded_length() -> None:
    line = printable("begin" + "\x1b" * 5000 + "end")
    assert len(line) <= MAX_MESSAGE
    assert line.startswith("begin\\x1b")
    assert line.endswith("\\x1bend")
