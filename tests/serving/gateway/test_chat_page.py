"""The chat page: its headers, and a conversation in a real browser."""

import re

import pytest
from tests.lab.browser import chromium
from tests.lab.waiting import wait_for

from .conftest import upstream_entry


def test_the_page_may_run_itself_alone_and_talk_to_the_gateway_alone(start, small):
    left_out = start(upstream_entry(small, ping=False), chat_page=False)
    assert left_out.client.get("/").status_code == 404
    page = start(upstream_entry(small, ping=False)).client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "://" not in policy
    assert len(re.findall("'sha256-", policy)) == 2
    # Nothing comes from elsewhere, and no text of a model is read as markup.
    assert not re.findall(r"(?:src|href)=\"(?!data:,)|https?://|innerHTML|localStorage", page.text)


@pytest.fixture
def page():
    """A page of Chromium; what the browser refused or missed is in `page.problems`."""
    with chromium() as browser:
        made = browser.new_page(viewport={"width": 900, "height": 800})
        made.problems = []
        made.on("console", lambda m: m.type == "error" and made.problems.append(m.text))
        made.on("pageerror", lambda error: made.problems.append(str(error)))
        yield made


def test_a_conversation_in_the_browser(start, small, large, page, tmp_path):
    gateway = start(upstream_entry(small, ping=False), upstream_entry(large, ping=False))
    answers = page.locator(".assistant")

    def wait_for_text(selector: str, text: str) -> None:
        wait_for(lambda: any(text in one for one in page.locator(selector).all_text_contents()))

    page.goto(f"{gateway.url}/")
    page.fill("#key", "tl-wrong")
    page.press("#key", "Tab")
    wait_for_text("#state", "valid API key")
    assert page.is_disabled("#send")
    # The browser itself tells of the answer 401.
    page.problems.clear()

    page.fill("#key", gateway.key)
    page.press("#key", "Tab")
    wait_for(lambda: page.is_enabled("#send"))
    large.token_delay_s = 0.5
    small.mode = "error"
    page.fill("#text", "one <b>two</b> three")
    page.press("#text", "Enter")
    # It is shown as it comes, not when it is over.
    wait_for_text(".assistant", "large-0 ")
    assert "large-4" not in answers.text_content()
    wait_for_text(".assistant", "tokens")
    shown = answers.text_content()
    assert "large-4" in shown
    assert "answered by large" in shown
    assert "fell back: upstream_5xx (small=upstream_5xx, large)" in shown
    assert "3 + 5 tokens" in shown
    assert page.inner_text(".user") == "one <b>two</b> three"

    small.mode = "ok"
    page.fill("#text", "and then?")
    page.click("#send")
    wait_for_text(".assistant", "answered by small")
    # The conversation goes along.
    roles = [message["role"] for message in small.requests()[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    wait_for(lambda: page.is_enabled("#send"))
    page.screenshot(path=tmp_path / "chat.png", full_page=True)
    assert (tmp_path / "chat.png").stat().st_size > 10_000

    small.words, small.token_delay_s = 500, 0.02
    page.fill("#text", "more")
    page.press("#text", "Enter")
    wait_for(lambda: "small-2 " in answers.nth(2).text_content())
    page.click("#stop")
    wait_for_text(".assistant .note", "stopped")
    assert small.cut_off.wait(5)
    assert gateway.rows(4)[-1]["status"] == "client_aborted"
    assert page.problems == []

    # The key is the tab's alone.
    page.reload()
    assert page.input_value("#key") == gateway.key
    assert page.evaluate("localStorage.length") == 0
    assert page.evaluate("document.cookie") == ""


def test_the_page_shows_what_a_model_was_measured_with(start, small, large, page, tmp_path):
    measured = {"system": "Answer with one of: track, refund.", "defaults": {"temperature": 0}}
    entries = [upstream_entry(small, ping=False, **measured), upstream_entry(large, ping=False)]
    models = [{"id": one["name"], "chain": [one["name"]]} for one in entries]
    gateway = start(*entries, models=models)

    def ask(server):
        before = len(server.requests())
        page.fill("#text", "hello")
        page.click("#send")
        wait_for(lambda: len(server.requests()) > before and page.is_enabled("#send"))
        body = server.requests()[-1]
        first = body["messages"][0]
        return first["content"] if first["role"] == "system" else None, body.get("temperature")

    page.goto(f"{gateway.url}/")
    page.fill("#key", gateway.key)
    page.press("#key", "Tab")
    wait_for(lambda: page.is_enabled("#send"))
    assert page.input_value("#system") == measured["system"]
    assert page.input_value("#temperature") == "0"
    assert ask(small) == (measured["system"], 0)
    page.screenshot(path=tmp_path / "measured.png")
    page.fill("#system", "Be short.")
    page.fill("#temperature", "0.7")
    assert ask(small) == ("Be short.", 0.7)
    # Without them on the page, too, what it shows is what is sent.
    page.fill("#system", "")
    assert ask(small) == ("", 0.7)
    page.select_option("#model", "large")
    assert (page.input_value("#system"), page.input_value("#temperature")) == ("", "")
    assert ask(large) == (None, None)
    page.select_option("#model", "small")
    assert page.input_value("#system") == measured["system"]
    assert page.problems == []


def test_the_policy_stops_a_script_that_is_not_the_pages(start, small, page):
    gateway = start(upstream_entry(small, ping=False))
    page.goto(f"{gateway.url}/")
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
        " document.body.append(s); }"
    )
    assert page.evaluate("window.bad") is None
    assert any("Content Security Policy" in problem for problem in page.problems)
