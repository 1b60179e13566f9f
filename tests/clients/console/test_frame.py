"""The frame: keyboard alone, light and dark, narrow windows, charts, a server that goes away."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.clients.console.conftest import Open
from tests.clients.console.pushes import push
from tests.server.fakes import FakeEngine
from tests.server.live import LiveServer

VIEWS = {
    "/tasks": "alpha",
    "/task/alpha": "Versions",
    "/upload": "Check only",
    "/playground": "The frozen model",
    "/live": "KV pool",
}
"""And a text that is there when it is."""
LUMINANCE = """() => getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g)
  .slice(0, 3).reduce((sum, part) => sum + Number(part), 0)"""


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the control with this name has the focus, and check that this is seen."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        if focused.count() == 0:
            continue  # past the last control: the browser's own come before the first
        said = focused.get_attribute("aria-label") or focused.inner_text() or ""
        labels = focused.evaluate("(e) => [...(e.labels ?? [])].map((l) => l.textContent)")
        if name in (said.strip(), *labels):
            assert focused.evaluate("(e) => getComputedStyle(e).outlineStyle") != "none"
            return
    raise AssertionError(f"Tab does not lead to {name}")


def test_the_keyboard_alone_swaps_a_version_and_runs_a_prompt(
    open_page: Open, http: httpx.Client
) -> None:
    push(http, "alpha", 1, 2)
    page = open_page()
    page.get_by_role("link", name="alpha").wait_for()
    keyboard = page.keyboard

    keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    keyboard.press("Enter")
    tab_to(page, "alpha")
    keyboard.press("Enter")
    page.get_by_role("button", name="Activate v2").wait_for()
    tab_to(page, "Share of the traffic")
    for _ in range(5):
        keyboard.press("ArrowRight")
    keyboard.press("Enter")  # a form's Enter is its Apply
    expect(page.locator(".splitting")).to_have_text("v1 95 % · v2 5 %")
    tab_to(page, "v2")
    keyboard.press("Enter")
    expect(page.locator("#version-2")).to_be_visible()
    expect(page.get_by_role("button", name="v2", exact=True)).to_be_focused()
    tab_to(page, "Delete v2")
    keyboard.press("Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Delete v2")).to_be_focused()
    page.goto("#/playground")
    expect(page.get_by_label("Task A")).to_have_value("alpha")
    tab_to(page, "Prompt")
    keyboard.type("hi")
    keyboard.press("Control+Enter")
    expect(page.locator(".stats").nth(0)).to_contain_text("Total")


def test_every_control_has_a_name(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1, 2)
    page = open_page()
    for view, text in VIEWS.items():
        page.goto(f"#{view}")
        page.get_by_text(text).first.wait_for()
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("input, select, textarea, button, a")]
              .filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel))
              .map((e) => e.outerHTML)"""
        )
        assert nameless == [], view


def test_it_is_dark_where_the_system_is_and_the_toggle_wins(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    page.get_by_text("No tasks yet").wait_for()
    assert page.evaluate(LUMINANCE) < 150

    toggle = page.get_by_role("button", name="Colours")
    toggle.click()
    expect(toggle).to_have_text("Light")
    assert page.evaluate(LUMINANCE) > 600
    page.reload()
    expect(toggle).to_have_text("Light")
    toggle.click()
    expect(toggle).to_have_text("Dark")
    assert page.evaluate(LUMINANCE) < 150


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_contrast_with_their_background(
    open_page: Open, http: httpx.Client, scheme: str
) -> None:
    """WCAG's 4.5 to 1, of the colours as the browser computes them."""
    page = open_page(color_scheme=scheme)
    page.get_by_text("No tasks yet").wait_for()
    ratios = page.evaluate(
        """() => {
          const box = document.createElement("p");
          document.body.append(box);
          const channels = (name) => {
            box.style.color = `var(--${name})`;
            const [r, g, b] = getComputedStyle(box).color.match(/[\\d.]+/g).map((c) => c / 255);
            const line = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * line(r) + 0.7152 * line(g) + 0.0722 * line(b);
          };
          const ratio = (a, b) => {
            const [low, high] = [channels(a), channels(b)].sort((x, y) => x - y);
            return (high + 0.05) / (low + 0.05);
          };
          const pairs = [["ink", "paper"], ["muted", "paper"], ["muted", "surface"],
            ["muted", "sunken"], ["accent", "surface"], ["accent", "accent-soft"],
            ["on-accent", "accent"], ["bad", "surface"], ["bad", "bad-soft"],
            ["muted", "bad-soft"]];
          return Object.fromEntries(pairs.map(([a, b]) => [`${a} on ${b}`, ratio(a, b)]));
        }"""
    )
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


def test_nothing_is_wider_than_a_narrow_window(open_page: Open, http: httpx.Client) -> None:
    push(http, "alpha", 1, 2)
    http.patch("/tasks/alpha", json={"description": "x" * 300}).raise_for_status()
    page = open_page(viewport={"width": 360, "height": 700})
    for view, text in VIEWS.items():
        page.goto(f"#{view}")
        page.get_by_text(text).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view


def test_charts_follow_the_metrics(open_page: Open, http: httpx.Client, engine: FakeEngine) -> None:
    push(http, "alpha", 1)
    engine.stats.num_running, engine.stats.num_waiting = 3, 17
    page = open_page("/live")
    queue = page.locator("figure", has_text="Queue")
    expect(queue.locator(".value").nth(1)).to_have_text("17")

    http.post("/generate?task=alpha", json={"prompt": "hi", "max_tokens": 3}).raise_for_status()
    throughput = page.locator("figure", has_text="Throughput")
    generated = throughput.locator(".value").nth(0)
    for _ in range(100):
        engine.stats.num_decode_tokens += 100
        page.wait_for_timeout(100)
        if re.fullmatch(r"[1-9]\d\d / s", generated.inner_text()):
            break
    assert 100 < int(generated.inner_text().split()[0]) < 1100

    ttft = page.locator("figure", has_text="Time to first token")
    expect(ttft.locator(".value").nth(0)).to_have_text(re.compile(r"^\d+(\.\d)? ms"))
    drawn = throughput.locator("path.line.series-0").get_attribute("d")
    assert drawn is not None
    assert drawn.count("L") >= 1
    assert "Throughput: Generated" in (throughput.locator("svg").get_attribute("aria-label") or "")


def test_a_hidden_page_asks_nothing(open_page: Open) -> None:
    page = open_page("/live")
    page.get_by_text("KV pool").wait_for()
    page.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", { get: () => true });
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    page.wait_for_timeout(500)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.wait_for_timeout(3000)
    assert sent == []


def test_a_server_that_stops_is_reported(open_page: Open, live: LiveServer) -> None:
    page = open_page("/live")
    page.get_by_text("KV pool").wait_for()

    page.route("**/metrics", lambda route: route.abort())

    expect(page.locator(".problem")).to_contain_text("The server is unreachable")


def test_the_policy_lets_nothing_in_that_is_not_ours(open_page: Open, http: httpx.Client) -> None:
    """HTML from text, inline handlers, other hosts and scripts: each is tried, and stopped."""
    page = open_page()
    page.get_by_text("No tasks yet").wait_for()
    policy = http.get("/console/").headers["Content-Security-Policy"]
    assert "unsafe" not in policy

    stopped = page.evaluate(
        """async () => {
          const main = document.querySelector("main");
          const refused = async (attempt) => {
            try { await attempt(); return false; } catch { return true; }
          };
          return [
            await refused(() => { main.innerHTML = "<b>x</b>"; }),
            await refused(() => main.setAttribute("onclick", "alert(1)")),
            await refused(() => fetch("http://127.0.0.1:1/")),
            await refused(() => import("data:text/javascript,1")),
          ];
        }"""
    )

    assert stopped == [True] * 4
    assert len(page.found) >= 4  # and reported, as it would be in any other test
    page.found.clear()
