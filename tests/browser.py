"""Debian's Chromium, driven by Playwright, on pages of our own servers alone."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from debian import program

ARGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

ENDLESS = 100_000
"""Tokens that take longer to write than anyone takes to stop them: minutes."""

Visit = Callable[..., Any]
"""Open a server's page; `values` are of the sampling controls, the rest is Playwright's."""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    path = program("chromium", "chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(ARGS))
        yield running
        running.close()


def say(page: Any, text: str) -> str:
    """Send a message, wait for the whole answer, and return it."""
    before = page.locator(".turn").count()
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_function("n => document.querySelectorAll('.turn').length > n", arg=before)
    page.wait_for_selector(".turn:last-child .foot button")
    return page.locator(".turn .model .words").last.text_content()
