"""Stop strings match text wherever it is split, and nothing that belongs to one is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partita.errors import DataError
from partita.text.stop_strings import StopStrings

LETTERS = st.text("ab⁂", max_size=12)


def shown(stops: list[str], pieces: list[str]) -> str:
    filter_ = StopStrings(stops)
    return "".join(filter_.push(piece) for piece in pieces) + filter_.finish()


@given(stops=st.lists(st.text("ab⁂", min_size=1, max_size=4), max_size=3), pieces=st.lists(LETTERS, max_size=8))
def test_any_split_shows_the_text_before_the_first_stop(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    # the stop string that is complete first ends the reply; of those, the one that begins first
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert shown(stops, pieces) == text
        return
    one_by_one = shown(stops, list(text))
    first = min(ends)
    begun = min(text[:first].find(stop) for stop in stops if stop in text[:first])
    assert one_by_one == text[:begun]
    assert one_by_one.startswith(shown(stops, pieces)) or shown(stops, pieces).startswith(one_by_one)
    assert not any(stop in shown(stops, pieces) for stop in stops)


def test_split_at_every_place() -> None:
    for cut in range(len("say END now") + 1):
        assert shown(["END"], ["say END now"[:cut], "say END now"[cut:]]) == "say "


def test_held_back_text_is_released_at_the_end() -> None:
    filter_ = StopStrings(["<|end|>"])
    assert filter_.push("a <|en") == "a "
    assert not filter_.found
    assert filter_.finish() == "<|en"


@pytest.mark.parametrize("stops", [[""], ["x"] * 17, ["x" * 1025]])
def test_bounds(stops: list[str]) -> None:
    with pytest.raises(DataError, match="`stop` must be"):
        StopStrings(stops)
