"""What another threshold of a rule would keep, from one look at what was measured.

A rule's `Margin` is read once: how many pairs there are at each measured value, and how many of those fail no other
rule of the stage. After that a threshold costs a binary search, however many pairs there are: a slider answers live.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.rules import Rule
from pipeline.store.verdicts import EVERYTHING
from pipeline.store.views.thresholds import Setting, looks_at_others, others_pass, side


def beyond_measure(rule: Rule, threshold: float, now: float) -> str:
    """Why what was measured cannot say what a rule would do at another threshold than now; "" where it can."""
    if rule.name == "near_duplicates" and threshold != now:
        return "which picture of a group stays hangs on the radius: only make filter knows"
    if rule.name == "near_evaluation" and threshold > now:
        return "distances were searched for only as far as the radius: only make filter knows"
    return ""


def margin_query(setting: Setting) -> str:
    """SQL of the columns that `Margin` is made of: (value, passing, kept), a row a pair, in any order.

    Pairs that fail another rule of the stage are left out: this rule does not decide over them. Only a top fraction
    counts them too; then `passing` says who is none of them. `kept`: at the end; for a rule of `filter`, if it passed.
    """
    others = others_pass([setting])
    kept = "uid IN (SELECT uid FROM kept)" if setting.rule.stage == "screen" else others
    where = "" if setting.rule.takes == "fraction" else f" WHERE {others}"
    return f"SELECT {setting.column} AS value, {others} AS passing, {kept} AS kept FROM {setting.view}{where}"


@dataclass(frozen=True)
class Outcome:
    """Numbers of pairs under a threshold, all else as it is."""

    cutoff: float
    kept: int
    undecided: int
    """Fall by `screen` now and would pass it: no later stage has judged them, and some may have no image."""
    passing: int
    """Would pass the rule's stage: those kept, those that a later stage dropped, and the undecided."""


@dataclass(frozen=True)
class Margin:
    """One rule's pairs by measured value.

    `values` (n,) float64, ascending; `passing` and `kept` (n + 1,) int64: how many such pairs are among the first i.
    What was not measured is never dropped by the rule.
    """

    setting: Setting
    values: np.ndarray
    passing: np.ndarray
    kept: np.ndarray
    unmeasured_passing: int
    unmeasured_kept: int

    @classmethod
    def of(cls, setting: Setting, columns: Mapping[str, np.ndarray]) -> "Margin":
        """Of the columns of `margin_query`: `value` is masked where it is NULL."""
        there = ~np.ma.getmaskarray(columns["value"])
        values = np.ma.getdata(columns["value"])[there].astype(np.float64)
        order = np.argsort(values)
        passing, kept = (
            np.concatenate([[0], np.cumsum(columns[name][there][order], dtype=np.int64)])
            for name in ("passing", "kept")
        )
        unmeasured_passing, unmeasured_kept = (int(columns[name][~there].sum()) for name in ("passing", "kept"))
        return cls(setting, values[order], passing, kept, unmeasured_passing, unmeasured_kept)

    def cutoff(self, threshold: float) -> float:
        """What values are compared with. For a top fraction DataComp's: that at rank int(n * fraction) from the top."""
        if self.setting.rule.takes != "fraction":
            return threshold
        rank = int(len(self.values) * threshold)
        return float(self.values[-1 - rank]) if rank < len(self.values) else EVERYTHING

    def passes(self, cutoff: float) -> range:
        """The places in `values` that pass."""
        fails = side(self.setting.rule)
        place = int(np.searchsorted(self.values, cutoff, side="left" if fails in ("<", ">=") else "right"))
        return range(place, len(self.values)) if fails in ("<", "<=") else range(place)

    def at(self, threshold: float) -> Outcome:
        """What would be kept under `threshold`, which is as a recipe has it."""
        cutoff = self.cutoff(threshold)
        then, now = self.passes(cutoff), self.passes(self.setting.cutoff)
        both = range(max(then.start, now.start), min(then.stop, now.stop))
        passing = _within(self.passing, then)
        undecided = passing - _within(self.passing, both) if self.setting.rule.stage == "screen" else 0
        kept = _within(self.kept, then) + self.unmeasured_kept
        return Outcome(cutoff, kept, undecided, passing + self.unmeasured_passing)


def _within(sums: np.ndarray, places: range) -> int:
    return int(sums[places.stop] - sums[places.start]) if places else 0


def joint_query(cutoffs: Sequence[tuple[Setting, float]], filtered: bool) -> str:
    """SQL of one row (kept, undecided): the pairs kept under all these cutoffs, and the undecided as in `Outcome`.

    `filtered`: whether `filter` has run.
    """
    of_screen = [(setting, cutoff) for setting, cutoff in cutoffs if setting.rule.stage == "screen"]
    of_filter = [(setting, cutoff) for setting, cutoff in cutoffs if setting.rule.stage == "filter"]
    passing = f"SELECT uid FROM screened WHERE {_would_pass(of_screen)}"
    kept = f"filtered WHERE {_would_pass(of_filter)}" if filtered else "kept WHERE true"
    undecided = f"SELECT count(*) FROM screened WHERE {_would_pass(of_screen)} AND failures > 0" if of_screen else "0"
    within = f" AND uid IN ({passing})" if of_screen else ""
    return f"SELECT (SELECT count(*) FROM {kept}{within}) AS kept, ({undecided}) AS undecided"


def _would_pass(cutoffs: Sequence[tuple[Setting, float]]) -> str:
    fails = [f"NOT {setting.fails_at(cutoff)}" for setting, cutoff in cutoffs]
    return " AND ".join([others_pass([setting for setting, _ in cutoffs]), *fails])


def caveat(changed: Sequence[tuple[Setting, float]], rules: Sequence[Mapping[str, Any]], unjudged: str = "") -> str:
    """What the counts of these thresholds (as recipes have them) do not know; "" where the stages would say the same.

    `rules`: the rows of `RULES_QUERY`. `unjudged`: what the stages have left undone, if anything (`current`).
    """
    reasons = [unjudged]
    reasons += [beyond_measure(setting.rule, threshold, setting.threshold) for setting, threshold in changed]
    compares = [
        row["rule"] for row in rules if row["stage"] == "filter" and looks_at_others(row["takes"], row["measure"])
    ]
    if compares and any(setting.rule.stage == "screen" for setting, _ in changed):
        reasons.append(f"{', '.join(compares)} would meet other pairs, and what they drop hangs on which these are")
    return "; ".join(filter(None, reasons))
