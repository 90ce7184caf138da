"""The images of one staged shard, with their pictures and boxes: what a worker reads."""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import PairmillError
from pipeline.exports.images import Box, Caption, Image, file_name, number_or_none
from pipeline.exports.staging import METADATA, PAIRS, SCORE, Plan
from pipeline.store.atomic import file_sha256
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from pipeline.store.pictures import Pictures
from pipeline.store.table import Table

_BATCH = 64
"""Rows at once: a list's own columns may hold texts of any size."""


def read_images(root: Path, staging: Path, shard: str, plan: Plan) -> Iterator[Image]:
    """The images of an image shard that are to go out, in order of key; one picture in memory at a time.

    Raises PairmillError that names the file where a tar or features are missing or are not what the manifest says.
    """
    dataset = Dataset(root)
    pictures = _pictures(dataset.images, shard)
    stores = {
        name: _store(dataset.features(name).folder, dataset.features(name).manifest.digest) for name in plan.extractors
    }
    for key, rows in groupby(_rows(staging / PAIRS, shard), key=lambda row: row["key"]):
        pairs = list(rows)
        jpeg = pictures.jpeg(file_name(key))
        if jpeg is None:
            raise PairmillError(
                f"{dataset.images.folder / f'{shard}.tar'} holds no picture {key}",
                "remove it and run `make download` again",
            )
        yield Image(
            key=key,
            sha256=pairs[0]["sha256"],
            split=pairs[0]["split"],
            width=pairs[0]["width"],
            height=pairs[0]["height"],
            captions=tuple(_caption(row, plan) for row in pairs),
            boxes=tuple(box for name, store in stores.items() for box in _boxes(name, store, key)),
            jpeg=jpeg,
        )


def _rows(staged: Path, shard: str) -> Iterator[dict[str, Any]]:
    """Those of the shard, a few at a time, out of the row groups that have any: they are sorted by shard."""
    with pq.ParquetFile(staged, buffer_size=1 << 20, pre_buffer=False) as file:
        column = file.schema_arrow.get_field_index("shard")
        chunks = [file.metadata.row_group(group).column(column) for group in range(file.num_row_groups)]
        groups = [at for at, chunk in enumerate(chunks) if chunk.statistics.min <= shard <= chunk.statistics.max]
        for batch in file.iter_batches(_BATCH, row_groups=groups, use_threads=False):
            yield from batch.filter(pc.field("shard") == shard).to_pylist()


def _caption(row: Mapping[str, Any], plan: Plan) -> Caption:
    scores = {name: number_or_none(row[SCORE + name]) for name in plan.scores}
    metadata = {field.name: row[METADATA + field.name] for field in plan.metadata}
    metadata |= {field.name: _strict(metadata[field.name]) for field in plan.metadata if field.kind == "json"}
    return Caption(file_name(row["uid"]), row["url"], row["text"], scores, metadata)


def _strict(text: str | None) -> str | None:
    """DuckDB's JSON without NaN and infinity, which JSON has not."""
    if text is None:
        return None
    return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)


def _pictures(images: Table, shard: str) -> Pictures:
    """The pictures, once this shard's tar is known to be the one that `download` wrote: bytes go out as they are."""
    described = next(entry for entry in images.manifest.shards if entry.name == shard)
    for file in described.files:
        path = images.folder / file.name
        if path.suffix != ".tar":
            continue
        if not path.exists():
            raise PairmillError(f"{path} is missing", f"run `make {images.made_by}` again")
        if file_sha256(path) != file.sha256:
            raise PairmillError(f"{path} is damaged", f"remove it and run `make {images.made_by}` again")
    return Pictures(images)


@lru_cache(maxsize=4)
def _store(folder: Path, digest: str) -> FeatureStore:
    """A worker reads many shards, and opening a store looks at each of its files. `digest`: its content's."""
    return FeatureStore(Table(folder, "extract"))


def _boxes(extractor: str, store: FeatureStore, key: str) -> Iterator[Box]:
    """None where the extractor could do nothing with the image."""
    if key not in store:
        return
    names = store.identity.get("classes") or []
    asked = [column for column in ("boxes", "classes", "confidences") if column in store.columns]
    found = store.gather([key], columns=asked)
    number = int(found.n[0])
    boxes = found["boxes"][0, :number].tolist()
    classes = found["classes"][0, :number].tolist() if "classes" in asked else [-1] * number
    confidences = found["confidences"][0, :number].tolist() if "confidences" in asked else [None] * number
    for box, label, confidence in zip(boxes, classes, confidences, strict=True):
        yield Box(extractor, tuple(box), names[label] if 0 <= label < len(names) else None, confidence)
