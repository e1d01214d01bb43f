"""Models and live replies in the list, as a person sees them: memory before loading, loading, adapters, who answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from partita_apps.history import History
from partita_apps.serve.registry import Description

from ..serve.scripted import Script, ScriptedRegistry
from ..serve.served import Served, serving
from .conftest import PageAt

LAYERS = 30


@dataclass
class Shelf(ScriptedRegistry):
    """A registry with a second model, `large`, which is loaded when a test says so: by `done`, layers."""

    state: str = "unloaded"
    done: int = 0
    asked: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        return [*super().names(), "large"]

    def describe(self, name: str) -> Description:
        if name != "large":
            return super().describe(name)
        found = super().describe("tiny")
        return replace(found, name=name, state=self.state, bytes=8_100_000_000, memory=0, facts=None)  # type: ignore

    def predicted(self, name: str) -> int:
        return 7 << 30 if name == "large" else 3000

    def free(self) -> int:
        return 5 << 30

    def workers(self) -> dict[str, Any]:
        return {**super().workers(), "large": SimpleNamespace(progress=(self.done, LAYERS))}

    async def loading(self, name: str) -> AsyncGenerator[tuple[int, int], None]:
        self.asked.append(name)
        self.state = "loading"
        yield self.done, LAYERS


@pytest.fixture
def shelf(registry: Callable[..., ScriptedRegistry]) -> Shelf:
    return Shelf(registry(Script("hello")).models, adapters=["poems"])


@pytest.fixture
def dialog(shelf: Shelf, data: Any, page_at: PageAt):
    with serving(shelf, data=data) as server:
        page = page_at(server)
        expect(page.locator(".model-button-name")).to_have_text("tiny")
        page.locator(".model-button").click()
        yield page.get_by_role("dialog", name="Models")
        page.context.close()


def row(dialog: Any, name: str):
    return dialog.get_by_role("listitem").filter(has=dialog.page.get_by_text(name, exact=True))


def test_memory_is_shown_before_a_model_is_loaded(dialog: Any) -> None:
    expect(dialog).to_contain_text("5.0 GiB of memory free")
    expect(row(dialog, "large")).to_contain_text("8.1 GB on disk")
    expect(row(dialog, "large")).to_contain_text("needs about 7.0 GiB of memory, more than is free")
    expect(row(dialog, "tiny")).to_contain_text("loaded")
    expect(row(dialog, "tiny:poems")).to_contain_text("on tiny")


def test_loading_shows_how_far_it_is(dialog: Any, shelf: Shelf) -> None:
    shelf.done = 11
    dialog.get_by_role("button", name="Load large").press("Enter")
    expect(row(dialog, "large")).to_contain_text("11 of 30 layers")
    assert shelf.asked == ["large"]
    shelf.done = 20
    expect(row(dialog, "large")).to_contain_text("20 of 30 layers")
    shelf.state = "loaded"
    expect(dialog.get_by_role("button", name="Unload large")).to_be_enabled()


def test_a_model_is_unloaded(dialog: Any, shelf: Shelf) -> None:
    dialog.get_by_role("button", name="Unload tiny").click()
    expect(dialog.get_by_role("alert")).to_be_hidden()
    dialog.page.wait_for_function("!document.querySelector('[data-key=\"load tiny\"]').disabled")
    assert shelf.unloaded == ["tiny"]


def test_an_adapter_answers_from_now_on(dialog: Any, shelf: Shelf, history: History) -> None:
    page: Page = dialog.page
    dialog.get_by_role("button", name="Use: tiny:poems").click()
    expect(dialog.get_by_role("button", name="In use: tiny:poems")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".model-button-name")).to_have_text("tiny:poems")
    page.get_by_role("textbox", name="Message").fill("A poem, please")
    page.keyboard.press("Enter")
    expect(page.locator(".message")).to_have_count(2)
    (chat,) = history.chats()
    assert chat.model == "tiny:poems"


def test_a_reply_under_way_is_marked_in_the_list(
    served: Callable[..., Served], page_at: PageAt, data: Any, history: History
) -> None:
    older = history.create(model="tiny", title="Older")
    page = page_at(served(Script("hello", holds=True), data=data))
    page.get_by_role("textbox", name="Message").fill("Go on for ever")
    page.keyboard.press("Enter")
    row = page.locator(".chat-row", has_text="Go on for ever")
    expect(row.get_by_role("img", name="a reply is being written")).to_be_visible()
    page.get_by_role("link", name="Older").click()
    expect(row.get_by_role("img")).to_be_visible()
    expect(page.locator(".chat-row", has_text="Older").get_by_role("img")).to_have_count(0)
    assert page.url.endswith(older.id)
    row.get_by_role("link").click()
    page.get_by_role("button", name="New chat", exact=True).focus()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("x")
    expect(row.get_by_role("img")).to_have_count(0)
