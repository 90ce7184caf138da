"""What other rules would make of a dataset that has been judged: a second funnel, without running a stage.

A rule of another recipe is applied to what the dataset's own stages measured (`screened` and `filtered`), whatever the
rule is called there: `min_side` and `side_above` measure the same. A rule that takes names or nothing is known where it
stands in both recipes with the same setting. What nobody measured is named as unknown, and drops nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.explorer.margins import beyond_measure
from pipeline.recipe import Recipe
from pipeline.store.sql import double, identifier, literal
from pipeline.store.verdicts import Asked, asked_rules, top_cutoff
from pipeline.store.views.thresholds import failing, looks_at_others

OWN = "SELECT stage, rule, setting, pairs, failing FROM funnel ORDER BY position"
"""SQL of the dataset's own funnel."""


@dataclass(frozen=True)
class Step:
    """A rule of a funnel, and how many pairs fell first by it; `pairs` is None where that is not known."""

    stage: str
    rule: str
    setting: str
    pairs: int | None
    note: str = ""


@dataclass(frozen=True)
class Funnel:
    """All of a recipe's rules in its order: total = sum of steps + undecided + kept."""

    name: str
    total: int
    steps: tuple[Step, ...]
    undecided: int
    """Would pass `screen`, no download of theirs is known to have failed, and `filter` has not judged them."""
    kept: int

    @property
    def exact(self) -> bool:
        """Whether it is what the stages would say, but for the undecided."""
        return not any(step.note for step in self.steps)


def recipes(folder: Path) -> dict[str, Path]:
    """Name under the folder -> file, of every recipe and set of rules there; models are none. No link leads outside."""
    files = [path for path in sorted(folder.rglob("*.toml")) if path.resolve().is_relative_to(folder.resolve())]
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path for name, path in named.items() if not name.startswith("models/")}


def own_funnel(rows: Sequence[Mapping[str, Any]], total: int, kept: int) -> Funnel:
    """As it is now: of the rows of `OWN`, the number of pairs that `screen` judged and the number kept by `filter`."""
    steps = tuple(Step(row["stage"], row["rule"], row["setting"], int(row["pairs"])) for row in rows)
    return Funnel("as it is now", total, steps, total - kept - sum(step.pairs or 0 for step in steps), kept)


@dataclass(frozen=True)
class Plan:
    """Another recipe's rules, as far as they can be applied: `fails` has the SQL of each, or None."""

    name: str
    asked: tuple[Asked, ...]
    fails: tuple[str | None, ...]
    notes: tuple[str, ...]
    has_filtered: bool

    @classmethod
    def of(cls, name: str, recipe: Recipe, rules: Sequence[Mapping[str, Any]], own: Recipe | None) -> "Plan":
        """`rules`: those of `RULES_QUERY`. `own`: the recipe by which the dataset was made, where it is at hand."""
        asked = [
            *asked_rules("screen", recipe.screen.rules),
            *asked_rules("filter", recipe.filter.rules),
        ]
        found = [_applied(entry, recipe, rules, own) for entry in asked]
        has_filtered = any(row["stage"] == "filter" for row in rules)
        return cls(name, tuple(asked), tuple(sql for sql, _ in found), tuple(note for _, note in found), has_filtered)

    def query(self) -> str:
        """SQL of (stage, what, pairs): how many fall first at each rule, by its position, or by a download's status."""
        filtered = "filtered" if self.has_filtered else "(SELECT NULL::VARCHAR AS uid WHERE false)"
        return (
            f"WITH judged AS MATERIALIZED (SELECT uid, {self._first('screen')} AS place FROM screened), "
            "passed AS MATERIALIZED (SELECT uid FROM judged WHERE place < 0), "
            f"reached AS MATERIALIZED (FROM {filtered} SEMI JOIN passed USING (uid)) "
            "SELECT 'screen' AS stage, place::VARCHAR AS what, count(*) AS pairs FROM judged GROUP BY place UNION ALL "
            "SELECT 'download', rule, count(*) FROM verdicts SEMI JOIN passed USING (uid) WHERE stage = 'download' "
            "GROUP BY rule UNION ALL "
            f"SELECT 'filter', ({self._first('filter')})::VARCHAR AS place, count(*) FROM reached GROUP BY place "
            f"UNION ALL SELECT 'filtered', '', count(*) FROM {filtered}"
        )

    def _first(self, stage: str) -> str:
        """SQL of the position of the first rule that a pair fails, or -1."""
        cases = [
            f"WHEN {sql} THEN {place}"
            for place, (entry, sql) in enumerate(zip(self.asked, self.fails, strict=True))
            if entry.rule.stage == stage and sql
        ]
        return f"CASE {' '.join(cases)} ELSE -1 END" if cases else "-1"

    def funnel(self, rows: Sequence[Mapping[str, Any]]) -> Funnel:
        """Of the rows of `query`."""
        counts = {(row["stage"], row["what"]): int(row["pairs"]) for row in rows}
        total = sum(pairs for (stage, _), pairs in counts.items() if stage == "screen")
        passed, kept = counts.get(("screen", "-1"), 0), counts.get(("filter", "-1"), 0)
        failed = {status: pairs for (stage, status), pairs in sorted(counts.items()) if stage == "download"}
        reached = sum(pairs for (stage, _), pairs in counts.items() if stage == "filter")
        undecided = passed - sum(failed.values()) - reached
        others_reach = bool(undecided) or reached != counts.get(("filtered", ""), 0)
        steps = [self._step(place, counts, others_reach) for place in range(len(self.asked))]
        downloads = [Step("download", status, "", pairs) for status, pairs in failed.items()]
        ordered = (
            *(step for step in steps if step.stage == "screen"),
            *downloads,
            *(step for step in steps if step.stage == "filter"),
        )
        return Funnel(self.name, total, ordered, undecided, kept)

    def _step(self, place: int, counts: Mapping[tuple[str, str], int], others_reach: bool) -> Step:
        entry, note = self.asked[place], self.notes[place]
        rule = entry.rule
        pairs = counts.get((rule.stage, str(place)), 0) if self.fails[place] else None
        if pairs is not None and others_reach and looks_at_others(rule.takes, rule.measure):
            note = note or "as measured among the pairs that reach it now; it hangs on which these are"
        setting = f"{entry.threshold:g}" if rule.takes == "fraction" else entry.setting
        return Step(rule.stage, rule.name, setting, pairs, note)


_MEASURED_WITH: dict[str, tuple[str, ...]] = {
    "blocked_by": ("screen.blocklist",),
    "query_draw": ("screen.queries", "screen.seed"),
    "clip_score": ("filter.clip",),
    "evaluation_distance": ("filter.evaluation",),
    "evaluation_cosine": ("filter.evaluation", "filter.clip"),
    "semantic_cosine": ("filter.semdedup", "filter.clip"),
    "alignment": ("filter.alignment",),
}
"""Measure -> keys of the recipe that it hangs on."""


def _applied(
    entry: Asked, recipe: Recipe, rules: Sequence[Mapping[str, Any]], own: Recipe | None
) -> tuple[str | None, str]:
    """SQL of whether a pair fails the rule, or None where nobody knows; and what is to be said of it."""
    rule = entry.rule
    for key in _MEASURED_WITH.get(rule.measure, ()):
        if own is not None and _value(own, key) != _value(recipe, key):
            return None, f"unknown: {key} is another one, and nothing was measured with it"
    same = [row for row in rules if row["stage"] == rule.stage and row["measure"] == rule.measure]
    if rule.takes in ("number", "fraction"):
        row = next((row for row in same if row["takes"] in ("number", "fraction")), None)
        if row is None:
            return None, f"unknown: {rule.measure} was not measured here"
        note = beyond_measure(rule, entry.cutoff, row["threshold"] if row["rule"] == rule.name else math.nan)
        cutoff = double(entry.cutoff)
        if rule.takes == "fraction":
            cutoff = top_cutoff(identifier(row["rule"]), "reached", double(entry.threshold))
        return failing(rule, cutoff, row["rule"]), note
    takes = "sql" if hasattr(entry.threshold, "keep_if") else rule.takes
    wanted = (rule.stage, rule.name, takes, entry.setting)
    if any((row["stage"], row["rule"], row["takes"], row["setting"]) == wanted for row in rules):
        failed = f"SELECT uid FROM verdicts WHERE stage = {literal(rule.stage)} AND rule = {literal(rule.name)}"
        return f"uid IN ({failed})", ""
    return None, "unknown: it was not applied here with this setting"


def _value(recipe: Recipe, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(recipe, section), name)


@dataclass(frozen=True)
class Row:
    """A rule in both funnels: the step of each, None where its recipe has no such rule."""

    stage: str
    rule: str
    left: Step | None
    right: Step | None

    @property
    def difference(self) -> int | None:
        """How many more pairs fall by it on the right."""
        pairs = [0 if step is None else step.pairs for step in (self.left, self.right)]
        return None if None in pairs else pairs[1] - pairs[0]  # type: ignore[operator]


def side_by_side(left: Funnel, right: Funnel) -> list[Row]:
    """Every rule of either, in the left one's order; what only the right one has stands where it has it."""
    ones = {(step.stage, step.rule): step for step in left.steps}
    others = {(step.stage, step.rule): step for step in right.steps}
    order: list[tuple[str, str]] = []
    for stage in ("screen", "download", "filter"):
        merged = [place for place in ones if place[0] == stage]
        before = -1
        for place in (place for place in others if place[0] == stage):
            if place in merged:
                before = merged.index(place)
            else:
                before += 1
                merged.insert(before, place)
        order += merged
    return [Row(stage, rule, ones.get((stage, rule)), others.get((stage, rule))) for stage, rule in order]
