"""Two funnels: another recipe's rules over what was measured, against the stages under that recipe; and the page."""

import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from playwright.sync_api import Page, expect

from pipeline import filter, screen
from pipeline.catalog import refresh
from pipeline.engine import engine
from pipeline.explorer.funnels import OWN, Funnel, Plan, own_funnel
from pipeline.job import Job
from pipeline.recipe import Recipe, load
from pipeline.store.dataset import Dataset
from pipeline.store.views.thresholds import RULES_QUERY


def rows(dataset: Dataset, query: str) -> list[dict[str, Any]]:
    refresh(dataset)
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        found = connection.sql(query)
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def own(dataset: Dataset) -> Funnel:
    (totals,) = rows(dataset, "SELECT (SELECT count(*) FROM screened) AS total, (SELECT count(*) FROM kept) AS kept")
    return own_funnel(rows(dataset, OWN), totals["total"], totals["kept"])


def numbers(funnel: Funnel) -> dict[tuple[str, str], int | None]:
    return {(step.stage, step.rule): step.pairs for step in funnel.steps if step.pairs or step.stage != "download"}


@pytest.mark.parametrize(
    ("screening", "filtering"),
    [
        ({"min_words": 4, "max_characters": 60}, {"min_side": 30, "max_aspect": 2.0}),
        ({"max_characters": 23, "min_words": 3}, {"aspect_below": 1.0, "side_above": 96}),
        ({"max_words": 5, "min_words": 3, "max_characters": 80}, {}),
    ],
)
def test_the_stages_under_the_other_recipe_count_the_same(
    made: Path, tmp_path: Path, screening: Mapping[str, float], filtering: Mapping[str, float]
) -> None:
    shutil.copytree(made.parent / "data", tmp_path / "data")
    dataset, recipe = Dataset(tmp_path / "data"), load(made)
    before = own(dataset)
    assert before.undecided == 0
    sections = {"screen": {"rules": screening}, "filter": {"rules": filtering}}
    other = Recipe.model_validate(recipe.model_dump(exclude={"screen", "filter"}, exclude_none=True) | sections)
    plan = Plan.of("other", other, rows(dataset, RULES_QUERY), recipe)
    said = plan.funnel(rows(dataset, plan.query()))
    assert said.exact
    assert said.undecided == 0
    with closing(engine("local", 1)) as running:
        for name, stage in (("screen", screen), ("filter", filter)):
            stage.run(Job(name, other, dataset, running))
    found = own(dataset)
    assert numbers(said) == numbers(found)
    assert (said.kept, said.total) == (found.kept, found.total) != (before.kept, 0)


def test_a_looser_screen_leaves_pairs_undecided(made: Path) -> None:
    dataset = Dataset(made.parent / "data")
    other = Recipe.model_validate({"name": "other", "screen": {"rules": {"min_words": 1}}})
    plan = Plan.of("other", other, rows(dataset, RULES_QUERY), None)
    said = plan.funnel(rows(dataset, plan.query()))
    total = said.undecided + said.kept + sum(step.pairs or 0 for step in said.steps)
    assert total == said.total == dataset.pairs.manifest.count("pairs")
    assert said.undecided > 0


def test_the_page_compares_with_any_recipe_below_the_folder(page: Page) -> None:
    page.goto("/funnels?right=rules/align.toml&left=../../etc/passwd")
    expect(page.get_by_text("as it is now: ")).to_be_visible()
    expect(page.get_by_text("rules/align.toml: ")).to_contain_text("not measured here")
    table = page.locator(".explorer-numbers")
    expect(table.get_by_role("row").filter(has_text="max_nsfw")).to_contain_text("unknown: nsfw was not measured")
    expect(page.locator("canvas").first).to_be_visible()
    page.get_by_label("left").click()
    page.get_by_role("option", name="explored.toml").click()
    expect(page.get_by_text("explored.toml: ")).to_be_visible()
    assert "left=explored.toml" in page.url
