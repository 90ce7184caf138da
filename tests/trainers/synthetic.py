"""Made-up datasets, recipes and batches; the tables are as the pipeline writes them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from made_dataset import write_screened

from pipeline.model_recipe import ModelRecipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, ImageFeatures, write_features
from pipeline.store.table import Shard, Table
from trainers.data.batch import Batch, TextInput, VisionInput

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
THINGS = ("cat", "house", "tree", "flag", "arrow", "face", "button", "car")
CLASSES = 9
TOP = 4
WIDTH = 12
FUSED = ("text-text", "text-vision", "vision-text", "vision-vision")
OWN, CROSS = ("text-text", "vision-vision"), ("text-vision", "vision-text")


def commit(table: Table, files: Mapping[str, pa.Table], info: dict[str, Any]) -> None:
    """Write Arrow tables as the one shard of a table."""
    with table.writing("key", {"only": "key"}) as writing:
        for name, content in files.items():
            pq.write_table(content, table.folder / name)
        writing.add(Shard.of(table.folder, "only", "key", files, {}))
        writing.commit(info)


def commit_features(
    table: Table, rows: list[ImageFeatures], columns: Mapping[str, Column], identity: dict[str, Any]
) -> None:
    described = {name: column.described for name, column in columns.items()}
    identity = {"model": "made up", "weights_sha256": "none", "settings": {}, "columns": described, **identity}
    with table.writing("key", {"only": "key"}) as writing:
        write_features(table.folder / "only.parquet", rows, columns, identity)
        writing.add(Shard.of(table.folder, "only", "key", ["only.parquet"], {}))
        writing.commit({"identity": identity})


def region_row(key: str, random: np.random.Generator, mark: np.ndarray) -> ImageFeatures:
    """Regions whose features carry `mark` (WIDTH,) in noise."""
    n = int(random.integers(3, 9))
    corners = np.sort(random.random((n, 2, 2)), axis=1).reshape(n, 4)
    probabilities = random.dirichlet(np.full(CLASSES, 0.3), n)
    ids = np.argsort(-probabilities, axis=1)[:, :TOP]
    arrays = {
        "boxes": corners.astype(np.float32),
        "classes": ids[:, 0].astype(np.int32),
        "confidences": probabilities.max(1).astype(np.float32),
        "topk_ids": ids.astype(np.int32),
        "topk_values": np.take_along_axis(probabilities, ids, 1).astype(np.float32),
        "features": (mark + 0.3 * random.normal(size=(n, WIDTH))).astype(np.float16),
    }
    return ImageFeatures(key, n, arrays)


def pixel_row(key: str, random: np.random.Generator, mark: np.ndarray) -> ImageFeatures:
    """Patches whose bytes carry `mark` (WIDTH,) in noise; images differ in shape."""
    rows, columns = (int(side) for side in random.integers(1, LONGEST + 1, 2))
    numbers = 128 + 25 * (mark + 0.3 * random.normal(size=(rows * columns, WIDTH)))
    arrays = {
        "positions": np.indices((rows, columns), np.int16).reshape(2, -1).T,
        "features": numbers.clip(0, 255).astype(np.uint8),
    }
    return ImageFeatures(key, rows * columns, arrays)


def patch_row(key: str, random: np.random.Generator, mark: np.ndarray) -> ImageFeatures:
    tokens = mark + 0.3 * random.normal(size=(PATCHES[0] * PATCHES[1], WIDTH))
    return ImageFeatures(key, len(tokens), {"features": tokens, "pooled": mark.astype(np.float32)})


LONGEST = 4
"""Rows and columns that a picture of pixel patches has at most."""
PATCHES = (2, 4)
PIXEL_COLUMNS = {"positions": Column("int16", (2,)), "features": Column("uint8", (WIDTH,), tensor=True)}
REGION_COLUMNS = {
    "boxes": Column("float32", (4,)),
    "classes": Column("int32"),
    "confidences": Column("float32"),
    "topk_ids": Column("int32", (TOP,)),
    "topk_values": Column("float32", (TOP,)),
    "features": Column("float16", (WIDTH,), tensor=True),
}


def make_dataset(root: Path, images: int = 150) -> Dataset:
    """`images` images with one or two texts each, features of all kinds; some texts are shared between images.

    "region8" and "patch8" are stored as int8.
    """
    dataset, random = Dataset(root), np.random.default_rng(0)
    marks = {word: random.normal(size=WIDTH) for word in (*COLOURS, *THINGS)}
    uids, urls, texts, regions, grids, patches, pixels = [], [], [], [], [], [], []
    others = np.random.default_rng(1)  # what came to this dataset later leaves the first kinds' features as they were
    for number in range(images):
        url, key = f"http://x/{number}.png", f"{number:09d}"
        colour, thing = random.choice(COLOURS), random.choice(THINGS)
        mark = marks[colour] + marks[thing]
        for text in (f"a {colour} {thing}", f"{thing}, {colour}, drawing number {number}")[: 1 + number % 2]:
            uids.append(hashlib.sha256(f"{url} {text}".encode()).hexdigest()[:32])
            urls.append(url)
            texts.append(text)
        regions.append(region_row(key, random, mark))
        cells = (mark + 0.3 * random.normal(size=(9, WIDTH))).astype(np.float16)
        grids.append(ImageFeatures(key, 9, {"features": cells}))
        patches.append(patch_row(key, others, mark))
        pixels.append(pixel_row(key, others, mark))
    strings = pa.array([], pa.string())
    verdicts = pa.table({"uid": strings, "stage": strings, "rule": strings, "value": pa.array([], pa.float64())})
    repeated = pa.table({"uid": strings, "file": strings, "row": pa.array([], pa.int64())})
    commit(
        dataset.pairs,
        {"only.parquet": pa.table({"uid": uids, "url": urls, "text": texts}), "repeated.parquet": repeated},
        {},
    )
    commit(dataset.quarantine, {"only.parquet": verdicts}, {})
    write_screened(dataset, {"only": sorted(uids)})
    addresses = [f"http://x/{number}.png" for number in range(images)]
    stored = {
        "key": [f"{number:09d}" for number in range(images)],
        "url": addresses,
        "status": ["ok"] * images,
        "http_status": [200] * images,
        "sha256": [hashlib.sha256(address.encode()).hexdigest() for address in addresses],
    }
    commit(dataset.images, {"only.parquet": pa.table(stored)}, {})
    split = {"train": 0.6, "validation": 0.2, "test": 0.2}
    commit(dataset.filtered, {"only.parquet": verdicts}, {"rules": {}, "split": split})
    classes = [f"class {number}" for number in range(CLASSES)]
    tensors = {dtype: {"features": Column(dtype, (WIDTH,), tensor=True)} for dtype in ("float16", "int8")}
    pooled = {"pooled": Column("float32", (WIDTH,), per_image=True)}
    made: dict[str, tuple[list[ImageFeatures], dict[str, Column], dict[str, Any]]] = {
        "region": (regions, REGION_COLUMNS, {"kind": "region", "classes": classes}),
        "region8": (regions, REGION_COLUMNS | tensors["int8"], {"kind": "region", "classes": classes}),
        "grid": (grids, tensors["float16"], {"kind": "grid", "grid": [3, 3]}),
        "patch": (patches, tensors["float16"] | pooled, {"kind": "patch", "grid": PATCHES}),
        "patch8": (patches, tensors["int8"] | pooled, {"kind": "patch", "grid": PATCHES}),
        "pixel": (pixels, PIXEL_COLUMNS, {"kind": "pixel", "settings": {"image_size": 8 * LONGEST, "patch": 8}}),
    }
    for name, (rows, columns, identity) in made.items():
        commit_features(dataset.features(name), rows, columns, identity)
    return dataset


def model_recipe(features: str = "region", blocks: list[dict[str, Any]] | None = None, **over: Any) -> ModelRecipe:
    """A minute single-stream model on the features called `features`; keyword arguments replace whole sections."""
    fused = [{"repeat": 2, "attention": [FUSED], "weights": "shared"}]
    encoder = {
        "hidden": 16,
        "heads": 2,
        "feedforward": 24,
        "dropout": 0.1,
        "initializer": 0.2,
        "norm": "pre",
        "blocks": blocks or fused,
    }
    values = {
        "features": features,
        "steps": 12,
        "text": {"vocabulary": 200, "max_tokens": 20},
        "vision": {"kind": features.rstrip("8"), "standardize": features != "pixel"},
        "encoder": encoder,
        "objectives": {"mlm": {}, "itm": {}},
        "batch": {"size": 16},
        "optimizer": {"learning_rate": 1e-3},
        "validations": 1,
    }
    return ModelRecipe.model_validate(values | over)


def random_batch(seed: int, size: int = 5, vocabulary: int = 40, partners: torch.Tensor | None = None) -> Batch:
    """Padded region input with random tokens, boxes and class distributions."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 8, (size,), generator=random)
    counts = torch.randint(2, 7, (size,), generator=random)
    text_present = torch.arange(int(lengths.max())) < lengths[:, None]
    vision_present = torch.arange(int(counts.max())) < counts[:, None]
    tokens = torch.randint(5, vocabulary, text_present.shape, generator=random)
    tokens[:, 0] = 2
    tokens = tokens.scatter(1, lengths[:, None] - 1, 3).masked_fill(~text_present, 0)
    shape = vision_present.shape
    corners = torch.rand((*shape, 2, 2), generator=random).sort(2).values.flatten(2)
    values = torch.rand((*shape, TOP), generator=random)
    vision = VisionInput(
        features=torch.randn((*shape, WIDTH), generator=random).masked_fill(~vision_present[..., None], 0).half(),
        present=vision_present,
        boxes=corners.masked_fill(~vision_present[..., None], 0),
        class_ids=torch.stack([torch.randperm(CLASSES, generator=random)[:TOP] for _ in range(shape.numel())]).view(
            *shape, TOP
        ),
        class_values=0.9 * values / values.sum(-1, keepdim=True),
    )
    own = torch.eye(size, dtype=torch.bool)
    return Batch(
        tuple(map(str, range(size))),
        TextInput(tokens, text_present),
        vision,
        own if partners is None else partners | own,
    )
