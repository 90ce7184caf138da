"""Stages that run while the explorer is open, readers who leave, and the browsers that are told apart."""

import asyncio
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from explored import Explored, serving
from nicegui import Client, ui
from playwright.sync_api import Browser, expect

from pipeline import filter, screen
from pipeline.catalog import refresh
from pipeline.engine import engine
from pipeline.explorer import current
from pipeline.explorer.current import UNJUDGED, Current
from pipeline.explorer.explorer import Explorer
from pipeline.explorer.latest import ending_with_page
from pipeline.explorer.thresholds import held_margin
from pipeline.explorer.visitors import Visitors
from pipeline.job import Job
from pipeline.recipe import load
from pipeline.store.dataset import Dataset
from pipeline.store.views.thresholds import RULES_QUERY, settings_of


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Dataset:
    shutil.copytree(made.parent / "data", tmp_path / "data")
    dataset = Dataset(tmp_path / "data")
    refresh(dataset)
    return dataset


def judged(dataset: Dataset, recipe: Path, stage: Any, **rules: float) -> None:
    name, found = stage.__name__.rpartition(".")[2], load(recipe)
    section = getattr(found, name)
    changed = found.model_copy(update={name: section.model_copy(update={"rules": section.rules | rules})})
    with closing(engine("local", 1)) as running:
        stage.run(Job(name, changed, dataset, running))


def test_what_stages_do_meanwhile_is_seen(made: Path, copied: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current, "_SECONDS", 0.0)

    async def run() -> None:
        explorer = Explorer(copied)

        async def kept() -> int:
            (setting,) = [
                each for each in settings_of((await explorer.ask(RULES_QUERY)).rows) if each.rule.name == "min_words"
            ]
            await explorer.current.bring()
            return (await held_margin(explorer, setting)).at(3.0).passing

        try:
            before = await kept()
            assert explorer.current.unjudged == ""
            judged(copied, made, screen, min_words=5.0)
            await explorer.current.bring()
            assert explorer.current.unjudged == UNJUDGED
            rules = {row["rule"]: row["threshold"] for row in (await explorer.ask(RULES_QUERY)).rows}
            assert rules["min_words"] == 5
            judged(copied, made, filter)
            await explorer.current.bring()
            assert (explorer.current.unjudged, explorer.current.notice) == ("", "")
            judged(copied, made, screen)
            judged(copied, made, filter)
            await explorer.current.bring()
            assert await kept() == before
        finally:
            await explorer.querying.close()

    asyncio.run(run())


def test_while_a_stage_is_under_way_the_catalog_of_before_answers(copied: Dataset) -> None:
    (copied.pairs.folder / "manifest.json").unlink()

    async def run() -> None:
        explorer = Explorer(copied)
        try:
            await explorer.current.bring()
            assert "A stage is under way" in explorer.current.notice
            assert "screened" in await explorer.views()
        finally:
            await explorer.querying.close()

    asyncio.run(run())


def test_many_pages_that_open_look_once(copied: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Dataset] = []
    monkeypatch.setattr(current, "refresh", looked.append)

    async def run() -> None:
        found = Current(copied)
        await asyncio.gather(*(found.bring() for _ in range(20)))

    asyncio.run(run())
    assert looked == [copied]


def test_each_browser_has_a_name_of_its_own() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"]["visitor"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        transport = httpx.ASGITransport(Visitors(app))
        for given in ({}, {"visitor": "<script>"}):
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", cookies=given) as client:
                first = await client.get("/")
                assert "HttpOnly" in first.headers["set-cookie"]
                client.cookies.clear()
                client.cookies.set("visitor", seen[-1])
                assert "set-cookie" not in (await client.get("/")).headers

    asyncio.run(run())
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert len(set(seen)) == 2


@pytest.mark.parametrize("is_left", [True, False])
@pytest.mark.parametrize("is_deaf", [True, False])
def test_what_waits_on_a_page_that_is_left_ends_without_a_word(is_left: bool, is_deaf: bool) -> None:
    async def run() -> tuple[list[str], Any]:
        went_on: list[str] = []
        answered = asyncio.Event()

        async def work() -> None:
            with client, ending_with_page():
                try:
                    async with asyncio.timeout(5):
                        await answered.wait()
                except asyncio.CancelledError:
                    if not is_deaf:
                        raise
                went_on.append("built")
                raise RuntimeError("The client this element belongs to has been deleted.")

        client = Client(ui.page(""), request=None)
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        if is_left:
            client.delete()
        else:
            answered.set()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        if not is_left:
            client.delete()
        return went_on, ended

    went_on, ended = asyncio.run(run())
    assert went_on == (["built"] if is_deaf or not is_left else [])
    assert (ended is None) == is_left


def test_pages_say_that_filter_lags(made: Path, copied: Dataset, browser: Browser) -> None:
    judged(copied, made, screen, min_words=5.0)
    with serving(copied.root, made) as address:
        page = browser.new_page(base_url=address)
        for path in ("/rules", "/funnels"):
            page.goto(path)
            expect(page.get_by_text(f"The numbers are not exact: {UNJUDGED}.")).to_be_visible()
        judged(copied, made, filter)
        page.wait_for_timeout(2100)
        page.goto("/rules")
        expect(page.locator(".explorer-count").first).to_be_visible()
        assert page.get_by_text(UNJUDGED).count() == 0
        page.close()


def test_on_a_phone_every_page_can_be_reached_and_every_verdict_read(server: Explored, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844}, base_url=server.address)
    page.goto("/?q=FROM kept LIMIT 4")
    for name in ("Query", "Thresholds", "Duplicates", "Search", "Funnels"):
        box = page.get_by_role("link", name=name, exact=True).bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    page.locator(".explorer-item").first.click()
    table = page.get_by_role("dialog").locator(".q-table__middle")
    expect(table.get_by_text("passed").first).to_be_visible()
    assert table.evaluate("element => element.scrollWidth <= element.clientWidth")
    page.close()
