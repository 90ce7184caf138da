"""Light or dark: as the system has it until the reader chooses, and as chosen from then on, in every page."""

from collections.abc import Callable
from contextlib import suppress

from nicegui import app, ui

COOKIE = "appearance"
_KEY = "appearance"


class Appearance:
    """Of one open page. Plots and editors that have colours of their own follow by `on_change`."""

    def __init__(self, chosen: str | None) -> None:
        """`chosen`: the cookie; what is neither "dark" nor "light" leaves it to the system."""
        self._mode = ui.dark_mode({"dark": True, "light": False}.get(chosen or ""))
        self._followers: list[Callable[[bool], object]] = []

    def on_change(self, follow: Callable[[bool], object]) -> None:
        """Call `follow` with whether it is dark, at once where that is known, and whenever it changes."""
        self._followers.append(follow)
        if self._mode.value is not None:
            follow(self._mode.value)

    async def settle(self) -> None:
        """Once the browser is there: tell the followers what its system says, if the reader has not chosen."""
        if self._mode.value is None:
            with suppress(TimeoutError):  # the browser is busy or gone: what follows stays light
                self._tell(await self._is_dark())

    async def toggle(self) -> None:
        dark = not await self._is_dark()
        self._mode.value = dark
        chosen = "dark" if dark else "light"
        ui.run_javascript(f"document.cookie = '{COOKIE}={chosen}; path=/; max-age=31536000; samesite=strict'")
        self._tell(dark)

    async def _is_dark(self) -> bool:
        return bool(await ui.run_javascript("document.body.classList.contains('body--dark')", timeout=5))

    def _tell(self, dark: bool) -> None:
        for follow in self._followers:
            follow(dark)


def open_appearance(chosen: str | None) -> Appearance:
    """The page that is being built gets its appearance."""
    made = Appearance(chosen)
    app.storage.client[_KEY] = made
    return made


def appearance() -> Appearance:
    """That of the page that is being built."""
    found: Appearance = app.storage.client[_KEY]
    return found
