"""The field that messages are written in: keys, drafts, examples, a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from partita_apps.history import History

from ..serve.scripted import Script
from ..serve.served import Served
from .conftest import Complaints
from .talk import ask, ended, field, hold, questions, replies

Serve = Callable[..., Served]
PageAt = Callable[..., Page]
COMPOSED = """(element) => element.dispatchEvent(
    new KeyboardEvent("keydown", {key: "Enter", isComposing: true, bubbles: true, cancelable: true}))"""


def test_enter_sends_and_shift_enter_begins_a_line(open_page: PageAt) -> None:
    page = open_page()
    low = field(page).bounding_box()
    field(page).type("one")
    for line in range(4):
        field(page).press("Shift+Enter")
        field(page).type(f"line {line}")
    high = field(page).bounding_box()
    assert low is not None
    assert high is not None
    assert high["height"] > low["height"] * 2
    field(page).press("Enter")
    expect(questions(page).locator(".bubble")).to_have_text("one\nline 0\nline 1\nline 2\nline 3")
    expect(field(page)).to_have_value("")


def test_who_opens_the_page_may_type_at_once(open_page: PageAt) -> None:
    page = open_page()
    expect(field(page)).to_be_focused()
    page.keyboard.type("what is a chessboard?")  # letters that are shortcuts, too
    expect(field(page)).to_have_value("what is a chessboard?")


def test_what_is_sent_before_the_server_answers_goes_to_the_chat_of_the_address(
    open_page: PageAt, history: History
) -> None:
    chat = history.create(model="tiny", title="other")
    page = open_page()
    release = hold(page, "**/app/state")
    page.goto(page.url.split("#")[0] + f"?again#/chat/{chat.id}")
    ask(page, "early")
    expect(page.get_by_text("This is sent as soon as the server answers.")).to_be_visible()
    expect(field(page)).to_have_value("early")
    release()
    expect(questions(page).locator(".bubble")).to_have_text("early")
    ended(page)
    assert [each.content for each in history.path(chat.id)] == ["early", "hello"]
    assert len(history.chats()) == 1


def test_a_message_that_is_changed_before_the_server_answers_is_not_sent(open_page: PageAt) -> None:
    page = open_page()
    release = hold(page, "**/app/state")
    page.reload()
    ask(page, "early")
    field(page).press_sequentially(", but")
    release()
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_enabled()
    expect(field(page)).to_have_value("early, but")
    expect(questions(page)).to_have_count(0)


def test_enter_of_an_input_method_does_not_send(open_page: PageAt) -> None:
    page = open_page()
    field(page).fill("にほん")
    field(page).evaluate(COMPOSED)
    expect(field(page)).to_have_value("にほん")
    expect(questions(page)).to_have_count(0)


def test_nothing_is_sent_of_spaces(open_page: PageAt) -> None:
    page = open_page()
    field(page).fill("  \n ")
    field(page).press("Enter")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    expect(questions(page)).to_have_count(0)


def test_a_draft_is_kept_for_each_chat(open_page: PageAt, history: History) -> None:
    chat = history.create(model="tiny", title="other")
    page = open_page()
    field(page).fill("for a new chat")
    page.goto(page.url.split("#")[0] + f"#/chat/{chat.id}")
    expect(field(page)).to_have_value("")
    field(page).fill("for the other")
    page.reload()
    expect(field(page)).to_have_value("for the other")
    page.goto(page.url.split("#")[0] + "#/")
    expect(field(page)).to_have_value("for a new chat")
    ask(page, "sent")
    ended(page)
    page.goto(page.url.split("#")[0] + "#/")
    expect(field(page)).to_have_value("")


def test_an_example_is_put_into_the_field_and_not_sent(open_page: PageAt) -> None:
    page = open_page()
    page.get_by_role("group", name="Examples").get_by_role("button").first.click()
    expect(field(page)).to_be_focused()
    assert field(page).input_value().startswith("Explain")
    expect(questions(page)).to_have_count(0)


def test_a_refused_message_comes_back(open_page: PageAt, history: History, complaints: Complaints) -> None:
    complaints.allow("status of 404")
    chat = history.create(model="no such model")
    page = open_page(f"#/chat/{chat.id}")
    ask(page, "kept")
    expect(page.locator(".toast.danger")).to_contain_text("no such model")
    expect(field(page)).to_have_value("kept")


def test_on_a_phone_enter_begins_a_line_and_the_button_sends(served: Serve, page_at: PageAt, data: Path) -> None:
    server = served(Script("hello"), data=data)
    page = page_at(server, width=390, height=844, has_touch=True, is_mobile=True)
    field(page).fill("one")
    field(page).press("Enter")
    expect(field(page)).to_have_value("one\n")
    page.get_by_role("button", name="Send", exact=True).tap()
    ended(page)
    expect(replies(page).locator(".prose")).to_have_text("hello")
    sizes = page.locator(".message .actions button").evaluate_all(
        "all => all.map(each => Math.min(each.offsetWidth, each.offsetHeight))"
    )
    assert sizes
    assert min(sizes) >= 32
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
