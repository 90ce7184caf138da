"""Thresholds against the stages themselves, and the page in a browser."""

import math
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from explored import SCRIPT, Explored, serving
from made_dataset import Image, jpeg, made_dataset, run_filter
from playwright.sync_api import Browser, Page, expect
from watching import Watched, watch

from pipeline import filter, screen
from pipeline.catalog import refresh
from pipeline.engine import engine
from pipeline.explorer import margins
from pipeline.explorer.margins import Margin
from pipeline.job import Job
from pipeline.recipe import Recipe, load
from pipeline.rules import RULES
from pipeline.store.dataset import Dataset
from pipeline.store.views.thresholds import RULES_QUERY, Setting, settings_of


def rows(connection: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    found = connection.sql(query)
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Dataset:
    """A dataset of this test's own, to judge anew."""
    shutil.copytree(made.parent / "data", tmp_path / "data")
    dataset = Dataset(tmp_path / "data")
    refresh(dataset)
    return dataset


def measured(dataset: Dataset) -> dict[str, Margin]:
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        found = settings_of(rows(connection, RULES_QUERY))
        return {
            setting.rule.name: Margin.of(setting, connection.execute(margins.margin_query(setting)).fetchnumpy())
            for setting in found
        }


def changed(recipe: Recipe, stage: str, rules: dict[str, float]) -> Recipe:
    section = getattr(recipe, stage)
    return recipe.model_copy(update={stage: section.model_copy(update={"rules": section.rules | rules})})


@pytest.mark.parametrize(
    ("rule", "thresholds"), [("min_side", (0, 24, 25, 96, 97, 1000)), ("max_aspect", (0.5, 1, 1.5))]
)
def test_filter_keeps_as_many_as_was_said(
    made: Path, copied: Dataset, rule: str, thresholds: tuple[float, ...]
) -> None:
    margin = measured(copied)[rule]
    assert margin.at(margin.setting.threshold).kept == copied.filtered.manifest.count("kept")
    with duckdb.connect(str(copied.catalog), read_only=True) as connection:
        asked = "SELECT kept, undecided FROM would_keep(?, ?)"
        said = [connection.execute(asked, [rule, threshold]).fetchall()[0] for threshold in thresholds]
    for threshold, by_sql in zip(thresholds, said, strict=True):
        found = margin.at(threshold)
        with closing(engine("local", 1)) as running:
            filter.run(Job("filter", changed(load(made), "filter", {rule: threshold}), copied, running))
        assert (found.kept, found.undecided) == (copied.filtered.manifest.count("kept"), 0)
        assert (found.kept, found.undecided) == by_sql


@pytest.mark.parametrize(
    ("rule", "thresholds"), [("min_words", (0, 1, 2, 4, 6, 99)), ("max_characters", (0, 20, 25, 60, 81, 1e6))]
)
def test_screen_passes_as_many_as_was_said(
    made: Path, copied: Dataset, rule: str, thresholds: tuple[float, ...]
) -> None:
    margin, now = measured(copied)[rule], copied.screened.manifest.count("kept")
    assert margin.at(margin.setting.threshold).passing == now
    with duckdb.connect(str(copied.catalog), read_only=True) as connection:
        asked = "SELECT kept, undecided FROM would_keep(?, ?)"
        said = [connection.execute(asked, [rule, threshold]).fetchall()[0] for threshold in thresholds]
        before = {uid for (uid,) in connection.sql("SELECT uid FROM kept").fetchall()}
        seen = {uid for (uid,) in connection.sql("SELECT uid FROM screened WHERE failures = 0").fetchall()}
    for threshold, by_sql in zip(thresholds, said, strict=True):
        found = margin.at(threshold)
        with closing(engine("local", 1)) as running:
            screen.run(Job("screen", changed(load(made), "screen", {rule: threshold}), copied, running))
        with copied.connect() as connection:
            passing = {uid for (uid,) in connection.sql("SELECT uid FROM screened WHERE failures = 0").fetchall()}
        assert found.passing == len(passing)
        assert (found.kept, found.undecided) == (len(before & passing), len(passing - seen))
        assert (found.kept, found.undecided) == by_sql


def test_what_the_counts_do_not_know_is_said() -> None:
    rules = [{"stage": "filter", "rule": "max_copies", "takes": "number", "measure": "copy"}]
    words = Setting(RULES["min_words"], 3.0, 3.0)
    near, far = Setting(RULES["near_duplicates"], 2.0, 2.0), Setting(RULES["near_evaluation"], 4.0, 4.0)
    side = Setting(RULES["min_side"], 32.0, 32.0)
    assert "max_copies" in margins.caveat([(words, 4.0)], rules)
    assert margins.caveat([(words, 4.0)], []) == ""
    assert margins.caveat([(side, 50.0)], rules) == ""
    assert "radius" in margins.caveat([(near, 4.0)], [])
    assert "radius" in margins.caveat([(far, 5.0)], [])
    assert margins.caveat([(far, 3.0)], []) == ""


def kept(page: Page, rule: str) -> int:
    return int(page.locator(f"[data-rule={rule}] .explorer-count").inner_text().split()[0].replace(",", ""))


def test_a_slider_moves_by_keys_and_mouse_and_the_count_follows(page: Page, server: Explored) -> None:
    page.goto("/rules")
    rule = page.locator("[data-rule=min_words]")
    expect(rule.locator(".explorer-count")).to_be_visible()
    margin = measured(Dataset(server.data))["min_words"]
    assert kept(page, "min_words") == margin.at(3.0).kept
    rule.locator(".q-slider [tabindex='0']").focus()
    for threshold in (4.0, 5.0):
        page.keyboard.press("ArrowRight")
        expect(rule.get_by_role("spinbutton")).to_have_value(f"{threshold:g}")
        expect(rule.locator(".explorer-count")).to_contain_text(f"{margin.at(threshold).kept} pairs kept")
    box = rule.locator(".q-slider__track-container").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    expect(rule.locator(".explorer-count")).to_contain_text("0 pairs kept")
    expect(page.get_by_text("Your thresholds")).to_be_visible()


def test_a_choice_is_in_the_address_and_is_written_as_a_recipe(page: Page, server: Explored, tmp_path: Path) -> None:
    page.goto("/rules?min_side=97&max_characters=60")
    expect(page.locator("[data-rule=min_side] .explorer-count")).to_contain_text("0 pairs kept")
    expect(page.get_by_text("all together: keep 0", exact=True)).to_be_visible()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download", exact=True).click()
    shutil.copy(server.recipe, tmp_path)
    written = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(written)
    recipe = load(written)
    assert recipe.filter.rules["min_side"] == 97
    assert recipe.screen.rules == load(server.recipe).screen.rules | {"max_characters": 60}
    page.locator("[data-rule=min_side]").get_by_role("button", name="As it is").click()
    expect(page).to_have_url(f"{server.address}/rules?max_characters=60")


def test_the_border_shows_pictures_and_hostile_texts_as_texts(page: Page) -> None:
    page.goto(f"/rules?max_characters={len(SCRIPT)}")
    rule = page.locator("[data-rule=max_characters]")
    expect(rule.get_by_text("just passes screen")).to_be_visible()
    expect(rule.locator(".explorer-text", has_text=SCRIPT)).to_have_count(1)
    image = rule.locator("img").first
    image.scroll_into_view_if_needed()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())


@pytest.mark.parametrize("given", ["min_words=x", "min_words=nan", "nothing=3", "min_words=1e999", "<script>=1"])
def test_an_address_that_says_nothing_changes_nothing(page: Page, given: str) -> None:
    page.goto(f"/rules?{given}")
    expect(page.locator("[data-rule=min_words]")).to_contain_text("min_words")
    expect(page.get_by_text("Your thresholds")).to_be_hidden()


def test_scores_of_any_size_have_a_slider(browser: Browser, tmp_path: Path) -> None:
    scores = [0.5, 0.25, -0.0, None, math.nan, math.inf, -math.inf, 1e308, -1.7e308, 5e-324]
    found = [("http://a/0", f"text {number}") for number in range(len(scores))]
    image = Image("http://a/0", jpeg(np.zeros((32, 32, 3), np.uint8)))
    dataset = made_dataset(tmp_path / "data", found, [[image]], clip_score=scores, nsfw=scores)
    run_filter(dataset, {"top_clip_fraction": 1, "max_nsfw": 1e308})
    with serving(dataset.root) as address:
        context = browser.new_context(base_url=address)
        opened = context.new_page()
        seen = watch(opened, address)
        opened.goto("/rules?top_clip_fraction=0.3&max_nsfw=5e-324")
        expect(opened.locator("[data-rule=top_clip_fraction] .explorer-count")).to_contain_text("4 pairs kept (-5)")
        expect(opened.locator("[data-rule=max_nsfw] .explorer-count")).to_contain_text("6 pairs kept (-3)")
        expect(opened.get_by_text("all together: keep 2", exact=True)).to_be_visible()
        context.close()
    assert seen == Watched()


def test_narrow_pages_do_not_scroll_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    for path, wait in (
        ("/rules?min_side=40", ".explorer-count"),
        ("/duplicates", ".explorer-thumbnail"),
        ("/search", ".explorer-page"),
        ("/funnels", ".explorer-numbers"),
    ):
        page.goto(path)
        page.wait_for_selector(wait)
        assert page.evaluate("document.documentElement.scrollWidth") == 390, path
