"""What the benchmarks of SQL and of the explorer stand on: the made-up dataset, and that unequal answers are told."""

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.catalog import refresh
from pipeline.store.dataset import EMBEDDINGS, Dataset
from pipeline.store.features import FeatureStore
from pipeline.store.pictures import Pictures
from pipeline.web.image_shard import METADATA, agrees
from tests.bench import explore, explore_pages, explore_sql
from tests.bench.explore_dataset import FEWEST, IMAGES_A_SHARD, LONGEST, MOST, Made, make
from tests.bench.explore_run import RUN, SPACE, write_run

PAIRS = 2000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = make(PAIRS, tmp_path_factory.mktemp("bench"))
    write_run(made.dataset)
    refresh(made.dataset)
    return made


@pytest.fixture
def dataset(made: Made) -> Dataset:
    return made.dataset


def test_it_is_settled_and_a_fifth_is_kept(dataset: Dataset) -> None:
    assert dataset.is_settled
    with dataset.connect() as connection:
        kept, dropped, known = (
            connection.execute(f"SELECT count(*) FROM {view}").fetchall()[0][0] for view in ("kept", "drops", "pairs")
        )
        assert kept + dropped == known == PAIRS
        assert 0.15 < kept / known < 0.3
        fell = dict(connection.execute("SELECT stage, sum(pairs) FROM funnel GROUP BY stage").fetchall())
        assert all(fell[stage] > 0 for stage in ("screen", "download", "filter"))
        splits = connection.execute("SELECT count(DISTINCT key) FROM kept").fetchall()
        assert sum(row[0] for row in connection.execute("SELECT images FROM splits").fetchall()) == splits[0][0]


def test_images_are_as_download_leaves_them(dataset: Dataset) -> None:
    pictures = Pictures(dataset.images)
    for shard in dataset.images.manifest.shards:
        assert agrees(dataset.images.folder, shard.name)
    rows = pq.read_table(dataset.images.folder / "00000.parquet")
    assert rows.schema.equals(METADATA)
    assert len(rows) <= IMAGES_A_SHARD
    for row in rows.to_pylist():
        picture = pictures.jpeg(row["key"])
        assert (picture is not None) == (row["status"] == "ok")
        if picture:
            assert max(Image.open(io.BytesIO(picture)).size) == LONGEST


def test_what_is_made_is_not_made_again(made: Made) -> None:
    files = [path for path in made.dataset.root.rglob("*") if path.is_file() and path.parent.name != "logs"]
    before = {path: path.stat().st_mtime_ns for path in files if path != made.recipe}
    make(PAIRS, made.dataset.root.parent)
    write_run(made.dataset)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_every_kept_image_has_regions_and_an_embedding(dataset: Dataset) -> None:
    with dataset.connect() as connection:
        keys = [key for (key,) in connection.execute("SELECT DISTINCT key FROM kept ORDER BY key").fetchall()]
    store = FeatureStore(dataset.features("region"))
    assert list(store.keys()) == keys
    assert {FEWEST <= store[key].n <= MOST for key in keys[:50]} == {True}
    assert (store[keys[0]]["boxes"][0] == [0, 0, 1, 1]).all()
    found = pq.read_table(dataset.run(RUN).folder / EMBEDDINGS)
    images = found.filter(np.array(found["modality"].to_pylist()) == "image")
    assert images["key"].to_pylist() == keys
    vectors = images["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, SPACE)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_bytes_of_columns_and_footers_are_those_of_the_files(dataset: Dataset) -> None:
    table = dataset.features("region")
    files = sum(path.stat().st_size for path in table.paths(".parquet"))
    sizes = explore_sql.feature_bytes(dataset)
    assert 0.99 * files < sum(sizes.values()) <= files
    boxes = FeatureStore(table)
    n = sum(boxes[key].n for key in boxes.keys())  # noqa: SIM118 - a store is no mapping
    assert n * 16 < sizes["boxes"] < n * 16 * 1.2


def test_sql_gives_what_pandas_and_pyarrow_give(dataset: Dataset) -> None:
    rows = explore_sql.measure(dataset, PAIRS, 1)
    assert len(rows) == len(explore_sql.questions(dataset)) + 4
    assert all(row.ratio > 0 for row in rows if row.unit != "s")


def test_a_wrong_answer_is_told(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [replace(question, peer=lambda: -1) for question in explore_sql.questions(dataset) if question.peer]
    for question in asked:
        monkeypatch.setattr(explore_sql, "questions", lambda _, question=question: [question])
        with pytest.raises(AssertionError, match="-1 by"):
            explore_sql.measure(dataset, PAIRS, 1)


def test_bytes_that_were_read_are_counted(dataset: Dataset) -> None:
    few = explore_sql.ask(dataset.catalog, "SELECT count(*) FROM kept")
    many = explore_sql.ask(dataset.catalog, "SELECT sum(length(text)) FROM pairs")
    assert few.rows[0][0] < PAIRS
    assert few.bytes < many.bytes
    written = sum(path.stat().st_size for path in dataset.pairs.paths(".parquet"))
    assert written / 10 < many.bytes < 3 * written


@pytest.mark.slow
def test_the_explorer_is_measured_in_a_browser(made: Made) -> None:
    if not (shutil.which("chromium") or shutil.which("google-chrome") or os.environ.get("CI")):
        pytest.skip("no chromium on this machine: apt-get install chromium")
    rows = explore_pages.measure(made, PAIRS, 1)
    assert len(rows) == len(explore_pages.PAGES) + 4
    assert all(0 < row.ratio < 60 for row in rows)


def test_quick_sizes_are_arguments_of_the_modules() -> None:
    for module, flags in explore.BENCHES.items():
        source = Path(__file__).with_name(f"{module}.py").read_text()
        assert all(f'"{flag}"' in source for flag in flags.split() if flag.startswith("--"))
