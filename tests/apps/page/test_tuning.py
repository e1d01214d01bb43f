"""Fine-tuning in the page as a person does it, with a model that learns: from a file to a chat with the adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from partita_apps.serve.app.tuning.frames import Checked, Example, Sample
from partita_apps.serve.app.tuning.store import Record, Store
from partita_apps.serve.frames import Load
from partita_apps.serve.names import Names, entry
from partita_apps.serve.registry import Registry

from ..serve.served import Served, serving
from .conftest import Complaints, PageAt
from .talk import LOOKS

SLOW = 90_000  # milliseconds for what a process does that imports an array library on a busy machine
LINES = [
    {
        "messages": [
            {"role": "user", "content": f"What says the fox number {i}?"},
            {"role": "assistant", "content": "the lazy dog jumps over the fox"},
        ]
    }
    for i in range(12)
]


@pytest.fixture
def server(tiny_model: Path, data: Path) -> Iterator[Served]:
    """With the tiny model itself."""
    load = Load("", backend="torch", dtype="float32", context=256)
    with serving(Registry(Names([entry(str(tiny_model))], None), load), data=data) as server:
        yield server


@pytest.fixture
def at(server: Served, page_at: PageAt) -> Callable[..., Page]:
    def make(path: str = "#/tuning", **more: Any) -> Page:
        page = page_at(server, path, **more)
        page.set_default_timeout(SLOW)  # beside a process that trains
        return page

    return make


@pytest.fixture
def finished(tiny_model: Path, data: Path) -> Record:
    """A run of earlier days, as a server finds it."""
    store = Store(data / "tuning")
    path = store.begin_upload("harbour.jsonl", "".join(json.dumps(line) + "\n" for line in LINES).encode())
    shown = [Example([("user", "What says the fox?"), ("assistant", "the lazy dog")])]
    upload = store.keep_upload(path, "harbour.jsonl", Checked("chat", 12, 900, shown))
    record = store.begin("harbour", "tiny", tiny_model.absolute(), upload, {"steps": 900, "rank": 8})
    record.state, record.step, record.steps, record.seconds = "done", 900, 900, 4000.0
    record.samples = [Sample("What says the fox?", "?? <b>no</b>", "the lazy dog", "the lazy dog jumps")]
    store.write(record)
    store.out(record).mkdir()
    rows = [{"step": i, "train_loss": 4 / i, "tokens": 10, "seconds": 0.1} for i in range(1, 901)]
    rows += [{"step": i, "valid_loss": 4 / (i + 1), "best": True} for i in range(0, 901, 90)]
    (store.out(record) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (store.out(record) / "adapter_config.json").write_text("{}")
    return record


def file(lines: list[Any], name: str = "harbour.jsonl") -> Any:
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return {"name": name, "mimeType": "application/json", "buffer": content}


def fill(page: Page, **settings: str) -> None:
    page.get_by_text("More settings").click()
    page.get_by_label("Unit of the length").select_option("steps")
    for label, value in settings.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(value)


def test_from_a_file_to_a_chat_with_the_adapter(at: Callable[..., Page], complaints: Complaints) -> None:
    complaints.allow("400")  # the file that is refused
    page = at()
    expect(page.get_by_text("Choose a model and data")).to_be_visible()
    choose = page.get_by_label("Choose a file")
    choose.set_input_files(file([*LINES, {"text": 5}], "bad.jsonl"))
    expect(page.get_by_role("alert").filter(has_text="bad.jsonl line 13")).to_be_visible(timeout=SLOW)
    choose.set_input_files(file(LINES))
    expect(page.get_by_role("radio", name="harbour.jsonl")).to_be_checked(timeout=SLOW)
    expect(page.locator(".tune-example").first).to_contain_text("the lazy dog jumps over the fox")
    takes = page.get_by_role("region", name="What it will take")
    expect(takes).to_contain_text("torch on cpu", timeout=SLOW)
    fill(page, Length="30", Learning_rate="0.01", Longest_text="96", Rank="4")
    page.get_by_label("Prompts for samples").fill("What says the fox number 3?")
    expect(takes).to_contain_text(re.compile(r"Steps\s*30"), timeout=SLOW)
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("heading", name="harbour")).to_be_focused()
    expect(page.get_by_role("button", name="Use in a chat")).to_be_visible(timeout=SLOW)
    check_run(page)
    page.get_by_role("button", name="Use in a chat").click()
    expect(page.locator(".header-model")).to_contain_text("tiny:harbour")
    box = page.get_by_role("textbox", name="Message")
    box.fill("What says the fox number 3?")
    box.press("Enter")
    expect(page.locator(".message.assistant").last).to_contain_text("lazy", timeout=SLOW)


def check_run(page: Page) -> None:
    """Of a run that has ended: numbers, curve, table and samples say the same."""
    run = page.get_by_role("article", name="harbour")
    expect(run).to_contain_text("30 steps of 30")
    expect(run.get_by_role("progressbar", name="Steps")).to_have_attribute("aria-valuenow", "30")
    expect(run.locator(".tune-sample-reply.after")).to_contain_text("lazy")
    chart = run.get_by_role("group", name="Loss by step")
    chart.focus()
    page.keyboard.press("Home")
    expect(run.locator(".tune-loss-readout")).to_contain_text("Step 0: validation")
    page.keyboard.press("ArrowRight")
    expect(run.locator(".tune-loss-readout")).to_contain_text("Step 1: training")
    run.get_by_text("The same as a table").click()
    expect(run.get_by_role("row")).to_have_count(32)  # its head, and steps 0 to 30
    assert run.locator("path.tune-curve").first.get_attribute("d")


def test_a_run_is_stopped_left_and_gone_on_with(at: Callable[..., Page]) -> None:
    page = at()
    page.get_by_label("Choose a file").set_input_files(file(LINES))
    expect(page.get_by_role("radio", name="harbour.jsonl")).to_be_checked(timeout=SLOW)
    fill(page, Length="2000", Longest_text="96", Rank="4", Name_of_the_adapter="long")
    page.get_by_role("button", name="Start training").click()
    number = page.locator(".tune-progress dd").first
    expect(number).to_have_text(re.compile(r"^[1-9]\d* of 2,000"), timeout=SLOW)
    page.reload()  # another page finds it where it is
    expect(number).to_have_text(re.compile(r"^[1-9]\d* of 2,000"))
    before = number.inner_text()
    expect(number).not_to_have_text(before)
    expect(page.get_by_text(re.compile("about .* left"))).to_be_visible()
    page.get_by_role("link", name="New run").click()
    expect(page.get_by_role("button", name="Start training")).to_be_disabled()
    expect(page.get_by_text("One run at a time")).to_be_visible()
    page.get_by_role("region", name="Runs").get_by_role("link", name="long").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible(timeout=SLOW)
    expect(page.locator(".tune-run-head [data-state=stopped]")).to_be_visible()
    expect(page.get_by_role("button", name="Use in a chat")).to_be_visible()  # what it has learnt so far
    page.get_by_role("button", name="Resume").click()
    expect(number).to_have_text(re.compile(r" of 2,000"), timeout=SLOW)
    expect(page.get_by_role("progressbar", name="Steps")).to_have_attribute("aria-valuemax", "2000")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Delete", exact=True)).to_be_visible(timeout=SLOW)
    page.get_by_role("button", name="Delete", exact=True).click()
    dialog = page.get_by_role("dialog", name="Delete long?")
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_have_count(0)
    page.get_by_role("button", name="Delete", exact=True).click()
    dialog.get_by_role("button", name="Delete the run").click()
    expect(page.get_by_role("button", name="Start training")).to_be_enabled()
    expect(page.get_by_role("region", name="Runs")).to_be_hidden()


def test_a_mistake_is_shown_at_its_field(at: Callable[..., Page], finished: Record, complaints: Complaints) -> None:
    complaints.allow("400")
    page = at()
    fill(page, Longest_text="4096")
    expect(page.get_by_role("region", name="What it will take")).to_contain_text("beyond the 512 tokens", timeout=SLOW)
    name = page.get_by_label("Name of the adapter")
    name.fill("a/b")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("alert").filter(has_text="`name` must be")).to_be_visible()
    expect(name).to_be_focused()
    expect(name).to_have_attribute("aria-invalid", "true")
    name.fill("ab")
    expect(name).not_to_have_attribute("aria-invalid", "true")
    rank = page.get_by_label("Rank", exact=True)
    rank.fill("0")
    page.get_by_role("button", name="Start training").click()
    expect(rank).to_be_focused()


@LOOKS
def test_its_views_by_axe(
    at: Callable[..., Page], axe: Callable[[Page], list[str]], finished: Record, width: int, theme: str
) -> None:
    page = at(width=width, theme=theme, reduced_motion="reduce")
    expect(page.get_by_role("radio", name="harbour.jsonl")).to_be_visible()
    for text in ("What a file looks like", "More settings"):
        page.get_by_text(text).click()
    expect(page.get_by_role("region", name="What it will take")).to_contain_text("torch on cpu", timeout=SLOW)
    page.get_by_text("Memory in parts").click()
    assert axe(page) == []
    narrow(page)
    page.get_by_role("link", name="harbour").click()
    expect(page.get_by_role("article", name="harbour")).to_contain_text("900 steps of 900")
    expect(page.locator(".tune-sample-reply").first).to_contain_text("<b>no</b>")  # it is text
    page.get_by_text("The same as a table").click()
    page.wait_for_timeout(300)
    assert axe(page) == []
    narrow(page)


def narrow(page: Page) -> None:
    """Nothing makes the view wider than it is."""
    assert (
        page.evaluate("() => { const t = document.getElementById('tuning'); return t.scrollWidth - t.clientWidth; }")
        <= 0
    )


def test_a_view_before_anything(at: Callable[..., Page], axe: Callable[[Page], list[str]]) -> None:
    page = at()
    expect(page.get_by_role("heading", name="Fine-tuning")).to_be_visible()
    expect(page.get_by_text("Watch the losses fall")).to_be_visible()
    page.get_by_text("What a file looks like").click()
    expect(page.get_by_text("the assistant's replies are learnt")).to_be_visible()
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("alert").filter(has_text="Choose a file of data first.")).to_be_visible()
    assert axe(page) == []
