"""A reply that is being written, seen from a page that was loaded again, from another tab, and while one reads on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import APIResponse, Page, Route, expect

from partita_apps.history import History

from ..serve.scripted import Script, ScriptedRegistry
from ..serve.served import Served, serving, until
from .conftest import Complaints
from .talk import ask, ended, field, replies

Serve = Callable[..., Served]
PageAt = Callable[..., Page]
HEIGHT = "document.querySelector('.scroller')"


def left(page: Page) -> float:
    """Pixels from what is seen to the end."""
    return page.evaluate(f"(e => e.scrollHeight - e.scrollTop - e.clientHeight)({HEIGHT})")


def test_a_reload_and_a_second_tab_show_the_same_reply(served: Serve, page_at: PageAt, data: Path) -> None:
    first = page_at(served(Script("# Title\n\nthe quick brown\n\nfox", holds=True), data=data))
    ask(first, "go")
    expect(replies(first)).to_contain_text("fox")  # the address names the chat by now
    for page in (first, first.context.new_page()):
        page.goto(first.url)
        page.reload()
        expect(replies(page).locator("h1")).to_have_text("Title")
        expect(replies(page)).to_contain_text("fox")
        expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    first.context.pages[1].keyboard.press("Escape")
    for page in first.context.pages:
        ended(page)
        expect(replies(page)).to_contain_text("You stopped this reply.")
        expect(replies(page).locator("h1")).to_have_text("Title")


def test_a_closed_tab_loses_nothing(served: Serve, page_at: PageAt, data: Path) -> None:
    first = page_at(served(Script("the quick brown fox", pause=0.05), data=data))
    ask(first, "go")
    expect(replies(first)).to_contain_text("the")
    url, context = first.url, first.context
    page = context.new_page()
    first.close()
    page.goto(url)
    ended(page)
    expect(replies(page).locator(".prose")).to_have_text("the quick brown fox")


def test_a_reply_whose_events_come_behind_its_end_is_shown_whole(
    served: Serve, page_at: PageAt, data: Path, history: History
) -> None:
    """The page learns that the run has begun by /app/events, and is told by its own request when it has ended."""
    page = page_at(served(Script("hello", pause=0.1), data=data))
    begun: list[tuple[Route, APIResponse]] = []
    followed: list[Route] = []
    page.route("**/app/chats/*/runs", lambda route: begun.append((route, route.fetch())))
    page.route("**/app/runs/*/events", lambda route: followed.append(route))
    with page.expect_request("**/app/runs/*/events"):
        ask(page, "go")
    chat = history.chats()[0].id
    until(lambda: history.messages(chat)[-1].state == "done")
    with page.expect_response(f"**/app/chats/{chat}"):
        [(route, answer)] = begun
        route.fulfill(response=answer)
    for route in followed:
        route.continue_()
    expect(replies(page).locator(".prose")).to_have_text("hello")
    ended(page)
    expect(replies(page).get_by_role("button", name="Copy reply")).to_be_visible()


def test_loading_and_a_long_prompt_say_how_far_they_are(
    registry: Callable[..., ScriptedRegistry], page_at: PageAt, data: Path
) -> None:
    models = registry(Script("said the quick brown fox", chunk=4, pause=0.2))
    models.loads = 1.0
    with serving(models, data=data) as server:
        page = page_at(server)
        ask(page, "the quick brown fox jumps over the lazy dog")
        expect(page.locator(".progress")).to_contain_text("Loading the model: 1 of 2 layers")
        bar = page.get_by_role("progressbar")
        expect(bar).to_have_attribute("aria-valuenow", "50")
        expect(page.locator(".progress")).to_contain_text("Reading ")
        expect(page.locator(".progress")).to_contain_text("Writing")
        ended(page)
        expect(replies(page).locator(".prose")).to_have_text("said the quick brown fox")
        page.context.close()


def test_reading_earlier_text_is_left_alone(served: Serve, page_at: PageAt, data: Path) -> None:
    text = "\n\n".join(f"the fox {number}" for number in range(60))
    page = page_at(served([Script(text), Script(text, pause=0.02)], data=data, text={"context": 8192}))
    ask(page, "first")
    ended(page)
    expect(replies(page)).to_contain_text("the fox 59")
    assert left(page) < 60
    ask(page, "second")
    expect(replies(page)).to_have_count(2)
    expect(replies(page).last).to_contain_text("the fox 1")
    replies(page).last.hover()
    page.mouse.wheel(0, -500)
    jump = page.get_by_role("button", name="Jump to latest")
    expect(jump).to_be_visible()
    top = page.evaluate(f"{HEIGHT}.scrollTop")
    expect(replies(page).last).to_contain_text("the fox 20")
    assert page.evaluate(f"{HEIGHT}.scrollTop") == pytest.approx(top, abs=2)
    jump.click()
    expect(jump).to_be_hidden()
    ended(page)
    expect(replies(page).last.locator(".figures")).to_be_in_viewport()


def test_a_server_that_is_gone_is_told_and_nothing_is_lost(
    registry: Callable[..., ScriptedRegistry], page_at: PageAt, data: Path, complaints: Complaints
) -> None:
    complaints.allow("net::ERR_|failed:")
    with serving(registry(Script("hello")), data=data) as server:
        page = page_at(server)
        ask(page, "go")
        ended(page)
    expect(page.get_by_role("alert").filter(has_text="The server does not answer")).to_be_visible()
    ask(page, "kept")
    expect(field(page)).to_have_value("kept")


def test_a_page_connects_again_by_itself(served: Serve, page_at: PageAt, data: Path, complaints: Complaints) -> None:
    complaints.allow("net::ERR_|failed:")
    page = page_at(served(data=data))
    expect(field(page)).to_be_visible()
    page.route("**/app/**", lambda route: route.abort())
    ask(page, "go")
    notice = page.get_by_role("alert").filter(has_text="The server does not answer")
    expect(notice).to_be_visible()
    page.unroute("**/app/**")
    expect(notice).to_be_hidden()
    field(page).press("Enter")
    expect(replies(page).locator(".prose")).to_have_text("hello")


def test_the_end_of_a_reply_is_said_once_and_the_focus_returns(served: Serve, page_at: PageAt, data: Path) -> None:
    page = page_at(served(Script("hello there"), data=data))
    ask(page, "go")
    ended(page)
    expect(page.get_by_role("log")).to_have_attribute("aria-live", "off")
    expect(page.locator("#status")).to_contain_text("Reply finished.")
    expect(field(page)).to_be_focused()
