"""The playground in a real browser: phone and desktop, light and dark."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serve.fake_client import DEFAULT_REPLY, FakeEngine
from serve.live_server import LiveServer, live_server

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
SCHEMES = ("light", "dark")
DEADLINE_S = 30.0  # of what a page must come to show, however busy the machine
LONG_ANSWER = 2000  # sentences, minutes: it ends only when it is stopped


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "install chromium (tools/setup.sh --dev does)"
    expect.set_options(timeout=1000 * DEADLINE_S)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def slow_server() -> Iterator[LiveServer]:
    def reply(prompt: str) -> str:
        return DEFAULT_REPLY * (LONG_ANSWER if "long" in prompt else 3)

    with live_server(FakeEngine(reply=reply, delay=0.02, max_model_len=1 << 20)) as server:
        yield server


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in SCHEMES], ids="-".join)
def page(request: Any, browser: Browser, slow_server: LiveServer) -> Iterator[Page]:
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, is_mobile=size == "phone"
    )
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    # Chromium reports every 4xx answer as an error of its own; the page shows those itself.
    page.goto(slow_server.base)
    yield page
    context.close()
    assert [p for p in problems if "Failed to load resource" not in p] == []


def ask(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def test_an_answer_streams_in(page: Page) -> None:
    expect(page.locator("#model")).to_have_text("fake")
    ask(page, "hello")
    answer = page.locator("#messages li.assistant")
    expect(answer).to_contain_text("The answer")
    whole = (DEFAULT_REPLY * 3).strip()
    assert whole not in answer.inner_text()  # still on its way
    expect(answer).to_contain_text(whole)
    expect(page.locator("#status")).to_contain_text("tokens/s")
    expect(page.locator("#send")).to_be_enabled()


def test_stop_ends_the_answer_and_the_request(page: Page, slow_server: LiveServer) -> None:
    ask(page, "a long answer, please")
    expect(page.locator("#messages li.assistant")).to_contain_text("The")
    page.click("#stop")
    expect(page.locator("#status")).to_have_text("stopped")
    assert slow_server.wait_idle(DEADLINE_S)
    page.click("#clear")
    expect(page.locator("#messages li")).to_have_count(0)


def test_nothing_overflows_and_text_is_readable(page: Page) -> None:
    ask(page, "x" * 400)
    expect(page.locator("#messages li.assistant")).to_contain_text("The")
    overflow = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0
    for selector in ("body", "#messages li.user", "#send", ".muted"):
        assert contrast(page, selector) >= 4.5, selector


def test_charts_move_with_the_load(page: Page) -> None:
    if page.viewport_size["width"] < 760:
        page.click("#toggle-side")
    expect(page.locator("#charts figure")).to_have_count(6)
    expect(page.locator("#charts figure").first.locator("b")).to_have_text(re.compile(r"\d"))
    assert page.locator("#charts path").first.get_attribute("d").startswith("M")


def test_an_error_is_shown_as_such(page: Page) -> None:
    page.evaluate("document.querySelector('[name=top_p]').value = '7'")
    ask(page, "hello")
    expect(page.locator("#messages li.error")).to_contain_text("top_p")


def test_a_key_can_be_typed_into_the_page(browser: Browser) -> None:
    with live_server(FakeEngine(reply="fine"), api_key=("k",)) as server:
        for path in ("/", "/playground/app.js"):
            assert httpx.get(server.base + path).status_code == 401
        context = browser.new_context(http_credentials={"username": "any", "password": "k"})
        page = context.new_page()
        page.goto(server.base)
        expect(page.locator("#model")).to_have_text("fake")
        ask(page, "hello")
        expect(page.locator("#messages li.assistant")).to_contain_text("fine")
        context.close()


def test_unknown_files_are_404_and_nothing_is_fetched_from_elsewhere(
    slow_server: LiveServer,
) -> None:
    assert httpx.get(f"{slow_server.base}/playground/../config.py").status_code == 404
    assert httpx.get(f"{slow_server.base}/playground/x.js").status_code == 404
    page = httpx.get(slow_server.base)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text


def contrast(page: Page, selector: str) -> float:
    """The WCAG 2 contrast ratio of an element's text on the first opaque background behind it."""
    return page.evaluate(
        """selector => {
          const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
          const luminance = (c) => rgb(c).slice(0, 3).map((v) => v / 255)
            .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const element = document.querySelector(selector);
          let behind = element;
          const background = (e) => getComputedStyle(e).backgroundColor;
          const clear = (e) => rgb(background(e))[3] === 0;
          while (behind.parentElement && clear(behind)) behind = behind.parentElement;
          const a = luminance(getComputedStyle(element).color), b = luminance(background(behind));
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }""",
        selector,
    )
