"""What a detector saw: a few pictures with their best boxes."""

from dataclasses import dataclass

import duckdb

from pipeline.report.samples import SEED
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from pipeline.store.sql import parquet

PICTURES = 8
BOXES = 4


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
class Region:
    """A picture, its best boxes (most confident first, the one of the whole image left out) and how many it has."""

    key: str
    boxes: list[Box]
    count: int


def collect(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> dict[str, list[Region]]:
    """Region extractor -> some of its pictures, chosen by their keys alone and not by what was found in them."""
    found = {}
    for name in dataset.extractors():
        identity = dataset.features(name).manifest.info["identity"]
        # Imported regions may have no labels.
        if identity["kind"] != "region" or not identity.get("classes") or "classes" not in identity["columns"]:
            continue
        store = FeatureStore(dataset.features(name))
        files = [path for path in dataset.features(name).paths(".parquet") if not path.name.endswith(".failed.parquet")]
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
