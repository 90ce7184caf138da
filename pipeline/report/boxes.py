"""What a detector saw: a few pictures with their best boxes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import duckdb

from pipeline.report.samples import SEED
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from pipeline.store.sql import parquet

PICTURES = 8
BOXES = 4
"""Of a picture; the page has as many colours for them."""
BADGE = 8.0
"""Percent of the picture's width that a box's number takes up."""


@dataclass(frozen=True)
class Box:
    """Position and size in percent of the picture. `sure`: its confidence passes the recipe's threshold."""

    left: float
    top: float
    width: float
    height: float
    label: str
    confidence: float
    sure: bool


@dataclass(frozen=True)
class Badge:
    """Where a box's number stands, BADGE wide. In percent of the picture."""

    left: float
    top: float
    height: float

    def hides(self, other: "Badge") -> bool:
        return abs(self.left - other.left) < BADGE - 1e-6 and abs(self.top - other.top) < self.height - 1e-6


@dataclass(frozen=True)
class Region:
    """A picture, its best boxes (most confident first, the one of the whole image left out) and how many it has."""

    key: str
    boxes: list[Box]
    count: int

    def badges(self, aspect: float) -> list[Badge]:
        """Each box's number in a corner of its own box; where others stand in all four, as near as there is room.

        `aspect`: the picture's width / height.
        """
        height = min(BADGE * aspect, 100 / (BOXES + 1))
        placed: list[Badge] = []
        for box in self.boxes:
            placed.append(next(at for at in _places(box, height) if not any(map(at.hides, placed))))
        return placed


def _places(box: Box, height: float) -> Iterator[Badge]:
    """The box's corners, then steps away from the first of them. More, all in the picture, than BOXES badges hide."""
    lefts = [min(max(left, 0.0), 100 - BADGE) for left in (box.left, box.left + box.width - BADGE)]
    tops = [min(max(top, 0.0), 100 - height) for top in (box.top, box.top + box.height - height)]
    yield from (Badge(left, top, height) for top in tops for left in lefts)
    steps = range(-BOXES, BOXES + 1)
    for down, right in sorted(product(steps, steps), key=lambda step: (abs(step[0]) + abs(step[1]), step)):
        at = Badge(lefts[0] + right * BADGE, tops[0] + down * height, height)
        if 0 <= at.left <= 100 - BADGE and 0 <= at.top <= 100 - height:
            yield at


def collect(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> dict[str, list[Region]]:
    """Region extractor -> some of its pictures, chosen by their keys alone and not by what was found in them."""
    found = {}
    for name in dataset.extractors():
        identity = dataset.features(name).manifest.info["identity"]
        # Imported regions may have no labels.
        if identity["kind"] != "region" or not identity.get("classes") or "classes" not in identity["columns"]:
            continue
        store = FeatureStore(dataset.features(name))
        files = dataset.feature_files(name)
        query = f"SELECT key FROM {parquet(files)} ORDER BY md5(key || ?), key LIMIT ?"
        rows = connection.execute(query, [SEED, PICTURES]).fetchall() if files else []
        found[name] = [_region(store, key) for (key,) in rows]
    return found


def _region(store: FeatureStore, key: str) -> Region:
    row, names = store[key], store.identity["classes"]
    threshold = store.identity["settings"].get("confidence", 0.0)  # imported regions have none
    numbers = zip(row["boxes"].tolist(), row["classes"].tolist(), row["confidences"].tolist(), strict=True)
    drawn = [
        Box(100 * x1, 100 * y1, 100 * (x2 - x1), 100 * (y2 - y1), names[label], confidence, confidence >= threshold)
        for (x1, y1, x2, y2), label, confidence in numbers
        if label >= 0  # the box of the whole image has no class
    ]
    return Region(key, sorted(drawn, key=lambda box: -box.confidence)[:BOXES], row.n)
