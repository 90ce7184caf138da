"""The explorer as a user has it: the command's own process, and a real browser whose clock tells how long one waits."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, ElementHandle, Page, sync_playwright

WIDTH, HEIGHT = 1280, 900
PATIENCE = 60_000
"""Milliseconds after which a wait is an error."""

# Until what the click asked for is on the screen: new items, and every picture of them that can be seen is loaded.
_PICTURES = """
async (button) => {
  const items = () => [...document.querySelectorAll(".explorer-item")];
  const seen = (image) => {
    const place = image.getBoundingClientRect();
    return place.top < innerHeight && place.bottom > 0;
  };
  for (const item of items()) item.dataset.old = "1";
  const start = performance.now();
  button.click();
  while (performance.now() - start < %d) {
    await new Promise(requestAnimationFrame);
    const images = items().flatMap((item) => [...item.querySelectorAll("img")]).filter(seen);
    const fresh = items().every((item) => !item.dataset.old);
    if (fresh && images.length && images.every((image) => image.complete && image.naturalWidth)) {
      return { ms: performance.now() - start, urls: images.map((image) => image.currentSrc) };
    }
  }
  throw new Error("no pictures came");
}
""" % PATIENCE  # fmt: skip  # noqa: UP031 - braces are JavaScript's

# From the next key until the label says something else and that is painted.
_CHANGE = """
(label) => {
  window.changed = new Promise((resolve, reject) => {
    const before = label.textContent;
    setTimeout(() => reject(new Error("nothing changed")), %d);
    addEventListener("keydown", () => {
      const start = performance.now();
      new MutationObserver((_, observer) => {
        if (label.textContent !== before) {
          observer.disconnect();
          requestAnimationFrame(() => resolve(performance.now() - start));
        }
      }).observe(label, { childList: true, characterData: true, subtree: true });
    }, { capture: true, once: true });
  });
}
""" % PATIENCE  # fmt: skip  # noqa: UP031

_PAINTED = """
() => new Promise((resolve) => new PerformanceObserver((list) => {
  for (const entry of list.getEntriesByName("first-contentful-paint")) resolve(entry.startTime);
}).observe({ type: "paint", buffered: true }))
"""


@contextmanager
def serving(data: Path, recipe: Path) -> Iterator[str]:
    """`pairmill explore` on a free port; its address."""
    command = [sys.executable, "-m", "pipeline.cli", "explore", "--port", "0", "--data", data, "--recipe", recipe]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the explorer did not start")
            yield line.split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


@contextmanager
def browsing() -> Iterator[Browser]:
    """The machine's Chromium, headless."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise RuntimeError("no chromium on this machine: apt-get install chromium")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Browser, address: str) -> Iterator[Page]:
    """A page of a user who comes for the first time: nothing is in his browser's cache."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, base_url=address)
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


def painted(page: Page, path: str) -> float:
    """Go there; seconds until the browser painted the first content."""
    page.goto(path)
    return float(page.evaluate(_PAINTED)) / 1000


def pictures_after(page: Page, button: ElementHandle) -> tuple[float, list[str]]:
    """Click; seconds until all pictures that can be seen are loaded, and their addresses."""
    found = page.evaluate(_PICTURES, button)
    return found["ms"] / 1000, found["urls"]


def change_after(page: Page, key: str, label: ElementHandle) -> float:
    """Press a key; seconds until the label has changed and is painted."""
    page.evaluate(_CHANGE, label)
    page.keyboard.press(key)
    return float(page.evaluate("window.changed")) / 1000
