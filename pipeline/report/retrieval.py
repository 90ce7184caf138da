"""Retrieval as the page shows it: the table of all runs, and the same queries side by side."""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from pipeline.evaluations import Evaluation
from pipeline.report.pictures import Album, Picture

CUTS = (1, 5, 10)
WAYS = {"t2i": "text → image", "i2t": "image → text"}
QUERIES = 8
"""Each way."""
SHOWN = 5
"""Answers of a run, and right ones."""
LONGEST_TEXT = 160
"""Characters of an answer, which has two lines."""
RUNS = 16
"""Side by side on one query, so that a page of many runs stays readable and small."""


Asked = tuple[str, frozenset[str]]
"""A query and its right answers."""


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
    """One query: the right answers, and each run's best, best first. Of text and image one is the other's answer."""

    query: str
    """A text, or the key of an image."""
    right: list[str]
    by_run: dict[str, list[str]] = field(default_factory=dict)

    @property
    def answers(self) -> list[str]:
        return [*self.right, *chain.from_iterable(self.by_run.values())]


@dataclass(frozen=True)
class Hung:
    """A picture, and the id in the page under which it hangs."""

    id: str
    picture: Picture


@dataclass(frozen=True)
class Gallery:
    """The comparisons' pictures, each of which is in the page once, however often it is shown."""

    album: Album
    comparisons: dict[str, list[Comparison]]

    @cached_property
    def hung(self) -> dict[str, Hung]:
        """Key -> picture, of those that the album has room for. Asked for as late as possible: others come before."""
        texts, images = self.comparisons["t2i"], self.comparisons["i2t"]
        keys = [*(key for text in texts for key in text.answers), *(image.query for image in images)]
        found = {key: self.album.small(key) for key in dict.fromkeys(keys)}
        there = [(key, picture) for key, picture in found.items() if picture]
        # Numbered, as the keys come from a file that anyone may have written.
        return {key: Hung(f"picture{number}", picture) for number, (key, picture) in enumerate(there)}


def rows(evaluated: dict[str, Evaluation]) -> list[Row]:
    made = []
    for run, evaluation in evaluated.items():
        values = evaluation.retrieval
        cells = [(way, cut) for way in WAYS for cut in CUTS]
        recall = {(way, cut): values[f"{way}_r{cut}"] for way, cut in cells}
        chance = {(way, cut): values.get(f"chance_{way}_r{cut}", values.get(f"chance_r{cut}")) for way, cut in cells}
        made.append(Row(run, int(values.get("texts", 0)), int(values.get("images", 0)), recall, chance))
    return made


def comparisons(evaluated: dict[str, Evaluation]) -> dict[str, list[Comparison]]:
    """Way -> the runs' example queries; those that more runs share come first, as only they compare."""
    texts: dict[Asked, Comparison] = {}
    images: dict[Asked, Comparison] = {}
    for run, evaluation in list(evaluated.items())[:RUNS]:
        for text in evaluation.examples:
            _side_by_side(texts, text.text, text.right).by_run[run] = text.top
        for image in evaluation.image_examples:
            _side_by_side(images, image.image, image.right).by_run[run] = image.top
    return {"t2i": _most_shared(texts), "i2t": _most_shared(images)}


def _side_by_side(found: dict[Asked, Comparison], query: str, right: list[str]) -> Comparison:
    """Runs that were evaluated on other pairs may have the same query with other right answers: it is another one."""
    return found.setdefault((query, frozenset(right)), Comparison(query, right))


def _most_shared(found: dict[Asked, Comparison]) -> list[Comparison]:
    return sorted(found.values(), key=lambda comparison: -len(comparison.by_run))[:QUERIES]
