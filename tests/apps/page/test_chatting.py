"""A chat as a person has it in the page: asking, reading, stopping, asking again. Replies are scripted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from partita.engine.request import Failed
from partita_apps.history import History

from ..serve.scripted import Script
from ..serve.served import Served
from .talk import PROSE, ask, ended, field, hold, press, questions, replies

Serve = Callable[..., Served]
PageAt = Callable[..., Page]


def clipboard(page: Page) -> str:
    return page.evaluate("navigator.clipboard.readText()")


def test_a_reply_is_rendered_and_copied(served: Serve, page_at: PageAt, data: Path) -> None:
    page = page_at(served(Script(PROSE), data=data, text={"context": 4096}))
    ask(page, "what is a ring?")
    ended(page)
    reply = replies(page)
    expect(questions(page).locator(".bubble")).to_have_text("what is a ring?")
    expect(reply.locator("h2")).to_have_text("A ring of slots")
    expect(reply.locator("strong")).to_have_text("oldest")
    expect(reply.locator("pre .k").first).to_contain_text("def")
    expect(reply.locator("td").last).to_have_text("40,960")
    expect(reply.locator("math")).to_have_count(1)
    press(reply, "Copy code")
    expect(reply.get_by_role("button", name="Copied")).to_be_visible()
    assert clipboard(page) == "def slot(position):\n    return position % 8"
    press(reply, "Copy reply")
    expect(reply.get_by_role("button", name="Copied")).to_have_count(2)
    assert clipboard(page) == PROSE


def test_figures_stand_below_a_reply(served: Serve, page_at: PageAt, data: Path) -> None:
    page = page_at(served(Script("hello there", pause=0.01), data=data))
    ask(page, "hi")
    ended(page)
    figures = replies(page).get_by_role("list", name="Figures of this reply")
    for text in ("tiny", "tokens/s", "tokens", "of 512 context", "cache"):
        expect(figures).to_contain_text(text)
    expect(page.locator(".gauge")).to_contain_text("/ 512")


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_a_stopped_reply_keeps_its_text_and_goes_on(served: Serve, page_at: PageAt, data: Path, how: str) -> None:
    page = page_at(served([Script("the quick brown", holds=True), Script(" fox")], data=data))
    ask(page, "go")
    expect(replies(page)).to_contain_text("the quick brown")
    if how == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop", exact=True).click()
    ended(page)
    expect(replies(page)).to_contain_text("the quick brown")
    expect(replies(page)).to_contain_text("You stopped this reply.")
    replies(page).get_by_role("button", name="Continue", exact=True).click()
    expect(replies(page).locator(".prose")).to_have_text("the quick brown fox")
    ended(page)
    expect(replies(page).locator(".siblings")).to_contain_text("2/2")
    press(replies(page), "Version before")
    expect(replies(page)).to_contain_text("You stopped this reply.")


def test_an_edit_and_another_reply_keep_what_was_there(served: Serve, page_at: PageAt, data: Path) -> None:
    page = page_at(served([Script("first"), Script("second"), Script("third")], data=data))
    ask(page, "question")
    ended(page)
    press(replies(page), "Write another reply")
    expect(replies(page).locator(".prose")).to_have_text("second")
    ended(page)
    expect(replies(page).locator(".siblings")).to_contain_text("2/2")
    press(questions(page), "Edit and send again")
    form = page.get_by_role("textbox", name="Edit message")
    expect(form).to_be_focused()
    form.fill("another question")
    form.press("Enter")
    expect(replies(page).locator(".prose")).to_have_text("third")
    ended(page)
    expect(questions(page)).to_have_count(1)
    expect(questions(page).locator(".siblings")).to_contain_text("2/2")
    press(questions(page), "Version before")
    expect(questions(page).locator(".bubble")).to_have_text("question")
    expect(replies(page).locator(".prose")).to_have_text("second")
    page.reload()
    expect(questions(page).locator(".bubble")).to_have_text("question")
    expect(replies(page).locator(".siblings")).to_contain_text("2/2")


def test_an_edit_can_be_left(served: Serve, page_at: PageAt, data: Path) -> None:
    page = page_at(served(data=data))
    ask(page, "question")
    ended(page)
    press(questions(page), "Edit and send again")
    page.get_by_role("textbox", name="Edit message").fill("something else")
    page.keyboard.press("Escape")
    expect(questions(page).locator(".bubble")).to_have_text("question")
    expect(page.get_by_role("button", name="Edit and send again")).to_be_focused()


def test_a_branch_is_a_chat_of_its_own(served: Serve, page_at: PageAt, data: Path, history: History) -> None:
    page = page_at(served([Script("one"), Script("two")], data=data))
    ask(page, "first question")
    ended(page)
    ask(page, "second question")
    expect(replies(page)).to_have_count(2)
    ended(page)
    before = page.url
    press(replies(page).first, "Branch to a new chat")
    expect(replies(page)).to_have_count(1)
    assert page.url != before
    assert len(history.chats()) == 2
    assert sorted(len(history.path(chat.id)) for chat in history.chats()) == [2, 4]


def test_a_chat_opens_though_a_look_at_the_one_before_is_answered_first(open_page: PageAt, history: History) -> None:
    before, after = (history.create(model="tiny", title=title) for title in ("before", "after"))
    for chat in (before, after):
        history.add(chat.id, parent=None, role="user", content=chat.title)
    page = open_page(f"#/chat/{before.id}")
    expect(questions(page).locator(".bubble")).to_have_text("before")
    release = hold(page, f"**/app/chats/{after.id}")
    with page.expect_request(f"**/app/chats/{after.id}"):
        page.evaluate("(hash) => { location.hash = hash }", f"#/chat/{after.id}")
    with page.expect_response(f"**/app/chats/{before.id}"):
        page.evaluate("import('/page/js/store.js').then((store) => store.refreshChat())")
    release()
    expect(questions(page).locator(".bubble")).to_have_text("after")


def test_thoughts_are_folded(served: Serve, page_at: PageAt, data: Path) -> None:
    page = page_at(served(Script("<think>\nhidden\n</think>\n\nseen", pause=0.01), "thinking", data=data))
    ask(page, "think")
    ended(page)
    thought = replies(page).locator("details.thought")
    expect(thought.locator("summary")).to_contain_text("tokens")
    expect(thought.locator(".thought-text")).to_be_hidden()
    thought.locator("summary").click()
    expect(thought.locator(".thought-text")).to_contain_text("hidden")
    expect(replies(page).locator(".prose")).to_have_text("seen")
    page.reload()
    expect(replies(page).locator("details.thought .thought-text")).to_be_hidden()
    expect(replies(page).locator("details.thought summary")).to_contain_text("Thoughts")


def test_a_call_is_shown(page_at: PageAt, served: Serve, data: Path, history: History) -> None:
    server = served(data=data)
    chat = history.create(model="tiny")
    asked = history.add(chat.id, parent=None, role="user", content="weather?")
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Lisbon"}'}}
    called = history.add(chat.id, parent=asked.id, role="assistant", calls=[call])
    history.add(chat.id, parent=called.id, role="tool", content="sunny")
    page = page_at(server, f"#/chat/{chat.id}")
    expect(replies(page).locator(".call summary")).to_contain_text("get_weather")
    replies(page).locator(".call summary").click()
    expect(replies(page).locator(".call pre")).to_contain_text('"city": "Lisbon"')
    expect(page.locator(".message.tool")).to_contain_text("Answer of the tool")


def test_attached_files_are_shown(page_at: PageAt, served: Serve, data: Path, history: History) -> None:
    server = served(data=data)
    chat = history.create(model="tiny")
    file = {"name": "notes.txt", "type": "text/plain", "text": "what was written"}
    history.add(chat.id, parent=None, role="user", content="read this", attachments=[file])
    page = page_at(server, f"#/chat/{chat.id}")
    chip = questions(page).locator(".attachment")
    expect(chip).to_contain_text("notes.txt")
    expect(chip).to_contain_text("16 characters")


def test_a_failed_reply_says_why_and_is_tried_again(served: Serve, page_at: PageAt, data: Path) -> None:
    failed = Failed(0, "cache needs 3.1 GiB, 2.0 GiB are free", "memory")
    page = page_at(served([Script(refuses=failed), Script("better")], data=data))
    ask(page, "go")
    ended(page)
    expect(replies(page).locator(".failure")).to_contain_text("cache needs 3.1 GiB, 2.0 GiB are free")
    replies(page).get_by_role("button", name="Try again").click()
    expect(replies(page).locator(".prose")).to_have_text("better")
    expect(replies(page).locator(".failure")).to_have_count(0)


def test_a_reply_that_was_cut_says_so(served: Serve, page_at: PageAt, data: Path, history: History) -> None:
    server = served(Script("the quick brown fox", ends=False), data=data)
    chat = history.create(model="tiny", settings={"max_tokens": 3})
    page = page_at(server, f"#/chat/{chat.id}")
    ask(page, "go")
    ended(page)
    expect(replies(page)).to_contain_text("The reply reached its limit of tokens.")


def test_the_page_says_when_the_ring_forgets(served: Serve, page_at: PageAt, data: Path) -> None:
    page = page_at(served(Script("the quick brown fox " * 20), data=data, text={"context": 32}))
    ask(page, "go")
    ended(page)
    expect(replies(page)).to_contain_text("The context of 32 tokens is full: the model no longer sees the oldest")
    expect(page.locator(".gauge.full")).to_contain_text("/ 32")


def test_a_long_question_is_folded(served: Serve, page_at: PageAt, data: Path, history: History) -> None:
    server = served(data=data)
    chat = history.create(model="tiny")
    history.add(chat.id, parent=None, role="user", content="a line\n" * 400)
    page = page_at(server, f"#/chat/{chat.id}")
    text = questions(page).locator(".plain")
    folded = text.bounding_box()
    questions(page).get_by_role("button", name="Show all").click()
    whole = text.bounding_box()
    assert folded is not None
    assert whole is not None
    assert folded["height"] < whole["height"]


def test_a_long_chat_opens_at_its_end_and_is_whole(
    served: Serve, page_at: PageAt, data: Path, history: History
) -> None:
    server = served(data=data)
    chat = history.create(model="tiny")
    parent: Any = None
    for turn in range(60):
        parent = history.add(chat.id, parent=parent, role="user", content=f"question {turn}").id
        parent = history.add(chat.id, parent=parent, role="assistant", content=f"answer *{turn}*").id
    page = page_at(server, f"#/chat/{chat.id}")
    expect(page.locator(".message")).to_have_count(120)
    expect(replies(page).last).to_contain_text("answer 59")
    expect(replies(page).last).to_be_in_viewport()
    expect(replies(page).locator("em")).to_have_count(60)
    texts = page.locator(".message.user .bubble").all_text_contents()
    assert texts == [f"question {turn}" for turn in range(60)]


def test_what_a_model_and_a_person_write_runs_nothing(served: Serve, page_at: PageAt, data: Path) -> None:
    attack = '<img src=x onerror="document.title=1"><script>document.title=1</script> [x](javascript:document.title=1)'
    page = page_at(served(Script(attack), data=data, text={"context": 4096}))
    ask(page, attack)
    ended(page)
    expect(page.locator(".message :is(script, img, [onerror], a[href^=javascript])")).to_have_count(0)
    expect(questions(page).locator(".bubble")).to_have_text(attack)
    assert page.title() != "1"


def test_nothing_is_sent_while_a_reply_is_written(served: Serve, page_at: PageAt, data: Path) -> None:
    page = page_at(served([Script("the", holds=True), Script("next")], data=data))
    ask(page, "first")
    expect(replies(page)).to_contain_text("the")
    ask(page, "second")
    expect(questions(page)).to_have_count(1)
    expect(field(page)).to_have_value("second")
    page.keyboard.press("Escape")
    ended(page)
    field(page).press("Enter")
    expect(replies(page).last.locator(".prose")).to_have_text("next")
