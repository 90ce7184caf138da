"""Feature tables written without the stage: the store's own writer, over made-up or converted rows."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.store.atomic import digest
from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, FeatureStore, FeatureWriter, ImageFeatures
from pipeline.store.table import Shard, Table
from tests.bench.flat_features import CLASSES, TOP_K, Flat

SHARD = 1000
REGIONS = {
    "boxes": Column("float32", (4,)),
    "classes": Column("int32"),
    "confidences": Column("float32"),
    "topk_ids": Column("int32", (TOP_K,)),
    "topk_values": Column("float32", (TOP_K,)),
}


def regions(width: int, dtype: str = "float16") -> dict[str, Column]:
    """The columns of region features, `width` wide."""
    return {**REGIONS, "features": Column(dtype, (width,), tensor=True)}


def identity_of(kind: str, columns: Mapping[str, Column], **more: object) -> dict[str, object]:
    """An identity as `extract` writes it, of features that nobody extracted."""
    return {
        "kind": kind,
        "model": "made-up",
        "trained": False,
        "weights": "none",
        "weights_sha256": "none",
        "settings": {},
        "columns": {name: column.described for name, column in columns.items()},
        "libraries": {},
        **more,
    }


def write_store(
    root: Path,
    name: str,
    columns: Mapping[str, Column],
    images: int,
    row: Callable[[int], ImageFeatures],
    identity: Mapping[str, object],
    rows_a_shard: int = SHARD,
    made_from: str = "",
) -> None:
    """Rows 0 to `images`, in order of key, as the features `name` of the dataset `root`, unless they are there, made
    from the same."""
    table = Dataset(root).features(name)
    key = digest(images, rows_a_shard, identity, made_from)
    if table.is_current(key):
        return
    firsts = {f"{first // rows_a_shard:05d}": first for first in range(0, images, rows_a_shard)}
    with table.writing(key, dict.fromkeys(firsts, key)) as writing:
        for shard in writing.todo:
            with FeatureWriter(table.folder / f"{shard}.parquet", columns, identity) as writer:
                for image in range(firsts[shard], min(firsts[shard] + rows_a_shard, images)):
                    writer.add(row(image))
            writing.add(Shard.of(table.folder, shard, key, [f"{shard}.parquet"], {"rows": writer.rows}))
        writing.commit({"identity": dict(identity)})


def write_regions(root: Path, flat: Flat, name: str = "region", dtype: str = "float16") -> None:
    """The flat arrays as a region store."""
    columns = regions(flat.columns["features"].shape[1], dtype)
    classes = [f"class {number}" for number in range(CLASSES)]

    def row(image: int) -> ImageFeatures:
        arrays = flat.rows(image)
        return ImageFeatures(f"{image:09d}", len(arrays["classes"]), arrays)

    write_store(root, name, columns, len(flat), row, identity_of("region", columns, classes=classes))


def write_converted(table: Table, root: Path, name: str, dtype: str) -> None:
    """A table's features once more, as the features `name` of the dataset `root`, their tensor as `dtype`."""
    store = FeatureStore(table)
    columns = {**store.columns, "features": replace(store.columns["features"], dtype=dtype)}
    identity = {**store.identity, "columns": {column: of.described for column, of in columns.items()}}
    keys = list(store.keys())
    origin = table.manifest.digest
    write_store(root, name, columns, len(keys), lambda image: store[keys[image]], identity, made_from=origin)
