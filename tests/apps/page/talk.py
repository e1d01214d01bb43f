"""What a person does in a chat, for tests of the page."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, Route, expect

LOOKS = pytest.mark.parametrize(
    ("width", "theme"),
    [
        (1280, "light"),
        (390, "dark"),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
"""Wide and as on a phone, in both themes."""

PROSE = """## A ring of slots

Each new token takes the place of the **oldest** one.

```python
def slot(position):
    return position % 8
```

| setting | bytes |
| --- | --- |
| f16 | 40,960 |

So $a^2$ bytes."""


def field(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message", exact=True)


def ask(page: Page, text: str) -> None:
    field(page).fill(text)
    field(page).press("Enter")


def ended(page: Page) -> None:
    """Wait until no reply is being written."""
    expect(page.locator(".message.assistant").last).to_be_visible()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden()
    expect(page.locator(".progress")).to_have_count(0)


def replies(page: Page) -> Locator:
    return page.locator(".message.assistant")


def questions(page: Page) -> Locator:
    return page.locator(".message.user")


def press(place: Locator, name: str) -> None:
    """A button of a message; it shows its buttons to a mouse that is over it."""
    place.hover()
    place.get_by_role("button", name=name, exact=True).click()


def hold(page: Page, requests: str) -> Callable[[], None]:
    """Keep requests back, by a pattern of their addresses, until what this returns is called."""
    held: list[Route] = []

    def release() -> None:
        for each in held:
            each.continue_()
        page.unroute(requests)

    page.route(requests, lambda route: held.append(route))
    return release
