"""Retrieval as the page shows it: the table of all runs, and the same queries side by side."""

from dataclasses import dataclass, field
from typing import Any

CUTS = (1, 5, 10)
WAYS = {"t2i": "text → image", "i2t": "image → text"}
QUERIES = 8


@dataclass(frozen=True)
class Row:
    """One run: (way, K) -> recall and what chance alone would give, in [0, 1]; None where chance was not worked out."""

    run: str
    texts: int
    images: int
    recall: dict[tuple[str, int], float]
    chance: dict[tuple[str, int], float | None]

    def times_chance(self, way: str) -> float | None:
        """How many times better than chance, at the largest K."""
        chance = self.chance[way, CUTS[-1]]
        return self.recall[way, CUTS[-1]] / chance if chance else None


@dataclass
class Comparison:
    """One text query: the keys of the right pictures, and each run's best, best first."""

    text: str
    right: list[str]
    by_run: dict[str, list[str]] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        return {*self.right, *(key for top in self.by_run.values() for key in top)}


def rows(evaluations: dict[str, Any]) -> list[Row]:
    made = []
    for run, evaluation in evaluations.items():
        values = evaluation["retrieval"]
        cells = [(way, cut) for way in WAYS for cut in CUTS]
        recall = {(way, cut): values[f"{way}_r{cut}"] for way, cut in cells}
        chance = {(way, cut): values.get(f"chance_{way}_r{cut}", values.get(f"chance_r{cut}")) for way, cut in cells}
        made.append(Row(run, values.get("texts", 0), values.get("images", 0), recall, chance))
    return made


def comparisons(evaluations: dict[str, Any]) -> list[Comparison]:
    """The runs' example queries; those that more runs share come first, as only they compare."""
    found: dict[str, Comparison] = {}
    for run, evaluation in evaluations.items():
        for example in evaluation.get("examples", []):
            comparison = found.setdefault(example["text"], Comparison(example["text"], list(example["right"])))
            comparison.by_run[run] = list(example["top"])
    return sorted(found.values(), key=lambda comparison: -len(comparison.by_run))[:QUERIES]
