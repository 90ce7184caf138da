"""The web app: its pages, what they share, and the server that answers on 127.0.0.1 alone."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from nicegui import ui

from pipeline.catalog import refresh
from pipeline.errors import PairmillError
from pipeline.explorer.appearance import COOKIE, open_appearance
from pipeline.explorer.boxes import Box, draw
from pipeline.explorer.explorer import Encode, Explorer
from pipeline.explorer.grid import said
from pipeline.explorer.guard import Guard
from pipeline.explorer.latest import ending_with_page
from pipeline.explorer.pages import duplicates, funnels, query, search, thresholds
from pipeline.explorer.visitors import Visitors
from pipeline.recipe import load
from pipeline.store.dataset import Dataset
from pipeline.store.pictures import encoded

HOST = "127.0.0.1"
LARGEST = 1024
"""Pixels of a picture's longer side."""
MOST_BOXES = 100
RESPONSE = 60.0
"""Seconds that a page may take to open: the catalog may have to be made anew, and others may be before it."""
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#3457d5"/>'
    '<path d="M7 8h18L18 17v8l-4-2v-6z" fill="#fff"/></svg>'
)
STYLE = (Path(__file__).parent / "explorer.css").read_text()


@dataclass(frozen=True)
class Page:
    """A page of the app; `build` fills the open page, as the package's docstring says."""

    path: str
    title: str
    icon: str
    build: Callable[[Explorer], Awaitable[None]]


PAGES = (
    Page("/", "Query", "manage_search", query.page),
    Page(thresholds.PATH, "Thresholds", "tune", thresholds.page),
    Page(duplicates.PATH, "Duplicates", "filter_none", duplicates.page),
    Page(search.PATH, "Search", "image_search", search.page),
    Page(funnels.PATH, "Funnels", "compare", funnels.page),
)


def serve(data: Path, recipe: Path | None = None, port: int = 0, encode: Encode | None = None) -> None:
    """Serve the explorer of a dataset until Ctrl-C. `port` 0: any that is free.

    Raises PairmillError where the dataset has no pairs yet, its tables are damaged, or the port is in use.
    """
    dataset = Dataset(data)
    settings = load(recipe) if recipe else None
    refresh(dataset)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen()  # who reads the address may connect at once, and waits for the first answer
        except OSError as error:
            raise PairmillError(f"port {port} cannot be had: {error.strerror}", "name another: PORT=8081") from None
        app = built(Explorer(dataset, settings, recipe, encode))
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, ws="wsproto", server_header=False)
        print(f"http://{HOST}:{listening.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            print()


def built(explorer: Explorer) -> Guard:
    """The whole app behind its guard."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await explorer.querying.warm()
        yield
        await explorer.querying.close()

    app = FastAPI(lifespan=life, openapi_url=None)
    app.get("/picture/{key}")(_pictures_of(explorer))
    for page in PAGES:
        ui.page(page.path, title=f"{page.title} · PairMill", response_timeout=RESPONSE)(partial(_open, page, explorer))
    ui.run_with(
        app,
        title="PairMill",
        dark=None,
        favicon=ICON,
        show_welcome_message=False,
        reconnect_timeout=10,
        gzip_middleware_factory=None,  # on the loopback, packing costs more than it saves
    )
    return Guard(Visitors(app))


def _pictures_of(explorer: Explorer) -> Callable[..., Awaitable[Response]]:
    async def picture(key: str, side: int = 256, boxes: str = "") -> Response:
        """A picture of the dataset, decoded and encoded anew, with an extractor's boxes drawn into it."""
        side = max(16, min(side, LARGEST))
        found = await _boxes(explorer, boxes, key) if boxes else []
        content = await asyncio.to_thread(_jpeg, explorer, key, side, found)
        if content is None:
            return Response(status_code=404)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})

    return picture


async def _boxes(explorer: Explorer, extractor: str, key: str) -> list[Box]:
    try:
        answer = await explorer.ask(
            "SELECT box.x1 AS x1, box.y1 AS y1, box.x2 AS x2, box.y2 AS y2, coalesce(label, '') AS label, "
            "coalesce(confidence, 0) AS confidence FROM regions WHERE extractor = ? AND key = ? "
            "ORDER BY confidence DESC",
            [extractor, key],
            rows=MOST_BOXES,
        )
    except PairmillError:  # the picture is worth more than its boxes
        return []
    return [Box(**row) for row in answer.rows]


def _jpeg(explorer: Explorer, key: str, side: int, boxes: list[Box]) -> bytes | None:
    image = explorer.pictures.image(key, side)
    if image is None:
        return None
    draw(image, boxes)
    return encoded(image)


async def _open(page: Page, explorer: Explorer, request: Request) -> None:
    with ending_with_page():
        await explorer.current.bring()
        await _build(page, explorer, request)


async def _build(page: Page, explorer: Explorer, request: Request) -> None:
    ui.add_css(STYLE)
    look = open_appearance(request.cookies.get(COOKIE))
    with ui.header().classes("explorer-header"):
        with ui.element("nav").classes("explorer-nav"):
            for other in PAGES:
                link = ui.link(target=other.path).classes("explorer-link").props(f'aria-label="{other.title}"')
                if other is page:
                    link.classes("explorer-here").props('aria-current="page"')
                with link:
                    ui.icon(other.icon)
                    ui.label(other.title)
        ui.label(f"PairMill · {explorer.dataset.root.resolve().name}").classes("explorer-dataset")
        contrast = ui.button(icon="contrast", on_click=look.toggle)
        contrast.props('flat round dense color="white" aria-label="light or dark"')
    with ui.column().classes("explorer-page"):
        if explorer.current.notice:
            ui.label(explorer.current.notice).classes("explorer-soft").props('role="status"')
        try:
            await page.build(explorer)
        except PairmillError as error:
            said(error)
    await ui.context.client.connected()
    await look.settle()
