"""The page of a dataset that has more of everything than a page has room for."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_dataset import Image, jpeg, made_dataset, write_table

from pipeline import filter as filter_stage
from pipeline import report, screen
from pipeline.engine import engine
from pipeline.job import Job
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, ImageFeatures, write_features
from pipeline.store.table import Shard

SCREEN = {
    "max_images_per_text": 10, "max_texts_per_url": 10, "min_words": 3, "max_words": 20, "vocabulary": 10**8,
    "min_characters": 10, "max_characters": 400, "max_repetition": 0.5, "min_word_frequency": 1,
    "max_character_repetition": 0.5, "max_word_repetition": 0.5, "min_language_score": 0.01,
    "blocked_extensions": [f"ext{number}" for number in range(9000)],
}  # fmt: skip
FILTER = {
    "side_above": 20, "min_side": 21, "aspect_below": 9, "max_aspect": 8, "min_bytes": 10, "max_bytes": 10**9,
    "min_megapixels": 0.00001, "max_megapixels": 5000, "max_texts_per_image": 1000, "max_copies": 5,
    "max_look_alikes": 5, "near_duplicates": 2,
}  # fmt: skip
PICTURES, HOSTS, CLASSES, RUNS, OBJECTIVES, OWN_RULES, STEPS = 400, 400, 2000, 24, 15, 40, 3000


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Pictures of noise, which JPEG does not shrink, on as many hosts, half of which fail by causes of their own."""
    random = np.random.default_rng(0)
    words = ["".join(map(chr, random.integers(0x3B1, 0x3C9, 12))) for _ in range(3000)]
    images, pairs = [], []
    for number in range(PICTURES + HOSTS):
        url = f"http://{'long-name-of-a-host-' * 2}{number}.example/{'path/' * 40}{number}.jpg"
        content, status = b"", f"http_{number % 300 + 300}"
        if number < PICTURES:
            content, status = jpeg(random.integers(0, 255, (352, 352, 3), np.uint8)), "ok"
        side = int(random.integers(21, 3000))
        images.append(Image(url, content, status, (side + number % 7, side), len(content)))
        pairs.append((url, " ".join(random.choice(words, 1 + number % 30))))
    dataset = made_dataset(tmp_path, pairs, [images])
    columns = {"file": "f", "row": "1", "reason": "reason " * 60, "content": "x" * 5000}
    rows = [columns | {"reason": f"{number} {columns['reason']}"} for number in range(500)]
    write_table(dataset.quarantine, {"0000": {"0000": pa.Table.from_pylist(rows)}})
    return dataset


def _add_features(dataset: Dataset, keys: list[str]) -> None:
    names = ["boxes", "classes", "confidences", "features"]
    columns = dict(
        zip(
            names,
            [Column("float32", (4,)), Column("int32"), Column("float32"), Column("float16", (8,), True)],
            strict=True,
        )
    )
    identity: dict[str, Any] = {
        "kind": "region", "model": "m" * 500, "weights": "w" * 500, "weights_sha256": "0" * 64, "trained": True,
        "classes": [f"class {'<&>' * 30} {number}" for number in range(CLASSES)],
        "settings": {"confidence": 0.2, "min_boxes": 2, "max_boxes": 36},
        "columns": {
            name: {"dtype": column.dtype, "shape": list(column.shape), "tensor": column.tensor}
            for name, column in columns.items()
        },
    }  # fmt: skip
    random = np.random.default_rng(1)

    def arrays() -> dict[str, Any]:
        return {
            "boxes": np.sort(random.random((36, 2, 2)), axis=1).reshape(36, 4).astype("float32"),
            "classes": random.integers(0, CLASSES, 36).astype("int32"),
            "confidences": random.random(36).astype("float32"),
            "features": np.zeros((36, 8), "float16"),
        }

    table = dataset.features("region")
    with table.writing("key", {"00000": "key"}) as writing:
        images = [ImageFeatures(key, 36, arrays()) for key in keys]
        rows = write_features(table.folder / "00000.parquet", images, columns, identity)
        writing.add(Shard.of(table.folder, "00000", "key", ["00000.parquet"], {"rows": rows}))
        writing.commit({"identity": identity})


def _evaluation(random: np.random.Generator, keys: list[str]) -> dict[str, Any]:
    """Of texts that are five times as long when they are escaped."""
    texts = [f"{number}{chr(34) * 5000}" for number in range(100)]
    recalls = {f"{way}_r{cut}": 0.5 for way in ("t2i", "i2t") for cut in (1, 5, 10)}

    def some(answers: list[str]) -> dict[str, list[str]]:
        found = random.permutation(answers).tolist()
        return {"top": found[:5], "right": sorted(answers)[:10]}

    return {
        "key": "key",
        "retrieval": recalls | {"chance_r10": 0.1},
        "examples": [{"text": text, **some(keys)} for text in texts[:12]],
        "image_examples": [{"image": key, **some(texts)} for key in keys[:12]],
        "seconds": 1.0,
    }


def _add_runs(dataset: Dataset, keys: list[str]) -> None:
    random = np.random.default_rng(2)
    steps = np.tile(np.arange(STEPS), OBJECTIVES)
    names = np.repeat([f"loss/{'objective' * 5}{number}" for number in range(OBJECTIVES)], STEPS)
    metrics = pa.table({"step": steps, "name": names, "value": random.random(len(steps))})
    for number in range(RUNS):
        table = dataset.run(f"run{number:02d}")
        with table.writing("key", {"model": "key"}) as writing:
            pq.write_table(metrics, table.folder / "metrics.parquet")
            writing.add(Shard.of(table.folder, "model", "key", ["metrics.parquet"], {}))
            writing.commit({"loss_first": 2.0, "loss_last": 1.0, "steps": STEPS})
        (table.folder / "evaluation.json").write_text(json.dumps(_evaluation(random, keys)))


@pytest.mark.slow
def test_a_page_stays_under_ten_megabytes(dataset: Dataset) -> None:
    own = {
        f"own_rule_{'with_a_long_name_' * 3}{number}": {"keep_if": f"length(text) <> {number}" + " AND true" * 50}
        for number in range(OWN_RULES)
    }
    recipe = Recipe.model_validate({"name": "large", "screen": {"rules": SCREEN | own}, "filter": {"rules": FILTER}})
    for stage, run in (("screen", screen.run), ("filter", filter_stage.run)):
        run(Job(stage, recipe, dataset, engine("local", 1)))
    with dataset.connect() as connection:
        keys = [key for (key,) in connection.execute("SELECT DISTINCT key FROM kept ORDER BY key").fetchall()]
    _add_features(dataset, keys)
    _add_runs(dataset, keys)
    report.run(Job("report", recipe, dataset, engine("local", 1)))
    path = dataset.root / "report" / "index.html"
    html = path.read_text()
    assert path.stat().st_size < 10_000_000
    assert 1_000_000 < sum(map(len, re.findall(r"data:image/jpeg;base64,[^\"]*", html))) <= report.pictures.ROOM
    assert html.count("<svg") > 200
    retrieval = html.split('<section id="retrieval">')[1].split("</section>")[0]
    assert len(retrieval) < 2_000_000
    assert f"The first {report.retrieval.RUNS} runs&#39; best texts" in retrieval
    assert "further labels not drawn" in html
    assert re.findall(r"The (\d+) hosts with the most failures, of (\d+)", html) == [("12", "800")]
