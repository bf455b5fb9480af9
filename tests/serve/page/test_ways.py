"""The page by keyboard, on a phone, with a key, without sessions, and when something fails."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from playwright.sync_api import expect

from browser import ENDLESS, Visit, say
from http_server import serving

FIRST_STOPS = [
    *("skip", "new", "import", "scroll", "prompt", "send"),
    *("sampling-temperature", "sampling-top_p"),
]


@pytest.fixture(scope="module")
def guarded() -> Iterator[SimpleNamespace]:
    """A server with a key and without sessions."""
    with serving(keys=("right",), limits={"max_tokens": ENDLESS}) as running:
        yield running


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.id")


def test_the_keyboard_is_enough(server: SimpleNamespace, visit: Visit) -> None:
    page = visit(server, values={"max_tokens": str(ENDLESS)})
    expect(page.locator("#prompt")).to_be_focused()
    page.focus("#skip")
    stops = ["skip"]
    while len(stops) < len(FIRST_STOPS):
        page.keyboard.press("Tab")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        shadow = "getComputedStyle(document.activeElement.parentElement).boxShadow"
        assert page.evaluate(outline) != "none" or "0px 0px 0px 1px" in page.evaluate(shadow)
        if focused(page) in FIRST_STOPS:  # between them are the conversations of other tests
            stops.append(focused(page))
    assert stops == FIRST_STOPS
    page.focus("#prompt")
    page.keyboard.type("two")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("lines")
    page.keyboard.press("Enter")
    page.wait_for_selector(".writing")
    assert page.locator(".user .words").text_content() == "two\nlines"
    page.keyboard.press("Escape")
    page.wait_for_selector(".lost")
    assert focused(page) == "prompt"
    assert page.locator(".model").get_attribute("aria-busy") is None
    page.fill("#sampling-max_tokens", "3")
    page.locator("text=Send again").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn:not(.lost) .foot button")
    page.focus("#actions")
    page.keyboard.press("Enter")
    expect(page.locator("[data-action=fork]")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#dialog-input")).to_be_focused()
    page.keyboard.press("Escape")
    assert not page.is_visible("#dialog")


def test_a_phone_has_drawers_and_nothing_beyond_its_width(
    server: SimpleNamespace, visit: Visit
) -> None:
    page = visit(server, viewport={"width": 360, "height": 640}, color_scheme="dark")
    say(page, "w" * 300 + " narrow")
    sideways = "document.documentElement.scrollWidth > innerWidth"
    inside = """[...document.querySelectorAll('body *')].filter(node => {
        const box = node.getBoundingClientRect();
        return box.width > 0 && box.right > innerWidth + 1 && !node.closest('.unseen, svg');
    }).map(node => node.id || node.className)"""
    assert not page.evaluate(sideways)
    assert page.evaluate(inside) == []
    for drawer in ("panel", "sidebar"):
        assert not page.is_visible(f"#{drawer}")
        page.click(f"[popovertarget={drawer}]")
        assert page.is_visible(f"#{drawer}")
        assert not page.evaluate(sideways)
        assert page.evaluate(inside) == []
        page.keyboard.press("Escape")
        assert not page.is_visible(f"#{drawer}")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    still = "getComputedStyle(document.querySelector('button')).transitionProperty"
    assert page.evaluate(still) == "none"


def test_a_key_is_asked_for_and_a_server_without_sessions_is_sent_all(
    guarded: SimpleNamespace, visit: Visit
) -> None:
    page = visit(guarded)
    page.wait_for_selector("#dialog[open]")
    for key in ("wrong", "right"):
        page.fill("#dialog-input", key)
        page.click("#dialog-ok")
        if key == "wrong":
            expect(page.locator("#dialog-wrong")).to_contain_text("does not know this key")
    expect(page.locator("#model")).to_have_text("tiny")
    assert "keeps no conversations" in page.inner_text("#no-sessions")
    first = say(page, "one")
    with page.expect_request("**/v1/chat/completions") as asked:
        second = say(page, "two")
    sent = json.loads(asked.value.post_data)
    assert "session" not in sent
    assert [message["content"] for message in sent["messages"]] == ["one", first, "two"]
    page.reload()  # the tab knows the key, and what was said
    page.wait_for_selector(".turn:nth-child(2)")
    assert page.locator(".model .words").all_text_contents() == [first, second]
    page.click("text=Take back")
    assert page.input_value("#prompt") == "two"
    page.evaluate("sessionStorage.removeItem('retnet.key')")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#dialog[open]")
    page.fill("#dialog-input", "right")
    page.click("#dialog-ok")
    page.wait_for_selector(".turn:nth-child(2):not(.lost) .foot button")
    page.click("text=Take back")
    page.fill("#sampling-max_tokens", str(ENDLESS))
    page.press("#prompt", "Enter")
    page.wait_for_selector(".writing")
    page.click("#stop")
    page.wait_for_selector(".turn:nth-child(2) .foot button")
    assert "Stopped here" in page.locator(".turn .note").last.inner_text()
    page.click("#new")
    expect(page.locator(".turn")).to_have_count(0)


FAULTS = [
    (429, {"code": "queue_full"}, {"Retry-After": "7"}, "Try again in 7 seconds"),
    (409, {"code": "session_busy"}, {}, "perhaps another tab"),
    (
        503,
        {"code": "sessions_unavailable", "message": "no space"},
        {},
        "conversations now: no space",
    ),
    (503, {"code": "shutting_down"}, {"Retry-After": "1"}, "shutting down"),
    (400, {"message": "min_p: too small"}, {}, "The server refused this: min_p: too small"),
]


def test_errors_are_told_in_plain_words_and_the_message_is_not_lost(
    server: SimpleNamespace, visit: Visit
) -> None:
    page = visit(server)

    def fails(**answer: Any) -> str:
        page.unroute("**/v1/chat/completions")
        page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))
        page.click("text=Send again") if page.locator(".lost").count() else say(page, "hear me")
        page.wait_for_selector(".turn.lost .foot button")
        return page.inner_text(".turn.lost .note")

    for status, error, headers, words in FAULTS:
        assert words in fails(status=status, headers=headers, body=json.dumps({"error": error}))
    piece = {"choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]}
    half = f"data: {json.dumps(piece)}\n\n"
    stream = {"content_type": "text/event-stream"}
    assert "connection broke" in fails(**stream, body=half)
    told = {"error": {"message": "no token is left", "type": "invalid_request_error"}}
    failed = f"{half}data: {json.dumps(told)}\n\ndata: [DONE]\n\n"
    assert "no token is left" in fails(**stream, body=failed)
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/**", lambda route: route.abort())
    page.click("text=Send again")
    expect(page.locator(".lost")).to_contain_text("be reached")
    page.unroute("**/v1/**")
    page.click("text=Send again")
    page.wait_for_selector(".turn:not(.lost) .foot button")
    assert page.locator(".user .words").all_text_contents() == ["hear me"]


def test_what_was_changed_or_deleted_elsewhere_is_told(
    server: SimpleNamespace, visit: Visit
) -> None:
    page = visit(server)
    say(page, "elsewhere")
    body = {"model": "tiny", "session": "elsewhere", "max_tokens": 2}
    body["messages"] = [{"role": "user", "content": "from another"}]
    assert requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=10).ok
    say(page, "mine")
    assert "changed elsewhere" in page.inner_text(".turn.lost .note")
    page.click("text=Show it as it is now")
    expect(page.locator(".user .words")).to_have_text(["elsewhere", "from another"])
    assert page.input_value("#prompt") == "mine"
    requests.delete(f"{server.url}/v1/sessions/elsewhere", timeout=10)
    say(page, "mine")
    assert "deleted or renamed elsewhere" in page.inner_text(".turn.lost .note")
    gone = requests.get(f"{server.url}/v1/sessions/elsewhere", timeout=10)
    assert gone.status_code == 404  # and no new one has its name
    page = visit(server, at="#never there")
    expect(page.locator("#notice")).to_contain_text("is gone")


def test_a_value_that_cannot_be_used_is_not_sent(server: SimpleNamespace, visit: Visit) -> None:
    page = visit(server)
    expect(page.locator("#model")).to_have_text("tiny")
    page.fill("#sampling-temperature", "3")
    page.fill("#prompt", "hot")
    page.press("#prompt", "Enter")
    assert focused(page) == "sampling-temperature"
    assert page.locator(".turn").count() == 0
    page.click("#reset")
    with page.expect_request("**/v1/chat/completions") as asked:
        page.press("#prompt", "Enter")
    sent = json.loads(asked.value.post_data)
    assert (sent["temperature"], sent["top_p"], sent["top_k"]) == (0.8, 0.95, 0)
    assert "seed" not in sent


def test_the_files_are_public_checked_for_changes_and_held_to_a_policy(
    guarded: SimpleNamespace,
) -> None:
    def get(path: str, **headers: str) -> requests.Response:
        return requests.get(guarded.url + path, headers=headers, timeout=10)

    page = get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    script = get("/page/app.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    for answer in (page, script):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-content-type-options"] == "nosniff"
    again = get("/page/app.js", **{"If-None-Match": script.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" in again.headers
    assert requests.head(guarded.url, timeout=10).status_code == 200
    for path in ("/page/none.js", "/page/%2e%2e/__init__.py", "/page/..%2f__init__.py", "/page/"):
        assert get(path).status_code == 404
    for path in ("/v1/engine", "/v1/sessions", "/metrics", "/page", "/page%2f../v1/engine"):
        assert get(path).status_code in (401, 404)
    assert get("/v1/engine").status_code == 401
