"""The explorer as its users meet it: a real server, and a real browser that is watched."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import explored
import pytest
from explored import Explored
from playwright.sync_api import Browser, Page, sync_playwright
from watching import Watched, watch


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset's recipe; the dataset is `data` beside it."""
    return explored.make(tmp_path_factory.mktemp("explored"))


@pytest.fixture(scope="session")
def server(made: Path) -> Iterator[Explored]:
    with explored.serving(made.parent / "data", made) as address:
        yield Explored(made.parent / "data", made, address)


def chromium() -> str:
    """The machine's browser. Only where nobody counts on these tests are they skipped without one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("no chromium on this machine; .ci/run installs Debian's")
    pytest.skip("no chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    with sync_playwright() as playwright:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        running = playwright.chromium.launch(executable_path=path, args=arguments)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, server: Explored) -> Iterator[Page]:
    """A page of 1280 x 900; whatever it is led to, it goes nowhere else, says no error and runs no foreign script."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=server.address)
    context.set_default_timeout(10_000)
    opened = context.new_page()
    seen = watch(opened, server.address)
    yield opened
    context.close()
    assert seen == Watched()
