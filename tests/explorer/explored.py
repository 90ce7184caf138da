"""A small dataset with hostile texts, urls and class names, made by the real stages, and the explorer serving it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made_dataset import Image, jpeg, write_images

from pipeline import filter, ingest, screen
from pipeline.engine import engine
from pipeline.job import Job
from pipeline.recipe import load
from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, ImageFeatures, write_features
from pipeline.store.table import Shard

SCRIPT = "<script>alert(1)</script> three words"
BREAKOUT = '"><img src=x onerror=alert(2)> out it breaks'
TEMPLATE = "{{ 7 * 7 }} ${7 * 7} </script><svg onload=alert(3)> and more"
HOSTILE_URL = "javascript:alert(4)//picture"
HOSTILE_CLASS = "<img src=x onerror=alert(5)>"
PICTURES = 60
RECIPE = """
name = "explored"
[ingest]
inputs = ["{lists}"]
[screen.rules]
min_words = 3
max_characters = 80
[filter.rules]
min_side = 32
max_aspect = 3.0
near_duplicates = 2
"""


@dataclass(frozen=True)
class Explored:
    """What is served where."""

    data: Path
    recipe: Path
    address: str


def pairs() -> list[tuple[str, str]]:
    """(url, text): 60 pictures, of which some have two texts, some too short a one, and some hostile ones."""
    found = [(_url(n), f"picture number {n} of {PICTURES}") for n in range(PICTURES)]
    found += [(_url(n), f"another text about number {n}") for n in range(0, PICTURES, 10)]
    found += [(_url(n), "short") for n in range(0, PICTURES, 7)]
    found += [(_url(n), "long " * n) for n in range(20, PICTURES, 9)]
    found += [(_url(1), SCRIPT), (_url(2), BREAKOUT), (_url(3), TEMPLATE)]
    return [*found, (HOSTILE_URL, "a link that should not be one")]


def _url(number: int) -> str:
    return f"http://web.example/{number}.png"


def _picture(number: int) -> bytes:
    """Noise of its own; every eighth too small, every ninth all but the one before."""
    side, seed = (24, number) if number % 8 == 5 else (96, number - 1 if number % 9 == 8 else number)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (8, 8, 3), np.uint8)
    pixels = np.kron(blocks, np.ones((side // 8, side // 8, 1), np.uint8))
    return jpeg(pixels + np.uint8(number % 9 == 8))


def make(folder: Path) -> Path:
    """The dataset in folder/data and its recipe, whose path is returned."""
    lists = folder / "pairs.parquet"
    pq.write_table(pa.table(dict(zip(("url", "text"), map(list, zip(*pairs(), strict=True)), strict=True))), lists)
    recipe = folder / "explored.toml"
    recipe.write_text(RECIPE.format(lists=lists))
    dataset, settings = Dataset(folder / "data"), load(recipe)
    with closing(engine("local", 1)) as running:
        ingest.run(Job("ingest", settings, dataset, running))
        screen.run(Job("screen", settings, dataset, running))
        _write_images(dataset)
        filter.run(Job("filter", settings, dataset, running))
    _add_regions(dataset)
    return recipe


def _write_images(dataset: Dataset) -> None:
    sizes = [24 if number % 8 == 5 else 96 for number in range(PICTURES)]
    images = [Image(_url(n), _picture(n), original=(sizes[n], sizes[n])) for n in range(PICTURES)]
    images[7] = Image(_url(7), status="http_error")
    write_images(dataset, [images[:30], [*images[30:], Image(HOSTILE_URL, status="bad_url")]])


def _add_regions(dataset: Dataset) -> None:
    columns = {
        "boxes": Column("float32", (4,)),
        "classes": Column("int32"),
        "confidences": Column("float32"),
        "features": Column("float16", (8,), tensor=True),
    }
    arrays = {
        "boxes": np.array([[0, 0, 1, 1], [0.1, 0.1, 0.5, 0.6]], "float32"),
        "classes": np.array([1, 0], "int32"),
        "confidences": np.array([0.9, 0.7], "float32"),
    }
    rng = np.random.default_rng(0)

    def drawn() -> np.ndarray:
        return rng.normal(size=(2, 8)).astype("float16")

    identity = {
        "kind": "region",
        "model": "detector.yaml",
        "weights": "untrained",
        "weights_sha256": "untrained",
        "trained": False,
        "classes": [HOSTILE_CLASS, "thing"],
        "settings": {"confidence": 0.2, "min_boxes": 2, "max_boxes": 2},
        "columns": {
            name: {"dtype": column.dtype, "shape": list(column.shape), "tensor": column.tensor}
            for name, column in columns.items()
        },
    }
    with dataset.connect() as connection:
        keys = [key for (key,) in connection.execute("SELECT DISTINCT key FROM kept ORDER BY key").fetchall()]
    table = dataset.features("region")
    with table.writing("key", {"00000": "key"}) as writing:
        rows = write_features(
            table.folder / "00000.parquet",
            [ImageFeatures(key, 2, arrays | {"features": drawn()}) for key in keys],
            columns,
            identity,
        )
        writing.add(Shard.of(table.folder, "00000", "key", ["00000.parquet"], {"rows": rows}))
        writing.commit({"identity": identity})


@contextmanager
def serving(data: Path, recipe: Path | None = None) -> Iterator[str]:
    """`pairmill explore` in a process of its own, on a free port; its address. Ctrl-C must end it well."""
    command = [sys.executable, "-m", "pipeline.cli", "explore", "--data", str(data), "--port", "0"]
    process = subprocess.Popen(
        command + (["--recipe", str(recipe)] if recipe else []),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout
    assert process.stderr
    line = process.stdout.readline()
    try:
        assert line, process.stderr.read()
        yield line.split()[0]
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors
