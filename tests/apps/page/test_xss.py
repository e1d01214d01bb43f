"""What attacks the page reaches it in every way there is, and does nothing: no script runs, no request leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from partita_apps.history import History

from ..markup.corpus import PROBES
from ..serve.scripted import Script
from ..serve.served import Served
from .conftest import PageAt

ALL = "\n\n".join(PROBES)
_ACTING = r"""() => {
    const element = /^(img|iframe|object|embed|base|meta|style|link|script)$/i;
    const handler = /^on|^srcdoc$/i, address = /^(xlink:)?href$|^src$|action$|^data$|^poster$/i;
    const runs = /^\s*(javascript|data|vbscript):/i;
    return [...document.querySelectorAll("body *")].flatMap((each) => [
        ...(each.closest(".transcript, .sidebar, dialog") && element.test(each.tagName) ? [each.outerHTML] : []),
        ...[...each.attributes]
            .filter(({name, value}) => handler.test(name) || (address.test(name) && runs.test(value)))
            .map(({name, value}) => `${each.tagName} ${name}=${value}`),
    ]);
}"""


def insist(page: Page) -> None:
    """Nothing has run or waits to be run; what else it did, `complaints` have seen."""
    page.wait_for_timeout(200)
    assert page.evaluate("window.probe") is None
    assert page.evaluate(_ACTING) == []


@pytest.fixture
def attacked(history: History) -> str:
    """A chat in which everything attacks."""
    chat = history.create(model="tiny", title=PROBES[0], folder=PROBES[3])
    asked = history.add(
        chat.id,
        parent=None,
        role="user",
        content=ALL,
        attachments=[{"name": probe, "type": "text/plain", "text": probe} for probe in PROBES[:8]],
    )
    history.add(
        chat.id,
        parent=asked.id,
        role="assistant",
        content=ALL,
        thought=ALL,
        model=PROBES[4],
        state="failed",
        calls=[{"id": PROBES[5], "name": PROBES[0], "arguments": json.dumps({"x": PROBES[3]})}],
        meta={"error": PROBES[3]},
    )
    for probe in PROBES:
        history.create(model="tiny", title=probe, folder=probe[:40])
    return chat.id


def test_of_the_history(open_page: PageAt, attacked: str) -> None:
    page = open_page(f"#/chat/{attacked}")
    expect(page.locator(".message")).to_have_count(2)
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    insist(page)
    assert page.locator(".chat-row").count() > 20


def test_of_a_search(open_page: PageAt, attacked: str) -> None:
    page = open_page()
    for words in ("script", "onerror", "javascript", PROBES[3]):
        page.get_by_role("searchbox", name="Search all chats").fill(words)
        expect(page.locator(".search-results")).to_be_visible()
        insist(page)


def test_of_an_address(open_page: PageAt, complaints) -> None:
    complaints.allow("404")
    for probe in PROBES[:6]:
        page = open_page(f"#/chat/{probe}")
        insist(page)
        page = open_page(f"#/chat/x/inspect/{probe}")
        insist(page)


@pytest.mark.parametrize("begin", range(0, len(PROBES), 12))
def test_of_a_reply_as_it_comes(served: Callable[..., Served], data: Path, page_at: PageAt, begin: int) -> None:
    said = "\n\n".join(PROBES[begin : begin + 12])
    page = page_at(served(Script(said, pause=0.001), data=data))
    page.get_by_role("textbox", name="Message").fill("attack")
    page.get_by_role("textbox", name="Message").press("Enter")
    expect(page.locator(".message")).to_have_count(2)
    page.locator("button.stop").wait_for(state="hidden", timeout=60_000)
    insist(page)
    page.reload()
    expect(page.locator(".message")).to_have_count(2)
    insist(page)


def test_of_an_import(open_page: PageAt, attacked: str, history: History, tmp_path: Path) -> None:
    file = tmp_path / "chats.json"
    file.write_text(json.dumps(history.export()))
    page = open_page()
    page.locator(".sidebar").get_by_role("button", name="Export and import", exact=True).click()
    page.get_by_role("dialog").locator("input[type=file]").set_input_files(file)
    page.wait_for_timeout(1000)
    insist(page)


def test_the_watch_sees_what_gets_through(open_page: PageAt, complaints) -> None:
    """The other tests would fail: a page that is attacked from within complains."""
    page = open_page()
    page.evaluate(
        """() => {
            const image = document.createElement("img");
            image.src = "https://away.invalid/a.png";
            document.body.append(image);
            try { document.body.insertAdjacentHTML("beforeend", "<p>x</p>"); } catch {}
        }"""
    )
    page.wait_for_timeout(300)
    assert any("img-src" in text for text in complaints.unexpected)
    assert any("TrustedHTML" in text or "trusted" in text.lower() for text in complaints.unexpected)
    complaints.allow("")
