"""A small dataset with every table that a question can be about: made by the stages, but for pictures and features."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made_dataset import Image, jpeg, write_images

from pipeline import filter, ingest, screen
from pipeline.engine import engine
from pipeline.job import Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, ImageFeatures, write_features
from pipeline.store.table import Shard, Table
from trainers import embed, evaluate, train

PICTURES = 60
LABELS = ("flag", "dogs", "tree")
_WIDTH = 12
_REGIONS = {
    "boxes": Column("float32", (4,)),
    "classes": Column("int32"),
    "confidences": Column("float32"),
    "features": Column("float16", (_WIDTH,), tensor=True),
}
_PIXELS = {"positions": Column("int16", (2,)), "features": Column("uint8", (_WIDTH,), tensor=True)}
_TOWERS = {
    "features": "pixel",
    "steps": 4,
    "text": {"vocabulary": 200, "max_tokens": 24, "norm": False, "causal": True, "pool": "last"},
    "vision": {"kind": "pixel", "norms": ["sum"], "first": "token", "standardize": False},
    "encoder": {
        "hidden": 16,
        "heads": 2,
        "feedforward": 24,
        "norm": "pre",
        "blocks": [{"repeat": 1, "attention": [["text-text", "vision-vision"]], "weights": "separate"}],
    },
    "objectives": {"itc": {"width": 8}},
    "batch": {"size": 8},
    "optimizer": {"learning_rate": 1e-3},
    "validations": 1,
}


def make(folder: Path) -> Dataset:
    """Pairs that fall by each rule, in each split, with boxes, a training called "clip", and its embeddings."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset, random = Dataset(folder / "data"), np.random.default_rng(3)
    urls = [f"http://host{number % 3}/{number}.png" for number in range(PICTURES)]
    rows = [
        (url, text)
        for number, url in enumerate(urls)
        for text in (
            f"a red flag, number {number}",
            f"the dog and its tree {number}",
            "it repeats itself",
            "two words",
        )[: 1 + number % 4]
    ]
    rows += [(urls[0], f"far too many words are in this text of a flag {number}") for number in range(3)]
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("url", "text"), *rows, rows[0], ("", "no url")])
    recipe = Recipe.model_validate(
        {
            "name": "asked",
            "ingest": {"inputs": [str(folder / "list.csv")], "shards": 2},
            "screen": {"rules": {"max_images_per_text": 20, "min_words": 3, "max_words": 8}},
            "filter": {"rules": {"side_above": 200, "max_copies": 1, "near_duplicates": 2}},
            "split": {"train": 0.5, "validation": 0.25, "test": 0.25},
            "train": {"clip": _TOWERS},
        }
    )

    def job(stage: str) -> Job:
        return Job(stage, recipe, dataset, engine("local", 1))

    ingest.run(job("ingest"))
    screen.run(job("screen"))
    _download(dataset, urls, random)
    filter.run(job("filter"))
    with dataset.connect() as connection:
        keys = [key for (key,) in connection.execute("SELECT DISTINCT key FROM kept ORDER BY key").fetchall()]
    _extract(dataset, keys, random)
    for stage, module in {"train": train, "evaluate": evaluate, "embed": embed}.items():
        module.run(job(stage))
    return dataset


def _download(dataset: Dataset, urls: list[str], random: np.random.Generator) -> None:
    noise = [random.integers(0, 250, (16, 16, 3), np.uint8) for _ in urls]
    noise[15] = noise[19] + np.uint8(2)  # a near-duplicate
    pictures = [jpeg(pixels) for pixels in noise]
    pictures[7] = pictures[8]  # a copy
    images = [
        Image(url, status="http_404")
        if number % 11 == 10
        else Image(url, picture, original=(100, 90) if number % 9 == 5 else (400 + number, 300))
        for number, (url, picture) in enumerate(zip(urls, pictures, strict=True))
    ]
    write_images(dataset, [images[::2], images[1::2]])
    fetched = {"url": urls, "status": [image.status for image in images], "http_status": [200] * len(urls)}
    fetched |= {"attempts": [1] * len(urls), "seconds": [0.25] * len(urls), "time": [1.7e9] * len(urls)}
    log = dataset.root / "logs" / "fetches" / "00000-made.parquet"
    log.parent.mkdir(parents=True)
    pq.write_table(pa.table(fetched), log)


def _extract(dataset: Dataset, keys: list[str], random: np.random.Generator) -> None:
    """Boxes and pixels for all pictures but the last."""
    regions, pixels = [], []
    for key in keys[:-1]:
        n = int(random.integers(2, 6))
        corners = np.sort(random.random((n, 2, 2)), axis=1).reshape(n, 4)
        found = {
            "boxes": corners.astype(np.float32),
            "classes": random.integers(0, len(LABELS), n).astype(np.int32),
            "confidences": random.random(n).astype(np.float32),
            "features": random.normal(size=(n, _WIDTH)).astype(np.float16),
        }
        regions.append(ImageFeatures(key, n, found))
        patches = random.integers(0, 256, (6, _WIDTH)).astype(np.uint8)
        pixels.append(
            ImageFeatures(key, 6, {"positions": np.indices((2, 3), np.int16).reshape(2, -1).T, "features": patches})
        )
    _commit(dataset.features("region"), regions, _REGIONS, keys[-1], {"kind": "region", "classes": list(LABELS)})
    _commit(
        dataset.features("pixel"),
        pixels,
        _PIXELS,
        keys[-1],
        {"kind": "pixel", "settings": {"patch": 2, "image_size": 8}},
    )


def _commit(
    table: Table, rows: list[ImageFeatures], columns: dict[str, Column], failed: str, identity: dict[str, object]
) -> None:
    described = {name: column.described for name, column in columns.items()}
    identity = {"model": "made up", "trained": True, "settings": {}, "columns": described, **identity}
    identity |= {"weights": "none", "weights_sha256": "none"}
    with table.writing("key", {"00000": "key"}) as writing:
        write_features(table.folder / "00000.parquet", rows, columns, identity)
        without = pa.table({"key": [failed], "cause": ["decode"], "detail": ["made up"]})
        pq.write_table(without, table.folder / "00000.failed.parquet")
        files = ["00000.parquet", "00000.failed.parquet"]
        writing.add(Shard.of(table.folder, "00000", "key", files, {"rows": len(rows), "failed/decode": 1}))
        writing.commit({"identity": identity})
