"""Two funnels: what another recipe's rules would make of the pairs, against a count by hand."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import FILTER, FRACTION, SCREEN, THRESHOLD, Corpus, corpora

from pipeline.errors import PairmillError
from pipeline.explorer.funnels import Funnel, Plan, Step, own_funnel, recipes, side_by_side
from pipeline.recipe import Recipe, load


def recipe_of(screen: dict[str, Any], filter: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.model_validate({"name": "other", "screen": {"rules": screen}, "filter": {"rules": filter, **more}})


def funnel_of(corpus: Corpus, recipe: Recipe) -> Funnel:
    plan = Plan.of("other", recipe, corpus.rules(), None)
    found = corpus.connect().sql(plan.query())
    return plan.funnel([dict(zip(found.columns, row, strict=True)) for row in found.fetchall()])


@st.composite
def others(draw: st.DrawFn, names: tuple[str, ...]) -> dict[str, float]:
    chosen = draw(st.lists(st.sampled_from(names), unique=True))
    return {name: draw(FRACTION if "fraction" in name else THRESHOLD) for name in chosen}


@settings(max_examples=120, deadline=None)
@given(corpora(), others(SCREEN), others(FILTER))
def test_it_counts_what_a_count_by_hand_does(
    corpus: Corpus, screen: dict[str, float], filter_rules: dict[str, float]
) -> None:
    found = funnel_of(corpus, recipe_of(screen, filter_rules))
    expected: Counter[tuple[str, str]] = Counter()
    passed = corpus.passing(screen)
    reached = [uid for uid in passed if uid in corpus.seen]
    pool = [corpus.filtered[uid] for uid in reached]
    for uid, values in corpus.screened.items():
        if failed := corpus.fails(screen, values, []):
            expected["screen", failed[0]] += 1
        elif uid in corpus.failed:
            expected["download", corpus.failed[uid]] += 1
        elif uid not in corpus.seen:
            expected["", "undecided"] += 1
        elif failed := corpus.fails(filter_rules, corpus.filtered[uid], pool):
            expected["filter", failed[0]] += 1
        else:
            expected["", "kept"] += 1
    steps = {(step.stage, step.rule): step.pairs for step in found.steps}
    assert steps == {place: expected[place] for place in steps}
    assert {place for place in expected if place[0]} <= set(steps)
    assert (found.undecided, found.kept) == (expected["", "undecided"], expected["", "kept"])
    assert found.total == len(corpus.screened)
    assert [step.rule for step in found.steps if step.stage != "download"] == [*screen, *filter_rules]


def test_a_rule_of_the_same_measure_is_known_and_what_nobody_measured_is_named() -> None:
    corpus = Corpus({"a": {"min_words": 2.0}, "b": {"min_words": 9.0}}, {"a": {}, "b": {}}, {"min_words": 1}, {})
    found = funnel_of(
        corpus, recipe_of({"max_words": 5, "max_repetition": 0.5, "languages": ["en"], "no_email": True}, {})
    )
    by_rule = {step.rule: step for step in found.steps}
    assert by_rule["max_words"].pairs == 1
    assert not by_rule["max_words"].note
    for rule in ("max_repetition", "languages", "no_email"):
        assert by_rule[rule].pairs is None
        assert by_rule[rule].note.startswith("unknown")
    assert not found.exact


def test_a_rule_of_names_is_known_with_the_same_setting_alone() -> None:
    rules = [
        {
            "stage": "screen",
            "rule": "languages",
            "threshold": None,
            "setting": "en",
            "takes": "names",
            "measure": "language",
        },
        {
            "stage": "screen",
            "rule": "mine",
            "threshold": None,
            "setting": "words > 1",
            "takes": "sql",
            "measure": "words > 1",
        },
    ]

    def known(screen: dict[str, Any]) -> list[bool]:
        return [sql is not None for sql in Plan.of("other", recipe_of(screen, {}), rules, None).fails]

    assert known({"languages": ["en"], "mine": {"keep_if": "words > 1"}}) == [True, True]
    assert known({"languages": ["de"], "mine": {"keep_if": "words > 2"}}) == [False, False]
    assert known({"yours": {"keep_if": "words > 1"}}) == [False]


def test_what_is_measured_with_another_model_is_unknown() -> None:
    rules = [
        {
            "stage": "filter",
            "rule": "min_clip_score",
            "threshold": 0.3,
            "setting": "0.3",
            "takes": "number",
            "measure": "clip_score",
        }
    ]
    one, two = (recipe_of({}, {"min_clip_score": 0.2}, clip={"pretrained": name}) for name in ("one", "two"))
    assert Plan.of("other", one, rules, one).fails[0] is not None
    plan = Plan.of("other", two, rules, one)
    assert plan.fails == (None,)
    assert "filter.clip" in plan.notes[0]


def test_a_radius_that_was_not_searched_is_not_passed_off_as_known() -> None:
    corpus = Corpus({"a": {}}, {"a": {"near_duplicates": 2.0}}, {}, {"near_duplicates": 2})
    assert funnel_of(corpus, recipe_of({}, {"near_duplicates": 2})).exact
    found = funnel_of(corpus, recipe_of({}, {"near_duplicates": 4}))
    assert found.steps[0].pairs == 1
    assert not found.exact


def test_side_by_side_keeps_both_orders_and_says_what_one_lacks() -> None:
    def funnel(*rules: str) -> Funnel:
        return Funnel("", 9, tuple(Step("screen", rule, "", place + 1) for place, rule in enumerate(rules)), 0, 0)

    rows = side_by_side(funnel("a", "b", "c"), funnel("x", "b", "y"))
    assert [row.rule for row in rows] == ["x", "a", "b", "y", "c"]
    assert [row.difference for row in rows] == [1, -1, 0, 3, -3]
    unknown = Funnel("", 9, (Step("screen", "a", "", None, "unknown"),), 0, 0)
    assert side_by_side(funnel("a"), unknown)[0].difference is None


def test_only_recipes_below_the_folder_are_offered(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    for name in ("mine.toml", "rules/align.toml", "models/clip.toml", "notes.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (tmp_path / "secret.toml").write_text("")
    (folder / "link.toml").symlink_to(tmp_path / "secret.toml")
    assert list(recipes(folder)) == ["mine.toml", "rules/align.toml"]


def test_a_set_of_rules_gets_the_name_that_it_lacks(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text("[screen.rules]\nmin_words = 3\n")
    with pytest.raises(PairmillError, match="name"):
        load(rules)
    assert load(rules, "rules").name == "rules"
    (tmp_path / "own.toml").write_text('extends = "rules.toml"\nname = "own"\n')
    assert load(tmp_path / "own.toml", "other").name == "own"


def test_before_filter_has_run_what_passes_screen_is_undecided() -> None:
    corpus = Corpus({"a": {"min_words": 2.0}, "b": {"min_words": 9.0}}, {"a": {}, "b": {}}, {"min_words": 3}, {})
    plan = Plan.of("other", recipe_of({"min_words": 1}, {"min_side": 9}), corpus.rules(), None)
    assert not plan.has_filtered
    found = corpus.connect().sql(plan.query())
    funnel = plan.funnel([dict(zip(found.columns, row, strict=True)) for row in found.fetchall()])
    assert (funnel.kept, funnel.undecided) == (0, 2)
    own = own_funnel([{"stage": "screen", "rule": "min_words", "setting": "3", "pairs": 1}], 2, 0)
    assert (own.kept, own.undecided) == (0, 1)
