"""A browser, and pages that must ask nobody but their own server."""

import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from browser import ENDLESS, Visit, chromium
from http_server import serving

TIMEOUT_MS = 30_000
BRIEF = {"temperature": "0", "max_tokens": "4"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import expect

    expect.set_options(timeout=TIMEOUT_MS)
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("sessions")
    with serving(folder, limits={"max_tokens": ENDLESS}) as running:
        yield running


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Answers do not end before their most tokens; the page must throw no error."""
    with contextlib.ExitStack() as stack:

        def opened(
            server: SimpleNamespace,
            at: str = "",
            values: dict[str, str] | None = None,
            **options: Any,
        ) -> Any:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
            stack.callback(context.close)
            context.set_default_timeout(TIMEOUT_MS)
            said = json.dumps(json.dumps({**BRIEF, **(values or {})}))
            context.add_init_script(
                f"localStorage.getItem('retnet.sampling') ?? "
                f"localStorage.setItem('retnet.sampling', {said})"
            )
            page = context.new_page()
            page.route("**/v1/chat/completions", _endless)
            page.requested, page.failures = [], []
            page.on("request", lambda request: page.requested.append(request.url))
            page.on("pageerror", lambda error: page.failures.append(str(error)))
            page.on("console", lambda message: page.failures.extend(_refusals(message.text)))
            stack.callback(_asked_only, page, server.url)
            page.goto(f"{server.url}/{at}")
            page.wait_for_selector("#send:enabled, dialog[open]")
            return page

        yield opened


def _endless(route: Any) -> None:
    body = json.loads(route.request.post_data)
    route.continue_(post_data=json.dumps({**body, "logit_bias": {"256": -100}}))


def _refusals(text: str) -> list[str]:
    """What the browser says that the page's policy has forbidden."""
    return [text] if "Content Security Policy" in text or "Trusted" in text else []


def _asked_only(page: Any, url: str) -> None:
    assert page.requested
    elsewhere = [asked for asked in page.requested if not asked.startswith((f"{url}/", "blob:"))]
    assert elsewhere == []
    assert page.failures == []
