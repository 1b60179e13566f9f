"""The pictures in docs/images, of a real server with the demo tasks: `make screenshots`."""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page

from tests.clients.console.chromium import chromium
from tests.running_server import running_server

ROOT = Path(__file__).parents[3]
OUT = ROOT / "docs" / "images"
SIZE = {"width": 1180, "height": 760}
MAX_BYTES = 200_000
PROMPTS = {
    "pirate": "What do you think about the sea?",
    "extract": "Hello, I am Maria, writing to you from Lisbon.",
    "sentiment": "The room was dirty and loud.",
    "opposite": "rich",
}
SECOND = [
    {"role": "system", "content": "You are a polite butler. Answer in one short sentence."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I am James, at your service, madam."},
]


def main() -> None:
    """Take all of them."""
    OUT.mkdir(exist_ok=True)

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 100.0
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server("default", Path(folder) / "store", "--demo") as server,
        chromium() as browser,
    ):
        prepare(server.url)
        with load(server.url):
            take_live(browser, server.url, seconds)
            with page(browser, server.url, "light") as light:
                take_tasks(light)
                take_task(light)
            with page(browser, server.url, "dark") as dark:
                dark.goto("#/tasks")
                dark.wait_for_timeout(7000)
                save(dark, "console-dark")
        with page(browser, server.url, "light") as light:
            take_upload(light)
            take_playground(light)


@contextmanager
def page(browser: Browser, url: str, scheme: str) -> Iterator[Page]:
    context = browser.new_context(
        base_url=f"{url}/console/",
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport=SIZE,  # type: ignore[arg-type]
        reduced_motion="reduce",
    )
    try:
        yield context.new_page()
    finally:
        context.close()


def prepare(url: str) -> None:
    """A second version of one task gets a tenth of its traffic."""
    with httpx.Client(base_url=url, timeout=60) as http:
        http.post("/tasks/pirate/versions", json={"messages": SECOND}).raise_for_status()
        body = {"weights": {"1": 90, "2": 10}}
        http.put("/tasks/pirate/traffic", json=body).raise_for_status()
        http.post("/tasks/sentiment/versions/1/pin").raise_for_status()
        http.post("/tasks/extract/versions/1/evict")


@contextmanager
def load(url: str) -> Iterator[None]:
    """A few clients that ask and pause, more of them for a while."""
    ended = Event()
    with ThreadPoolExecutor(6) as pool, httpx.Client(base_url=url, timeout=60) as http:
        clients = [pool.submit(ask, http, number, ended) for number in range(6)]
        try:
            yield
        finally:
            ended.set()
        for client in clients:
            client.result()


def ask(http: httpx.Client, number: int, ended: Event) -> None:
    task = ("pirate", "sentiment", "pirate", "opposite", "pirate", "sentiment")[number]
    while not ended.wait(0.4 + 0.5 * number):
        if number > 3 and time.monotonic() % 40 < 15:
            continue  # they come and go
        http.post("/generate", params={"task": task}, json={"prompt": PROMPTS[task]})


def take_live(browser: Browser, url: str, seconds: float) -> None:
    with page(browser, url, "light") as live:
        live.goto("#/live")
        live.wait_for_timeout(seconds * 1000)
        save(live, "console-live", height=880)


def take_tasks(light: Page) -> None:
    light.goto("#/tasks")
    light.wait_for_timeout(9000)
    save(light, "console-tasks")


def take_task(light: Page) -> None:
    light.goto("#/task/pirate")
    light.get_by_role("button", name="v2", exact=True).click()
    light.wait_for_timeout(5000)
    save(light, "console-task", height=980)


def take_upload(light: Page) -> None:
    light.goto("#/upload")
    light.get_by_label("Task").fill("word")
    light.get_by_role("radio", name="Text").check()
    light.locator("textarea:visible").fill("go -> went\nsee -> saw\nplay -> played\n")
    light.get_by_role("button", name="Upload", exact=True).click()
    light.get_by_role("heading", name="v1 of word").wait_for(timeout=60_000)
    light.wait_for_timeout(6000)
    save(light, "console-upload", height=820)


def take_playground(light: Page) -> None:
    light.goto("#/playground?a=pirate@1&b=pirate@2")
    light.get_by_label("Prompt").fill("What is your favourite food?")
    light.wait_for_timeout(1000)
    light.get_by_role("button", name="Run", exact=True).click()
    light.get_by_text("tokens / s").nth(1).wait_for(timeout=60_000)
    light.wait_for_timeout(500)
    save(light, "console-playground", height=900)


def save(shown: Page, name: str, height: int = SIZE["height"]) -> None:
    """Reduce the colours, which are enough for these pictures in a third of the bytes."""
    shown.set_viewport_size({"width": SIZE["width"], "height": height})
    shown.mouse.move(0, 0)
    shown.wait_for_timeout(200)
    image = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
    path = OUT / f"{name}.png"
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    shown.set_viewport_size(SIZE)  # type: ignore[arg-type]
    num_bytes = path.stat().st_size
    assert num_bytes < MAX_BYTES, f"{path.name} has {num_bytes} bytes"
    sys.stdout.write(f"{path.relative_to(ROOT)} {num_bytes}\n")


if __name__ == "__main__":
    main()
