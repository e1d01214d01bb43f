"""The inspector as a person uses it: tokens, runners-up, another token, times, cache, prompt; with a scripted model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from partita_apps.history import History

from ..serve.scripted import Script
from ..serve.served import Served, until
from .conftest import PageAt
from .talk import ended

REPLY = "the quick brown\tfox 🎼 jumps over the lazy dog"


@pytest.fixture
def asked(served: Callable[..., Served], page_at: PageAt, data: Any) -> Callable[..., Page]:
    """asked(play, **page_at's): a page on which a question has been answered, with the inspector open."""

    def ask(play: Any = Script(REPLY, chunk=8, reused=4), **more: Any) -> Page:  # noqa: B008
        page = page_at(served(play, data=data), **more)
        page.get_by_role("textbox", name="Message").fill("What does the fox do?")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Copy reply")).to_be_visible()
        page.get_by_role("button", name="Inspect tokens").last.click()
        expect(token(page, 0)).to_be_visible()
        return page

    return ask


def token(page: Page, position: int) -> Any:
    return page.locator(f"#token-{position}")


def detail(page: Page) -> Any:
    return page.get_by_role("group", name="The token")


def tokens(page: Page) -> Any:
    return page.get_by_role("listbox", name="Tokens of the reply")


def test_every_token_is_there_with_what_cannot_be_seen_made_visible(
    asked: Callable[..., Page], history: History
) -> None:
    page = asked()
    shown = "".join(tokens(page).get_by_role("option").all_text_contents())
    assert shown.startswith("the·quick·brown⇥fox·")
    assert "<|im_end|>" in shown
    assert "‹F0" in shown  # a character that is cut between tokens
    reply = history.messages(history.chats()[0].id)[-1]
    expect(tokens(page).get_by_role("option")).to_have_count(len(reply.ids) + 1)
    kept = history.trace(reply.id)[0]["tokens"]
    assert [row["id"] for row in kept[:-1]] == list(reply.ids)


def test_a_token_says_what_else_it_might_have_been(asked: Callable[..., Page]) -> None:
    page = asked()
    expect(detail(page)).to_contain_text("Point at a token")
    token(page, 3).hover()
    expect(detail(page)).to_contain_text("Probability 50 %, surprise 1.0 bit")
    expect(detail(page)).to_contain_text("20 ms")
    runners = detail(page).get_by_role("listitem")
    expect(runners).to_have_count(8)
    expect(runners.nth(1)).to_contain_text("25 %")
    token(page, 3).click()
    token(page, 4).hover()
    expect(detail(page)).to_contain_text("token 5,")
    page.get_by_role("heading", name="Prompt").hover()
    expect(detail(page)).to_contain_text("token 4,")


def test_tokens_are_walked_by_keyboard(asked: Callable[..., Page]) -> None:
    page = asked()
    tokens(page).focus()
    expect(token(page, 0)).to_have_attribute("aria-selected", "true")
    for key, position in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)):
        page.keyboard.press(key)
        expect(token(page, position)).to_have_attribute("aria-selected", "true")
        expect(tokens(page)).to_have_attribute("aria-activedescendant", f"token-{position}")
    page.keyboard.press("End")
    expect(detail(page)).to_contain_text("it ended the reply")
    page.keyboard.press("ArrowUp")
    expect(detail(page)).not_to_contain_text("it ended the reply")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.runners') !== null")


def test_another_token_begins_a_branch(asked: Callable[..., Page], history: History) -> None:
    page = asked([Script(REPLY, chunk=8), Script(" on and on", pause=0.01)])
    old = history.messages(history.chats()[0].id)[-1]
    token(page, 5).click()
    other = history.trace(old.id)[0]["tokens"][5]["top"][2]
    detail(page).get_by_role("listitem").nth(2).get_by_role("button").click()
    until(lambda: [each.state for each in history.messages(old.chat)[2:]] == ["done"])
    ended(page)
    expect(token(page, 5)).to_have_class(re.compile(r"\bchosen\b"))
    messages = history.messages(history.chats()[0].id)
    new = messages[-1]
    assert new.parent == old.parent
    assert new.ids[:6] == (*old.ids[:5], other[0])
    assert len(new.ids) > 6
    kept = history.trace(new.id)[0]["tokens"]
    assert [row["id"] for row in kept if not row.get("ends")] == list(new.ids)
    assert [bool(row.get("given")) for row in kept[:7]] == [True] * 6 + [False]
    token(page, 5).click()
    expect(detail(page)).to_contain_text("chosen by you")


def test_surprise_times_cache_and_prompt_are_told_in_words(asked: Callable[..., Page]) -> None:
    page = asked()
    region = page.get_by_role("complementary", name="Inspector")
    expect(region).to_contain_text("Perplexity 2.00.")
    expect(region).to_contain_text("Median 20 ms (dashed); slowest 20 ms")
    expect(region).to_contain_text("4 of them were still in the cache")
    expect(region).to_contain_text("4 first tokens, kept for ever in 32 bits, never quantized")
    expect(region).to_contain_text("keys in 8 bits, values in 4")
    cache = region.locator("canvas")
    expect(cache).to_have_attribute("role", "img")
    cache.scroll_into_view_if_needed()
    cache.hover(position={"x": 3, "y": 3})
    expect(region).to_contain_text("Slot 1: token 1 of the chat")


def test_the_reply_that_is_written_is_followed(served: Callable[..., Served], page_at: PageAt, data: Any) -> None:
    page = page_at(served(Script("the fox " * 30, pause=0.05), data=data))
    page.get_by_role("textbox", name="Message").fill("Go on")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Inspector").click()
    region = page.get_by_role("complementary", name="Inspector")
    expect(region).to_contain_text("The reply that is being written")
    expect(token(page, 2)).to_be_visible()
    token(page, 0).click()
    expect(detail(page).get_by_role("button").first).to_be_disabled()
    expect(token(page, 40)).to_be_attached()
    expect(region).not_to_contain_text("The reply that is being written", timeout=20_000)
    expect(detail(page).get_by_role("button").first).to_be_enabled()


def test_without_a_reply_it_says_what_there_will_be(open_page: PageAt) -> None:
    page = open_page()
    page.get_by_role("button", name="Inspector").click()
    region = page.get_by_role("complementary", name="Inspector")
    expect(region).to_contain_text("the cache slot by slot")
    region.get_by_role("button", name="Close the inspector").click()
    expect(region).to_be_hidden()


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("dark", 390)])
def test_it_has_no_serious_barrier(
    asked: Callable[..., Page], axe: Callable[[Page], list[str]], theme: str, width: int
) -> None:
    page = asked(theme=theme, width=width, height=844)
    token(page, 1).click()
    assert axe(page) == []
