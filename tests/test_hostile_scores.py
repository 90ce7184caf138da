"""Scores that are NaN, infinite, huge, or nearly nothing: told alike by a count by hand, SQL, explorer and stage."""

import json
import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_dataset import Image, made_dataset, run_filter, verdicts

from pipeline.catalog import refresh
from pipeline.explorer import margins
from pipeline.explorer.funnels import Plan
from pipeline.explorer.margins import Margin
from pipeline.explorer.thresholds import histogram, stops
from pipeline.explorer.thresholds_chart import chart_of, draw
from pipeline.recipe import Recipe
from pipeline.report.thresholds import borders
from pipeline.store.dataset import Dataset
from pipeline.store.sql import named_rows
from pipeline.store.views.thresholds import RULES_QUERY, settings_of

URL = "http://a/0"
ODD = [-0.0, 0.0, None, math.nan, math.inf, -math.inf, 1e308, -1.7e308, 5e-324]
SCORES = st.lists(st.sampled_from([0.1, 0.25, 0.25, 0.3, *ODD]), max_size=14)
THRESHOLDS = {
    "top_clip_fraction": st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.99, 1.0]),
    "min_clip_score": st.sampled_from([0.25, 0.0, 1e308, -1.7e308, 5e-324, 0.1 + 0.2]),
}
EVERY_ODD_ONE = [0.1, 0.25, 0.25, *ODD, *ODD]


def of(scores: list[float | None], folder: Path) -> tuple[Dataset, dict[tuple[str, str], float | None]]:
    """A dataset whose lists have the scores, and by hand the score of each of its pairs; one of them is plain."""
    found = {(URL, f"text {number}"): score for number, score in enumerate([0.5, *scores])}
    return made_dataset(folder, list(found), [[Image(URL)]], clip_score=list(found.values())), found


def falling(scores: dict[tuple[str, str], float | None], rule: str, threshold: float) -> dict[tuple[str, str], float]:
    """By hand: which pairs fall, each with its score."""
    measured = {pair: score for pair, score in scores.items() if score is not None and not math.isnan(score)}
    if rule == "top_clip_fraction":
        descending = sorted(measured.values(), reverse=True)
        rank = int(len(descending) * threshold)
        threshold = descending[rank] if rank < len(descending) else -math.inf
    return {pair: score for pair, score in measured.items() if score < threshold}


def margin_of(connection: duckdb.DuckDBPyConnection) -> Margin:
    (setting,) = [each for each in settings_of(named_rows(connection, RULES_QUERY)) if each.rule.stage == "filter"]
    return Margin.of(setting, connection.execute(margins.margin_query(setting)).fetchnumpy())


def compared(connection: duckdb.DuckDBPyConnection, rule: str, threshold: float) -> int:
    """What the comparison of funnels says another recipe would keep."""
    rules = {"screen": {"rules": {"min_words": 2}}, "filter": {"rules": {rule: threshold}}}
    plan = Plan.of("other", Recipe.model_validate({"name": "t", **rules}), named_rows(connection, RULES_QUERY), None)
    return plan.funnel(named_rows(connection, plan.query())).kept


def standard(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("rule", THRESHOLDS)
@settings(max_examples=6, deadline=None)
@given(scores=SCORES, data=st.data())
@example(scores=EVERY_ODD_ONE, data=None)
def test_all_tell_alike_what_another_threshold_keeps(
    tmp_path_factory: pytest.TempPathFactory, rule: str, scores: list[float | None], data: st.DataObject | None
) -> None:
    dataset, by_hand = of(scores, tmp_path_factory.mktemp("scores"))
    now, *others = [data.draw(THRESHOLDS[rule]) for _ in range(2)] if data else (0.1, 0.3, 1.0)
    run_filter(dataset, {rule: now})
    refresh(dataset)
    told: dict[float, set[int]] = {}
    with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
        margin = margin_of(connection)
        for threshold in others:
            asked = "SELECT kept, exact FROM would_keep(?, ?)"
            ((kept, exact),) = connection.execute(asked, [rule, threshold]).fetchall()
            assert exact
            told[threshold] = {kept, margin.at(threshold).kept, compared(connection, rule, threshold)}
        assert margin.at(margin.setting.threshold).kept == len(by_hand) - len(falling(by_hand, rule, now))
        places, bars = stops(margin), histogram(margin)
        assert np.all(np.isfinite([*places, *bars.stops]))
        assert bars.pairs.sum() == margin.passing[-1]
        draw(chart_of(bars), bars, margin, margin.setting.cutoff)
    for threshold in others:
        run_filter(dataset, {rule: threshold})
        expected = falling(by_hand, rule, threshold)
        assert verdicts(dataset) == {pair: {rule: score} for pair, score in expected.items()}
        assert told[threshold] == {dataset.filtered.manifest.count("kept")} == {len(by_hand) - len(expected)}
        with dataset.connect() as views:
            unmeasured = sum(score is None or math.isnan(score) for score in by_hand.values())
            query = f"SELECT count(*) FILTER ({rule} IS NULL), count(*) FILTER (isnan({rule})) FROM filtered"
            assert views.execute(query).fetchall() == [(unmeasured, 0)]
    json.loads((dataset.filtered.folder / "manifest.json").read_text(), parse_constant=standard)


@pytest.mark.parametrize("rule", [{"top_clip_fraction": 0.3}, {"min_clip_score": 0.1}, {"min_clip_score": 5e-324}])
def test_the_report_draws_them(tmp_path: Path, rule: dict[str, float]) -> None:
    scores = [score for score in EVERY_ODD_ONE if score is None or not score < 0]
    for number, own in enumerate((EVERY_ODD_ONE, scores)):  # without the negative ones an axis may be logarithmic
        dataset, _ = of(own, tmp_path / str(number))
        run_filter(dataset, rule)
        refresh(dataset)
        with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
            (border,) = [found for (stage, _), found in borders(connection, True).items() if stage == "filter"]
        assert border.chart is not None


def test_the_top_of_everything_drops_nothing_and_of_infinities_is_cut_among_them(tmp_path: Path) -> None:
    dataset, _ = of([-math.inf, -1.7e308, math.inf, math.inf, math.nan], tmp_path)
    for fraction, cutoff, setting, kept in (
        (1, -math.inf, "1 (all)", 6),
        (0.3, math.inf, "0.3 (from inf up)", 3),
        (0.7, -1.7e308, "0.7 (from -1.7e+308 up)", 5),
    ):
        run_filter(dataset, {"top_clip_fraction": fraction})
        refresh(dataset)
        with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
            (row,) = [row for row in named_rows(connection, RULES_QUERY) if row["stage"] == "filter"]
            assert (row["threshold"], row["setting"]) == (cutoff, setting)
            assert connection.execute("SELECT count(*) FROM kept").fetchall() == [(kept,)]
            assert margin_of(connection).setting.threshold == fraction
            for wrong in (-0.1, 1.1, math.nan, math.inf):
                with pytest.raises(duckdb.Error, match="the threshold must be a number, and of a fraction one from 0"):
                    connection.execute("FROM would_keep('top_clip_fraction', ?)", [wrong]).fetchall()
