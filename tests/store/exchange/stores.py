"""Finished tables of features, made without extractors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store.features import Column, FeatureStore, ImageFeatures, write_features
from pipeline.store.table import Shard, Table

CLASSES = ("cat", "dog", "tree", "sun", "cloud")


def region_row(random: np.random.Generator, key: str, n: int, dimension: int = 6, top_k: int = 3) -> ImageFeatures:
    """A row as the region extractor leaves it: first the whole image, which has no class."""
    boxes = np.sort(random.random((n, 2, 2)), axis=1).reshape(n, 4).astype(np.float32)
    boxes[0] = 0, 0, 1, 1
    classes = random.integers(0, len(CLASSES), n).astype(np.int32)
    ids = np.stack([(label + np.arange(top_k)) % len(CLASSES) for label in classes]).astype(np.int32)
    values = -np.sort(-random.dirichlet(np.ones(len(CLASSES)), n), axis=1)[:, :top_k].astype(np.float32)
    classes[0], ids[0], values[0] = -1, 0, 0
    return ImageFeatures(
        key,
        n,
        {
            "boxes": boxes,
            "classes": classes,
            "confidences": np.concatenate([[1], random.random(n - 1)]).astype(np.float32),
            "topk_ids": ids,
            "topk_values": values,
            "features": random.normal(0, 3, (n, dimension)).astype(np.float32),
        },
    )


def region_columns(dimension: int = 6, dtype: str = "float16", top_k: int = 3) -> dict[str, Column]:
    return {
        "boxes": Column("float32", (4,)),
        "classes": Column("int32"),
        "confidences": Column("float32"),
        "topk_ids": Column("int32", (top_k,)),
        "topk_values": Column("float32", (top_k,)),
        "features": Column(dtype, (dimension,), tensor=True),
    }


def write_table(
    table: Table, shards: Mapping[str, Sequence[ImageFeatures]], columns: Mapping[str, Column], **identity: Any
) -> FeatureStore:
    """Commit a table of these shards, as `extract` does."""
    made = {
        "kind": "region",
        "model": "made up",
        "trained": True,
        "weights_sha256": "0" * 64,
        "classes": list(CLASSES),
        **identity,
        "columns": {name: column.described for name, column in columns.items()},
    }
    with table.writing("key", dict.fromkeys(shards, "key")) as writing:
        for name, rows in shards.items():
            written = write_features(table.folder / f"{name}.parquet", rows, columns, made)
            writing.add(Shard.of(table.folder, name, "key", [f"{name}.parquet"], {"rows": written}))
        writing.commit({"identity": made})
    return FeatureStore(table)


def region_store(folder: Path, sizes: Sequence[int] = (3, 1, 5), dtype: str = "float16", seed: int = 0) -> FeatureStore:
    """One shard of region features: an image for each number of boxes."""
    random = np.random.default_rng(seed)
    rows = [region_row(random, f"{number:09d}", n) for number, n in enumerate(sizes)]
    return write_table(Table(folder, "extract"), {"00000": rows}, region_columns(dtype=dtype))
