"""A judged corpus as tables of a bare DuckDB, and told by hand: the slow reference of what rules would keep."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import strategies as st

from pipeline.rules import RULES
from pipeline.store.views.thresholds import Setting

Values = Mapping[str, float | None]
_FAILS = {
    "<": lambda value, cutoff: value < cutoff,
    "<=": lambda value, cutoff: value <= cutoff,
    ">": lambda value, cutoff: value > cutoff,
    ">=": lambda value, cutoff: value >= cutoff,
    "not in top": lambda value, cutoff: value < cutoff,
}


@dataclass(frozen=True)
class Corpus:
    """Pairs by uid: what was measured of each, and the thresholds, as recipes have them, in the order of the funnel."""

    screened: Mapping[str, Values]
    """uid -> rule -> value."""
    filtered: Mapping[str, Values]
    """What `filter` would measure of a pair if it came to it."""
    screen: Mapping[str, float]
    filter: Mapping[str, float]
    failed: Mapping[str, str] = field(default_factory=dict)
    """uid -> why its image could not be had."""

    def cutoff(self, rule: str, threshold: float, pool: list[Values]) -> float:
        if RULES[rule].takes != "fraction":
            return threshold
        scores = sorted((row[rule] for row in pool if row[rule] is not None), reverse=True)
        rank = int(len(scores) * threshold)
        return scores[rank] if rank < len(scores) else -math.inf

    def fails(self, rules: Mapping[str, float], values: Values, pool: list[Values]) -> list[str]:
        """The rules that a pair fails, in their order."""
        found = []
        for rule, threshold in rules.items():
            value = values[rule]
            cutoff = self.cutoff(rule, threshold, pool)
            if value is not None and _FAILS[RULES[rule].fails_if](value, cutoff):
                found.append(rule)
        return found

    def passing(self, screen: Mapping[str, float]) -> list[str]:
        return [uid for uid, values in self.screened.items() if not self.fails(screen, values, [])]

    @property
    def seen(self) -> list[str]:
        """Those that `filter` has judged."""
        return [uid for uid in self.passing(self.screen) if uid not in self.failed]

    def kept(self, screen: Mapping[str, float], filter: Mapping[str, float]) -> set[str]:
        """Of those that `filter` has judged, what these rules keep, with the pools of the fractions as they are."""
        pool = [self.filtered[uid] for uid in self.seen]
        passed = set(self.passing(screen))
        return {uid for uid in self.seen if uid in passed and not self.fails(filter, self.filtered[uid], pool)}

    def settings(self) -> list[Setting]:
        pool = [self.filtered[uid] for uid in self.seen]
        return [
            Setting(RULES[rule], threshold, self.cutoff(rule, threshold, pool))
            for rules in (self.screen, self.filter)
            for rule, threshold in rules.items()
        ]

    def connect(self) -> duckdb.DuckDBPyConnection:
        """`screened`, `filtered`, `kept`, `verdicts`, `rules`, `pairs` and `images`, as the catalog has them."""
        pool = [self.filtered[uid] for uid in self.seen]
        verdicts: list[tuple[Any, ...]] = []
        tables = {}
        for view, stage, rules, judged in (
            ("screened", "screen", self.screen, dict(self.screened)),
            ("filtered", "filter", self.filter, {uid: self.filtered[uid] for uid in self.seen}),
        ):
            failed = {uid: self.fails(rules, values, pool) for uid, values in judged.items()}
            tables[view] = pa.table(
                {
                    "uid": pa.array(list(judged), pa.string()),
                    "failures": pa.array(map(len, failed.values()), pa.int32()),
                }
                | {rule: pa.array([values[rule] for values in judged.values()], pa.float64()) for rule in rules}
            )
            verdicts += [(uid, stage, rule) for uid, found in failed.items() for rule in found]
        verdicts += [(uid, "download", status) for uid, status in self.failed.items()]
        passing = self.passing(self.screen)
        words: dict[str, dict[str, list[str]]] = {
            "verdicts": {name: [row[place] for row in verdicts] for place, name in enumerate(("uid", "stage", "rule"))},
            "kept": {"uid": sorted(self.kept(self.screen, self.filter))},
            "pairs": {
                "uid": list(self.screened),
                "text": [f"of {uid}" for uid in self.screened],
                "url": [f"url {uid}" for uid in self.screened],
            },
            "images": {
                "url": [f"url {uid}" for uid in passing],
                "key": [f"key {uid}" for uid in passing],
                "sha256": [f"content {uid}" for uid in passing],
                "status": [self.failed.get(uid, "ok") for uid in passing],
            },
        }
        for name, columns in words.items():
            tables[name] = pa.table({column: pa.array(rows, pa.string()) for column, rows in columns.items()})
        for name, table in tables.items():
            _CONNECTION.register(name, table)
        return _CONNECTION

    def rules(self) -> list[dict[str, Any]]:
        """The rows of the view `rules`."""
        return [
            {
                "stage": setting.rule.stage,
                "rule": setting.rule.name,
                "threshold": setting.cutoff,
                "setting": f"{setting.threshold:g}",
                "takes": setting.rule.takes,
                "measure": setting.rule.measure,
            }
            for setting in self.settings()
        ]


_CONNECTION = duckdb.connect(config={"threads": 1})


SCREEN = ("min_words", "max_characters", "max_repetition")  # no two of one measure
FILTER = ("side_above", "aspect_below", "min_alignment", "top_clip_fraction")
HUGE = (1e308, -1.7e308, 5e-324)
FEW = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, 2.5, 7.0, -1.0, 1e9, None, *HUGE, math.inf, -math.inf])
THRESHOLD = st.sampled_from([-2.0, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 7.0, 8.0, 1e10, *HUGE])
FRACTION = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])


def thresholds(rules: tuple[str, ...]) -> st.SearchStrategy[dict[str, float]]:
    return st.fixed_dictionaries({rule: FRACTION if "fraction" in rule else THRESHOLD for rule in rules})


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    uids = [f"{number:03d}" for number in range(draw(st.integers(0, 12)))]
    screened = {uid: {rule: draw(FEW) for rule in SCREEN} for uid in uids}
    filtered = {uid: {rule: draw(FEW) for rule in FILTER} for uid in uids}
    failed = {uid: "http_404" for uid in uids if draw(st.integers(0, 4)) == 0}
    corpus = Corpus(screened, filtered, draw(thresholds(SCREEN)), draw(thresholds(FILTER)), failed)
    passing = set(corpus.passing(corpus.screen))
    return Corpus(screened, filtered, corpus.screen, corpus.filter, {u: s for u, s in failed.items() if u in passing})
