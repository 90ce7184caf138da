"""Pictures that are one, as strips: the one that stays, and those that fell to it."""

from collections import defaultdict
from typing import Any

from nicegui import ui

from pipeline.errors import PairmillError
from pipeline.explorer.duplicates import GROUPS, LOOKED_FOR, MOST, PICTURES, REMEDY
from pipeline.explorer.explorer import Explorer
from pipeline.explorer.grid import picture, picture_grid, said
from pipeline.explorer.latest import Latest, ending_with_page

PATH = "/duplicates"
A_PAGE = 12
"""Groups shown at once."""
SIDE = 240
"""Pixels of a picture in a strip, twice as many as it is shown with."""


async def page(explorer: Explorer) -> None:
    ui.label("Files of the same bytes and pictures that look alike, the largest group first.")
    note, told = ui.label().classes("explorer-soft"), ui.label()
    strips = ui.column().classes("w-full gap-4")
    pages = ui.row().classes("w-full justify-center")
    await ui.context.client.connected()
    if "duplicates" not in await explorer.views():
        told.text = "There are no pictures yet: run make download."
        return
    (looked_for,) = (await explorer.ask(LOOKED_FOR)).rows
    note.text = "" if looked_for["near"] else REMEDY
    note.set_visibility(not looked_for["near"])
    latest = Latest()

    async def show(number: int) -> None:
        try:
            groups = (await explorer.ask(GROUPS, [A_PAGE, (number - 1) * A_PAGE])).rows
            names = [row["group"] for row in groups]
            rows = (await explorer.ask(PICTURES, [names], rows=A_PAGE * MOST)).rows
        except PairmillError as error:
            strips.clear()
            with strips:
                said(error)
            return
        strips.clear()
        if not groups:
            told.text = "No two pictures are alike."
            return
        count = groups[0]["groups"]
        told.text = f"{count:,} groups; {groups[0]['fell']:,} pictures stand behind another one."
        if number == 1 and count > A_PAGE:
            pages.clear()
            with pages:
                last = -(-count // A_PAGE)
                turning = ui.pagination(1, last, direction_links=True)
                turning.props("max-pages=7").on_value_change(lambda event: latest.start(show, event.value))
        members: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            members[row["group"]].append(row)
        with strips:
            for group in groups:
                _strip(explorer, group["group"], group["pictures"], members[group["group"]])

    latest.start(show, 1)


def _strip(explorer: Explorer, stays: str, count: int, fallen: list[dict[str, Any]]) -> None:
    shown = [(stays, "stays"), *((row["key"], distance(row)) for row in fallen)]
    with ui.column().classes("explorer-card w-full gap-1"):
        more = f", the first {len(shown)} of them shown" if count > len(shown) else ""
        ui.label(f"{count:,} pictures{more}").classes("font-medium")
        with ui.row().classes("explorer-strip w-full no-wrap overflow-x-auto gap-2 items-end"):
            for key, said_of_it in shown:
                with ui.column().classes("shrink-0 gap-0 items-center"):
                    picture(key, SIDE, classes="explorer-thumbnail")
                    ui.label(said_of_it).classes("explorer-fact")
        with ui.expansion("Texts").classes("w-full").props("dense") as texts:
            under = ui.column().classes("w-full")

        async def opened() -> None:
            if texts.value and not under.default_slot.children:
                with ending_with_page(), under:
                    await picture_grid(explorer, [{"key": key} for key, _ in shown])

        texts.on_value_change(opened)


def distance(row: dict[str, Any]) -> str:
    """How far a picture that fell is from the one that stays."""
    if row["same_bytes"]:
        return "same bytes"
    return "same hash" if row["distance"] == 0 else f"{row['distance']} of 64 bits differ"
