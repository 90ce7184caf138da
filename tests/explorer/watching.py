"""A browser's page that is watched."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from playwright.sync_api import Page


@dataclass
class Watched:
    """What a page did that none may do."""

    foreign: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


def watch(page: Page, address: str) -> Watched:
    """From now on, note requests to other hosts, errors on the console, and dialogs that scripts open."""
    seen, host = Watched(), urlsplit(address).netloc

    def request(url: str) -> None:
        if urlsplit(url).netloc != host and urlsplit(url).scheme not in ("data", "blob"):
            seen.foreign.append(url)

    page.on("request", lambda made: request(made.url))
    page.on("websocket", lambda opened: request(opened.url))
    page.on("console", lambda said: seen.console.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: seen.console.append(str(error)))

    def dialog(opened: object) -> None:
        seen.dialogs.append(opened.message)  # type: ignore[attr-defined]
        opened.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", dialog)
    return seen
