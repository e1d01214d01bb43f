"""Search as a person uses it: what is found, marked, walked through with arrows, and opened at the message."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from partita_apps.history import History, Message

from .conftest import PageAt


@pytest.fixture
def found(history: History) -> Message:
    """A question of a long chat, on a branch that is not shown; another chat has its word in the title."""
    chat = history.create(model="tiny", title="Long talk")
    parent = history.add(chat.id, parent=None, role="user", content="hello")
    asked = history.add(chat.id, parent=parent.id, role="user", content="What is a passacaglia, then?")
    history.add(chat.id, parent=asked.id, role="assistant", content="A set of variations.", model="tiny")
    last = parent
    for i in range(30):
        last = history.add(chat.id, parent=last.id, role="user", content=f"question {i}")
        last = history.add(chat.id, parent=last.id, role="assistant", content=f"answer {i}\n" * 8, model="tiny")
    history.create(model="tiny", title="Passacaglia in C minor")
    return asked


def search(page: Page, text: str) -> None:
    page.get_by_role("searchbox", name="Search all chats").fill(text)


def test_matches_are_marked_and_the_list_comes_back(open_page: PageAt, found: Message) -> None:
    page = open_page()
    search(page, "passacaglia")
    hits = page.get_by_role("list", name="Found").get_by_role("listitem")
    expect(hits).to_have_count(2)
    assert page.locator(".hits mark").all_inner_texts() == ["Passacaglia", "passacaglia"]
    expect(page.locator(".chat-list")).to_be_hidden()
    expect(page.locator(".search-results")).to_contain_text("2 found")
    search(page, "")
    expect(page.locator(".chat-list")).to_be_visible()
    expect(hits).to_have_count(0)


def test_nothing_found_says_how_search_works(open_page: PageAt, found: Message) -> None:
    page = open_page()
    search(page, "zwiebel")
    expect(page.locator(".search-results")).to_contain_text("Nothing found")


def test_a_hit_opens_at_its_message_on_its_branch(open_page: PageAt, found: Message) -> None:
    page = open_page(f"#/chat/{found.chat}")
    expect(page.locator(".transcript")).to_contain_text("answer 29")
    search(page, "passacaglia")
    page.locator(".hits a", has_text="Long talk").click()
    message = page.locator(f'.message[data-id="{found.id}"]')
    expect(message).to_be_in_viewport()
    expect(message).to_contain_text("What is a passacaglia")


def test_a_hit_far_up_is_scrolled_to(open_page: PageAt, found: Message, history: History) -> None:
    first = history.messages(found.chat)[0]
    page = open_page(f"#/chat/{found.chat}/at/{first.id}")
    expect(page.locator(f'.message[data-id="{first.id}"]')).to_be_in_viewport()


def test_search_with_the_keyboard(open_page: PageAt, found: Message) -> None:
    page = open_page()
    expect(page.locator(".chat-row")).to_have_count(2)
    page.get_by_role("button", name="New chat", exact=True).focus()
    page.keyboard.press("/")
    field = page.get_by_role("searchbox", name="Search all chats")
    expect(field).to_be_focused()
    page.keyboard.type("passaca")
    expect(page.locator(".hits a")).to_have_count(2)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".hits a").nth(1)).to_be_focused()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(field).to_have_value("")
    expect(page.locator(".chat-list")).to_be_visible()


def test_hostile_text_is_found_as_text(open_page: PageAt, history: History) -> None:
    chat = history.create(model="tiny", title="<b>bold</b>")
    history.add(chat.id, parent=None, role="user", content="<img src=x onerror=alert(1)> needle <script>1</script>")
    page = open_page()
    search(page, "needle")
    expect(page.locator(".hit-text")).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator(".hits img, .hits script, .hits b").count() == 0
