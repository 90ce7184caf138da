"""Search: pictures by words and by another picture, in the space of a run, of CLIP, or of a patch extractor."""

import asyncio
from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from pipeline.errors import PairmillError
from pipeline.explorer.explorer import Explorer
from pipeline.explorer.grid import picture_grid, said
from pipeline.explorer.latest import Latest
from pipeline.explorer.search import PLACE, Space, by_picture, by_vector, checked, spaces, without

PATH = "/search"
FOUND = 24
"""Pictures shown of a search."""


async def page(explorer: Explorer) -> None:
    body = ui.column().classes("w-full gap-2")
    given = dict(ui.context.client.request.query_params)
    await ui.context.client.connected()
    found = await asyncio.to_thread(spaces, explorer.dataset, explorer.recipe, explorer.encode)
    missing = without(explorer.dataset, explorer.recipe)
    with body:
        if found:
            _Search(explorer, found, given).start(given)
        else:
            ui.label(
                "Nothing has embeddings yet: train a run with itc or vse and run make embed, or have a patch extractor "
                "or [filter.clip] in the recipe."
            )
        for line in missing:
            ui.label(line).classes("explorer-soft")


class _Search:
    """One user's search."""

    def __init__(self, explorer: Explorer, found: list[Space], given: dict[str, str]) -> None:
        self.explorer, self.spaces = explorer, {space.name: space for space in found}
        self.latest = Latest()
        first = given.get("space") if given.get("space") in self.spaces else found[0].name
        with ui.row().classes("w-full items-center gap-3"):
            self.space = ui.select(list(self.spaces), value=first, label="in the space of", on_change=self._moved)
            self.space.classes("w-56").props("dense outlined")
            self.text = ui.input("words", value=given.get("text", "")).classes("grow min-w-48").props("dense outlined")
            self.text.props("clearable").on("keydown.enter", self.by_text)
            self.button = ui.button("Search", icon="search", on_click=self.by_text)
        with ui.row().classes("w-full items-center gap-3"):
            self.like = ui.input("or like the picture of this key or uid", value=given.get("like", ""))
            self.like.classes("grow min-w-48").props("dense outlined clearable")
            self.like.on("keydown.enter", self.by_picture)
            ui.button("Find similar", icon="image_search", on_click=self.by_picture).props("flat")
        self.note = ui.label().classes("explorer-soft")
        self.told = ui.label()
        self.results = ui.column().classes("w-full")
        self._moved()

    def start(self, given: dict[str, str]) -> None:
        """Do at once what the page's address asks for."""
        if given.get("like"):
            self.by_picture()
        elif given.get("text") and self._chosen().encode:
            self.by_text()

    def _chosen(self) -> Space:
        return self.spaces[str(self.space.value)]

    def _moved(self) -> None:
        space = self._chosen()
        self.note.text = f"{space.name}: {space.note}" if space.note else ""
        self.text.set_enabled(space.encode is not None)
        self.button.set_enabled(space.encode is not None)

    def by_text(self) -> None:
        text, space = str(self.text.value or "").strip(), self._chosen()
        if text and space.encode:
            self.latest.start(self._found, space, {"text": text})

    def by_picture(self) -> None:
        like = str(self.like.value or "").strip()
        if like:
            self.latest.start(self._found, self._chosen(), {"like": like})

    async def _found(self, space: Space, asked: dict[str, str]) -> None:
        ui.navigate.history.replace(f"{PATH}?{urlencode(asked | {'space': space.name})}")
        self.results.clear()
        self.told.text = "looking ..." if "like" in asked else "looking; the model is loaded at the first search ..."
        try:
            if "like" in asked:
                rows = await self._like(space, asked["like"])
            else:
                rows = await self._to_words(space, asked["text"])
        except PairmillError as error:
            self.told.text = ""
            with self.results:
                said(error)
            return
        self.told.text = f"{len(rows)} nearest pictures, by the cosine" if rows else "nothing was found"
        with self.results:
            await picture_grid(self.explorer, rows)

    async def _to_words(self, space: Space, text: str) -> list[dict[str, Any]]:
        assert space.encode
        vector = checked(await asyncio.to_thread(space.encode, text), space)
        return (await self.explorer.ask(by_vector(space), [vector, FOUND])).rows

    async def _like(self, space: Space, like: str) -> list[dict[str, Any]]:
        places = (await self.explorer.ask(PLACE, [like])).rows
        if not places:
            raise PairmillError(f"there is no picture of the key or uid {like!r}")
        rows = (await self.explorer.ask(by_picture(space), [places[0]["key"], FOUND])).rows
        if not rows:
            raise PairmillError(f"the picture {places[0]['key']} has no embedding here", "it may not be kept")
        return rows
