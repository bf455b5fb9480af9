"""The page in a browser: messages, answers, and what becomes of a conversation."""

import json
from types import SimpleNamespace
from typing import Any

import requests
from playwright.sync_api import expect

from browser import ENDLESS, Visit, say
from http_server import wait_until

CHAT = "**/v1/chat/completions"
LONG = {"max_tokens": str(ENDLESS)}
MARKUP = '<img src=x onerror="window.hurt = 1"><script>window.hurt = 1</script><b>bold</b>'


def names(server: SimpleNamespace) -> list[str]:
    found = requests.get(f"{server.url}/v1/sessions", timeout=10).json()["data"]
    return [one["name"] for one in found]


def turns(page: Any) -> list[str]:
    return page.locator(".turn .user .words").all_text_contents()


NOTE_GROWTH = """() => {
  window.growth = [];
  const note = () => {
    const words = document.querySelector(".writing .words");
    const stop = document.getElementById("stop");
    if (words) window.growth.push([words.textContent.length, !stop.hidden]);
  };
  const all = { subtree: true, childList: true, characterData: true };
  new MutationObserver(note).observe(document.body, all);
}"""
"""Notes, whenever the page changes, how long the answer being written is, and whether it may be
stopped: a short answer can be complete before anyone outside the page has looked."""


def test_an_answer_is_shown_as_it_is_written_and_the_panel_draws_it(
    server: SimpleNamespace, visit: Visit
) -> None:
    page = visit(server, values={"max_tokens": "80"})
    assert page.inner_text("#model") == "tiny"
    page.evaluate(NOTE_GROWTH)
    page.fill("#prompt", "Once upon a time")
    page.press("#prompt", "Enter")
    page.wait_for_selector(".turn .foot button")
    lengths, stoppable = zip(*page.evaluate("window.growth"), strict=True)
    assert list(lengths) == sorted(lengths)
    assert len(set(lengths)) > 2
    assert stoppable[-1]
    assert page.inner_text("#title") == "Once upon a time"
    told = requests.get(f"{server.url}/v1/sessions/Once upon a time", timeout=10).json()
    (turn,) = told["turns"]
    answer = page.locator(".model .words").text_content()
    assert turn["meta"]["messages"][1]["content"] == answer
    assert f"{told['num_tokens']} tokens" in page.inner_text("#about")
    assert page.inner_text("#state-bytes") == f"{server.engine.state_bytes(0) / 1000:.0f} kB"
    cross = server.engine.state_bytes(0) / (2 * 4 * 128 * 4)
    assert f"cross at {-(-cross // 1):.0f} tokens" in page.inner_text("#memory-says")
    assert page.locator("#memory .line").count() == 3
    assert page.locator("#speed .line").count() == 1
    assert float(page.inner_text("#rate").replace(",", "")) > 0


def test_a_turn_that_is_stopped_is_not_kept_and_can_be_sent_again(
    server: SimpleNamespace, visit: Visit
) -> None:
    page = visit(server, values=LONG)
    page.fill("#prompt", "stop me")
    page.press("#prompt", "Enter")
    page.wait_for_selector(".writing")
    page.click("#stop")
    page.wait_for_selector(".turn.lost")
    assert "was not kept" in page.inner_text(".turn.lost .note")
    assert wait_until(lambda: server.engine.stats.rows == 0)
    assert "stop me" not in names(server)
    page.fill("#sampling-max_tokens", "4")
    busy = json.dumps({"error": {"code": "session_busy"}})  # while the server still lets go
    page.route(CHAT, lambda route: route.fulfill(status=409, body=busy), times=1)
    page.click("text=Send again")
    page.wait_for_selector(".turn:not(.lost) .foot button")
    assert turns(page) == ["stop me"]
    assert "stop me" in names(server)
    page.fill("#sampling-max_tokens", str(ENDLESS))
    page.fill("#prompt", "and me")
    page.press("#prompt", "Enter")
    page.wait_for_selector(".writing")
    page.keyboard.press("Escape")
    page.wait_for_selector(".turn.lost")
    page.click("text=Edit")
    assert page.input_value("#prompt") == "and me"
    assert turns(page) == ["stop me"]
    assert wait_until(lambda: server.engine.stats.rows == 0)


def test_a_turn_whose_end_got_lost_on_its_way_is_found_on_the_server(
    server: SimpleNamespace, visit: Visit
) -> None:
    page = visit(server)

    def cut(route: Any) -> None:
        whole = route.fetch().text()
        half = whole[: whole.index('"finish_reason":"length"')].rpartition("data: ")[0]
        route.fulfill(content_type="text/event-stream", body=half)

    page.route(CHAT, cut)
    page.fill("#prompt", "got through")
    page.press("#prompt", "Enter")
    page.wait_for_selector(".turn:not(.lost) .foot button")
    assert turns(page) == ["got through"]
    assert "had been complete" in (page.text_content("#status") or "")


def test_a_conversation_is_there_again_after_a_reload_and_goes_on(
    server: SimpleNamespace, visit: Visit
) -> None:
    page = visit(server)
    answers = [say(page, text) for text in ("reload one", "reload two")]
    page.reload()
    page.wait_for_selector(".turn:nth-child(2) .foot button")
    assert turns(page) == ["reload one", "reload two"]
    assert page.locator(".model .words").all_text_contents() == answers
    assert page.locator("#speed .line").count() == 1  # the server knows how long turns took
    read = server.engine.stats.tokens_read
    say(page, "three")
    assert server.engine.stats.tokens_read - read == len("\n\nUser:\nthree\n\nAssistant:\n")
    other = visit(server)
    other.click("#list a >> text=reload one")
    other.wait_for_selector(".turn:nth-child(3)")
    assert turns(other) == turns(page)


def test_fork_go_back_take_back_rename_and_delete(server: SimpleNamespace, visit: Visit) -> None:
    page = visit(server)
    for text in ("first", "second", "third"):
        say(page, text)
    page.locator(".turn").nth(1).get_by_text("Fork from here").click()
    page.click("#dialog-ok")
    expect(page.locator(".turn")).to_have_count(2)
    assert page.inner_text("#title") == "first fork"
    assert turns(page) == ["first", "second"]
    page.click("#list a >> text=/^first$/")
    expect(page.locator(".turn")).to_have_count(3)
    page.locator(".turn").nth(0).get_by_text("Go back to here").click()
    page.click("#dialog-ok")
    expect(page.locator(".turn")).to_have_count(1)
    told = requests.get(f"{server.url}/v1/sessions/first", timeout=10).json()
    assert len(told["turns"]) == 1
    page.click("#actions")
    page.click("[data-action=rename]")
    page.fill("#dialog-input", "first fork")
    page.click("#dialog-ok")
    expect(page.locator("#dialog-wrong")).to_contain_text("Choose another name")
    page.fill("#dialog-input", "erster/")
    page.click("#dialog-ok")
    expect(page.locator("#dialog-wrong")).to_contain_text("slash")
    page.fill("#dialog-input", "größer ?&#")
    page.click("#dialog-ok")
    expect(page.locator("#title")).to_have_text("größer ?&#")
    assert "größer ?&#" in names(server)
    page.click("text=Take back")  # the only turn: the conversation is gone, the message is not
    expect(page.locator(".turn")).to_have_count(0)
    assert page.input_value("#prompt") == "first"
    assert "größer ?&#" not in names(server)
    page.click("#list a >> text=first fork")
    page.wait_for_selector(".turn")
    page.click("#actions")
    page.click("[data-action=delete]")
    page.click("#dialog-ok")
    expect(page.locator("#title")).to_have_text("New conversation")
    assert "first fork" not in names(server)


def test_a_state_goes_out_and_comes_in_as_a_file(
    server: SimpleNamespace, visit: Visit, tmp_path: Any
) -> None:
    page = visit(server)
    say(page, "to file")
    say(page, "more")
    page.click("#actions")
    with page.expect_download() as coming:
        page.click("[data-action=export]")
    coming.value.save_as(tmp_path / "back again.safetensors")
    page.set_input_files("#file", tmp_path / "back again.safetensors")
    page.click("#dialog-ok")
    expect(page.locator("#title")).to_have_text("back again")
    assert turns(page) == ["more"]
    expect(page.locator("#notice")).to_contain_text("Imported")
    expect(page.locator("#list a[aria-current]")).to_contain_text("back again")
    page.click("#actions")
    page.click("[data-action=text]")
    page.wait_for_selector("#dialog-body:not(:empty)")
    assert "User:\nto file\n\nAssistant:\n" in (page.text_content("#dialog-body") or "")
    page.click("#dialog-ok")
    (tmp_path / "wrong.safetensors").write_bytes(b"not a state")
    page.set_input_files("#file", tmp_path / "wrong.safetensors")
    page.click("#dialog-ok")
    expect(page.locator("#dialog-wrong")).to_contain_text("refused")


def test_what_is_said_never_becomes_markup(server: SimpleNamespace, visit: Visit) -> None:
    page = visit(server)
    frames = [
        {"choices": [{"index": 0, "delta": {"content": MARKUP}, "finish_reason": None}]},
        {
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
            "session": {"name": MARKUP, "version": 1, "num_tokens": 9},
        },
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}},
    ]
    stream = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames) + "data: [DONE]\n\n"
    page.unroute(CHAT)
    page.route(
        CHAT,
        lambda route: route.fulfill(content_type="text/event-stream", body=stream),
    )
    assert say(page, MARKUP) == MARKUP
    assert turns(page) == [MARKUP]
    page.unroute(CHAT)
    page.goto(f"{server.url}/")
    say(page, MARKUP)  # and in the names of conversations
    page.reload()
    page.wait_for_selector(".turn")
    assert turns(page) == [MARKUP]
    assert page.locator("#log img, #log script, #log b, #list img, #list b").count() == 0
    assert page.evaluate("window.hurt") is None


def test_what_is_sent_before_the_server_answers_is_sent_then(
    server: SimpleNamespace, visit: Visit
) -> None:
    page = visit(server)
    held: list[Any] = []
    page.route("**/v1/engine", lambda route: held.append(route))
    with page.expect_request("**/v1/engine"):
        page.reload()
    page.fill("#prompt", "an early word")
    page.press("#prompt", "Enter")
    page.press("#prompt", "Enter")  # who is impatient does not say it twice
    assert page.input_value("#prompt") == "an early word"
    held.pop().continue_()
    page.wait_for_selector(".turn .foot button")
    assert turns(page) == ["an early word"]
