"""What other thresholds would keep: against a count by hand, and against the stages themselves."""

import asyncio
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nicegui import Client, ui
from world import FILTER, FRACTION, SCREEN, THRESHOLD, Corpus, corpora

from pipeline.explorer import margins
from pipeline.explorer.margins import Margin
from pipeline.explorer.pages import thresholds
from pipeline.explorer.thresholds import Histogram, fragment, histogram, stops
from pipeline.recipe import load
from pipeline.rules import RULES
from pipeline.store.sql import named_rows
from pipeline.store.views.thresholds import Setting, borders_query, settings_of, side


def margin_of(corpus: Corpus, rule: str) -> Margin:
    setting = next(setting for setting in corpus.settings() if setting.rule.name == rule)
    return Margin.of(setting, corpus.connect().execute(margins.margin_query(setting)).fetchnumpy())


def changed(corpus: Corpus, other: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    screen = {rule: other.get(rule, threshold) for rule, threshold in corpus.screen.items()}
    return screen, {rule: other.get(rule, threshold) for rule, threshold in corpus.filter.items()}


@settings(max_examples=100, deadline=None)
@given(corpora(), st.sampled_from(SCREEN + FILTER), st.data())
def test_one_threshold_keeps_what_a_count_by_hand_says(corpus: Corpus, rule: str, data: st.DataObject) -> None:
    threshold = data.draw(FRACTION if "fraction" in rule else THRESHOLD)
    found = margin_of(corpus, rule).at(threshold)
    screen, filter_rules = changed(corpus, {rule: threshold})
    undecided = set(corpus.passing(screen)) - set(corpus.passing(corpus.screen))
    assert found.kept == len(corpus.kept(screen, filter_rules))
    assert found.undecided == len(undecided)
    if rule in SCREEN:
        assert found.passing == len(corpus.passing(screen))
    else:
        assert found.passing == found.kept


@settings(max_examples=100, deadline=None)
@given(corpora(), st.data())
def test_several_thresholds_at_once_keep_what_a_count_by_hand_says(corpus: Corpus, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(SCREEN + FILTER), unique=True, min_size=1))
    other = {rule: data.draw(FRACTION if "fraction" in rule else THRESHOLD) for rule in names}
    screen, filter_rules = changed(corpus, other)
    pool = [corpus.filtered[uid] for uid in corpus.seen]
    cutoffs = [
        (setting, corpus.cutoff(setting.rule.name, other[setting.rule.name], pool))
        for setting in corpus.settings()
        if setting.rule.name in other
    ]
    found = corpus.connect().execute(margins.joint_query(cutoffs, True)).fetchall()[0]
    undecided = set(corpus.passing(screen)) - set(corpus.passing(corpus.screen))
    assert found == (len(corpus.kept(screen, filter_rules)), len(undecided))


@settings(max_examples=80, deadline=None)
@given(corpora(), st.lists(st.tuples(st.sampled_from(SCREEN + FILTER[:-1]), THRESHOLD), min_size=1, max_size=3))
def test_borders_have_the_nearest_of_both_sides(corpus: Corpus, chosen: list[tuple[str, float]]) -> None:
    by_rule = {setting.rule.name: setting for setting in corpus.settings()}
    query = borders_query([(by_rule[rule], threshold) for rule, threshold in chosen], 2, True)
    rows = named_rows(corpus.connect(), query)
    pool = [corpus.filtered[uid] for uid in corpus.seen]
    expected = []
    for place, (rule, threshold) in enumerate(chosen):
        of_screen = rule in SCREEN
        rules = corpus.screen if of_screen else corpus.filter
        judged = dict(corpus.screened) if of_screen else {uid: corpus.filtered[uid] for uid in corpus.seen}
        near: dict[bool, list[tuple[Fraction, str]]] = {True: [], False: []}
        for uid, values in judged.items():
            value = values[rule]
            if value is None or not math.isfinite(value):
                continue  # not near to anything
            if not set(corpus.fails(rules, values, pool)) - {rule}:
                passes = not corpus.fails({rule: threshold}, values, pool)
                near[passes].append((abs(Fraction(value) - Fraction(threshold)), uid))
        expected += [(place, passes, uid) for passes in (True, False) for _, uid in sorted(near[passes])[:2]]
    assert [(row["place"], row["passes"], row["uid"]) for row in rows] == expected
    for row in rows:
        uid = row["uid"]
        assert (row["text"], row["url"]) == (f"of {uid}", f"url {uid}")
        there = uid in corpus.passing(corpus.screen) and uid not in corpus.failed
        assert (row["key"], row["content"]) == ((f"key {uid}", f"content {uid}") if there else (None, None))


@settings(max_examples=100, deadline=None)
@given(corpora(), st.sampled_from(SCREEN + FILTER))
def test_a_slider_has_the_present_threshold_and_its_bars_pass_whole_or_not_at_all(corpus: Corpus, rule: str) -> None:
    margin = margin_of(corpus, rule)
    places = stops(margin)
    assert margin.setting.threshold in places
    assert np.all(np.diff(places) > 0)
    assert np.all(np.isfinite(places))
    bars = histogram(margin)
    assert len(bars.pairs) == len(bars.stops)
    assert bars.pairs.sum() == margin.passing[-1]
    for cutoff in bars.stops[:-1] if bars.stop_is_upper else bars.stops[1:]:  # what is beyond is in the outer bars
        passing = margin.at(cutoff).passing - margin.unmeasured_passing if "fraction" not in rule else None
        edge = bars.edge(cutoff)
        low, high = int(bars.pairs[:edge].sum()), int(bars.pairs[edge:].sum())
        if passing is not None:
            assert passing == (high if side(margin.setting.rule) in ("<", "<=") else low)


def test_a_skewed_measure_gets_places_by_ratio_and_few_whole_numbers_one_by_one() -> None:
    def margin(rule: str, values: list[float], threshold: float) -> Margin:
        corpus = Corpus(
            {},
            {},
            {rule: threshold} if rule in SCREEN else {},
            {},
        )
        setting = corpus.settings()[0]
        counts = np.arange(len(values) + 1)
        return Margin(setting, np.array(values), counts, counts, 0, 0)

    words = stops(margin("max_characters", [float(n) for n in range(1, 31)], 20.0))
    assert list(words) == [float(n) for n in range(32)]
    skewed = stops(margin("max_characters", [float(n) for n in np.unique(np.geomspace(1, 1e6, 500).round())], 20.0))
    assert 80 <= len(skewed) <= 125
    assert np.median(skewed) < 5000
    assert np.all(skewed == np.floor(skewed))
    assert 20.0 in skewed
    far = stops(margin("max_repetition", [0.1, 0.2, np.inf, np.nan], 0.15))
    assert 0.15 in far
    assert np.all(np.isfinite(far))
    for huge in ([1e308, -1.7e308], [1.0, 1.7e308], [5e-324, 1e-323], [5e-324, 1.0], [1e17, 1e17], [1e99]):
        for threshold in (0.15, 1e17, 1e308, -1.7e308, 5e-324):
            places = stops(margin("max_repetition", sorted(huge), threshold))
            assert threshold in places
            assert np.all(np.isfinite(places))
            assert np.all(np.diff(places) > 0)


def test_what_was_chosen_reads_back_as_a_recipe(tmp_path: Path) -> None:
    base = tmp_path / 'a "base".toml'
    base.write_text('name = "base"\n[screen.rules]\nmin_words = 3\nmax_words = 20\n[filter.rules]\nside_above = 200\n')
    corpus = Corpus({}, {}, {"min_words": 3, "max_repetition": 0.5}, {"side_above": 200, "top_clip_fraction": 0.3})
    words, repetition, above, top = corpus.settings()
    chosen = [(words, 4.0), (repetition, 0.125), (above, 1e-7), (top, 0.25)]
    other = tmp_path / "other.toml"
    other.write_text(fragment(base.name, chosen, ["kept 3\n[filter.rules] of 5"]))
    recipe = load(other)
    assert recipe.name == "base"
    assert dict(recipe.screen.rules) == {"min_words": 4, "max_words": 20, "max_repetition": 0.125}
    assert dict(recipe.filter.rules) == {"side_above": 1e-7, "top_clip_fraction": 0.25}
    with pytest.raises(ValueError, match="no threshold"):
        fragment(base.name, [(words, float("inf"))])


def test_settings_are_the_rules_that_compare_numbers() -> None:
    rows: list[dict[str, Any]] = [
        {"rule": "min_words", "threshold": 3.0, "setting": "3", "takes": "number"},
        {"rule": "languages", "threshold": None, "setting": "en", "takes": "names"},
        {"rule": "top_clip_fraction", "threshold": 0.2731, "setting": "0.3 (from 0.2731 up)", "takes": "fraction"},
    ]
    words, top = settings_of(rows)
    assert (words.rule.name, words.threshold, words.cutoff) == ("min_words", 3.0, 3.0)
    assert (top.rule.name, top.threshold, top.cutoff) == ("top_clip_fraction", 0.3, 0.2731)
    assert isinstance(histogram(margin_of(Corpus({}, {}, {"min_words": 3}, {}), "min_words")), Histogram)


def test_a_fault_stands_where_the_slider_would(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(margin: Margin) -> None:
        raise ZeroDivisionError("a fault of ours")

    async def margin(*_: object) -> Margin:
        return Margin(words, np.array([1.0]), np.zeros(2, int), np.zeros(2, int), 0, 0)

    words = Setting(RULES["min_words"], 3.0, 3.0)
    monkeypatch.setattr(thresholds, "histogram", failing)
    monkeypatch.setattr(thresholds, "held_margin", margin)
    monkeypatch.setattr(thresholds, "unchanged", lambda *_: None)
    with Client(ui.page("/rules")):
        slider = thresholds._Slider(Mock(), words, None)
        slider.expansion = Mock(value=True)
        with pytest.raises(ZeroDivisionError):  # the log has it as well
            asyncio.run(slider._read())
        (label,) = slider.body.default_slot.children
        assert isinstance(label, ui.label)
        assert "ZeroDivisionError('a fault of ours')" in label.text
