"""What the benchmarks of features stand on: made-up data, both sides of a comparison, and that unequal work is told."""

import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.engine import InlineEngine
from pipeline.extractors.pixel import PixelExtractor
from pipeline.job import Job
from pipeline.recipe import Grid, Pixel, Recipe
from pipeline.signals.pictures import decoded, members
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore, ImageFeatures
from pipeline.weights import find
from tests.bench import extraction, feature_peers, feature_sizes, feature_streams, feature_waits, front
from tests.bench.cached_epochs import Extracting
from tests.bench.extraction import Work, extract
from tests.bench.feature_sides import SIDES
from tests.bench.feature_sizes import compared, cosines
from tests.bench.feature_streams import cached, drop_cache, fill_cache, in_turns
from tests.bench.feature_tables import identity_of, regions, write_regions, write_store
from tests.bench.flat_features import FEWEST, MOST, Flat, make_flat, sums
from tests.bench.made_collection import SPLIT, make_collection, photograph
from tests.bench.made_training import tiny
from tests.trainers.synthetic import make_dataset, model_recipe
from trainers import train

IMAGES = 150
WIDTH = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made-up")
    make_flat(root / "flat", IMAGES, WIDTH)
    write_regions(root, Flat(root / "flat"))
    return root


@pytest.fixture(scope="module")
def flat(root: Path) -> Flat:
    return Flat(root / "flat")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("photographs")
    return make_collection(folder, 10, lambda number: photograph(number, 120), shard_images=4)


def reference(flat: Flat) -> dict[str, int]:
    """`sums` of all images, a number at a time."""
    totals = dict.fromkeys(flat.columns, 0) | {"n": flat.offsets[-1]}
    for name, column in flat.columns.items():
        raw = column.tobytes()
        totals[name] = sum(
            int.from_bytes(raw[at : at + column.itemsize], "little") for at in range(0, len(raw), column.itemsize)
        )
    return totals


def test_made_up_images_are_as_many_and_as_wide_as_said(flat: Flat) -> None:
    n = np.diff(flat.offsets)
    assert len(flat) == IMAGES
    assert n.min() >= FEWEST
    assert n.max() <= MOST
    assert 30 < n.mean() < 42
    assert {name: column.shape[0] for name, column in flat.columns.items()} == dict.fromkeys(
        flat.columns, flat.offsets[-1]
    )
    boxes, values = flat.columns["boxes"], flat.columns["topk_values"]
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert (np.diff(values, axis=1) <= 0).all()
    assert 0.3 < (flat.columns["features"] == 0).mean() < 0.5  # as sparse as after a ReLU


def test_batches_of_the_limit_hold_each_image_and_zeros(flat: Flat) -> None:
    order = np.random.default_rng(1).permutation(IMAGES).tolist()
    seen = 0
    for batch in flat.batches(order, size=7):
        members = order[seen : seen + 7]
        seen += len(batch["n"])
        for name in flat.columns:
            assert batch[name].shape[1] == batch["n"].max()
            for row, image in enumerate(members):
                there = flat.rows(image)[name]
                assert len(there) == batch["n"][row]
                np.testing.assert_array_equal(batch[name][row, : len(there)], there)
                assert not batch[name][row, len(there) :].any()
    assert seen == IMAGES


def test_sums_hang_on_every_number_and_neither_on_order_nor_padding(flat: Flat) -> None:
    whole = reference(flat)
    assert sums(flat.batches(range(IMAGES))) == whole
    assert sums(flat.batches(reversed(range(IMAGES)), size=11)) == whole
    assert sums(
        [{**flat.rows(image), "n": np.array([len(flat.rows(image)["classes"])])} for image in range(IMAGES)]
    ) == (whole)

    def damaged() -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(flat.batches(range(IMAGES))):
            if number == 1:
                batch["features"].view(np.uint16)[3, 2, 1] ^= 1
            yield batch

    found = sums(damaged())
    assert found.pop("features") != whole.pop("features")
    assert found == whole


@pytest.mark.parametrize("seed", [None, 0])
def test_the_store_gives_what_the_limit_gives(root: Path, flat: Flat, seed: int | None) -> None:
    sides = [SIDES["store"](root, seed), SIDES["flat"](root / "flat", seed)]
    for _ in range(2):
        assert [sums(next(side)) for side in sides] == [reference(flat)] * 2


@pytest.mark.parametrize("layout", ["tsv", "webdataset"])  # what the others' packages are not needed for
def test_a_peer_reads_what_it_wrote(layout: str, root: Path, flat: Flat, tmp_path: Path) -> None:
    peer = feature_peers.LAYOUTS[layout]()
    peer.write(root / "flat", tmp_path)
    assert feature_peers.sums(peer.read(tmp_path, 0)) == reference(flat)


def test_a_peer_shuffles(root: Path, tmp_path: Path) -> None:
    peer = feature_peers.TsvLayout()
    peer.write(root / "flat", tmp_path)
    orders = [torch.cat([batch["n"] for batch in peer.read(tmp_path, 0)]).tolist() for _ in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_the_cache_is_dropped_and_filled() -> None:
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        path = folder / "sub" / "file"
        path.parent.mkdir()
        path.write_bytes(os.urandom(1 << 20))
        (folder / "empty").touch()
        drop_cache(folder)
        assert cached(folder) == 0
        path.open("rb").read(1)
        assert 0 < cached(folder) < 1
        fill_cache(folder)
        assert cached(folder) == 1
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as held:
            assert sum(held[:: mmap.PAGESIZE]) > 0
            with pytest.raises(AssertionError, match="stays in the page cache"):
                drop_cache(folder)  # what a process has mapped and seen cannot go


def test_turns_give_medians_and_tell_of_other_work() -> None:
    def side(*seconds: float, **over: object) -> Iterator[dict[str, object]]:
        return iter([{"seconds": each, "images": 60, "regions": 7, "sums": {"n": 7}, **over} for each in seconds])

    ours, other = side(3, 1, 2), side(10, 30, 20)
    assert in_turns(3, {"ours": lambda: next(ours), "other": lambda: next(other)}) == {"ours": 30, "other": 3}
    for over in ({"images": 59}, {"regions": 8}, {"sums": {"n": 8}}):
        ours, other = side(1), side(1, **over)
        with pytest.raises(AssertionError, match="different work"):
            in_turns(1, {"ours": lambda: next(ours), "other": lambda: next(other)})  # noqa: B023


def test_bytes_and_cosines_of_int8(root: Path, tmp_path: Path) -> None:
    original, smaller, rows = compared(root, "region", tmp_path, "made-up")
    assert [row.unit for row in rows] == ["x", "cosine", "cosine"]
    found = []
    for key in original.keys():  # noqa: SIM118 - it is no dict
        before, after = original[key]["features"].astype(float), smaller[key]["features"].astype(float)
        found += [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(before, after, strict=True)]
    assert cosines(original, smaller) == pytest.approx((min(found), np.mean(found)), abs=1e-12)
    assert 0.99 < min(found) < 1
    assert smaller.columns["features"].dtype == "int8"
    np.testing.assert_array_equal(original["000000003"]["boxes"], smaller["000000003"]["boxes"])


def test_a_vector_lost_in_one_store_is_told(tmp_path: Path) -> None:
    columns = regions(WIDTH)
    arrays = {
        name: np.ones(column.row_shape(2), column.dtype) for name, column in columns.items() if name != "features"
    }
    features = np.zeros((2, WIDTH))
    for name, value in (("one", 0.0), ("other", 1.0)):
        row = ImageFeatures("0", 2, {**arrays, "features": features + value})
        write_store(tmp_path, name, columns, 1, lambda _, row=row: row, identity_of("region", columns))
    one, other = (FeatureStore.open(tmp_path, name) for name in ("one", "other"))
    assert cosines(one, one) == (1, 1)
    with pytest.raises(AssertionError, match="zero in one"):
        cosines(one, other)


def test_photographs_are_as_large_as_said_and_hold_detail() -> None:
    content = photograph(3, 384)
    picture = decoded(content)
    assert picture is not None
    assert picture.shape == (288, 384, 3)
    assert 0.15 < len(content) / (288 * 384) < 1  # bytes a pixel; photographs at this quality have 0.2 to 0.5
    assert photograph(3, 384) == content
    assert photograph(4, 384) != content
    assert cv2.Laplacian(picture, cv2.CV_32F).std() > 3


def test_a_collection_is_kept_as_a_whole(photographs: Dataset, tmp_path: Path) -> None:
    keys = [key for tar in photographs.images.paths(".tar") for key, _ in members(tar)]
    with photographs.connect() as connection:
        kept = connection.execute("SELECT key FROM kept ORDER BY key").fetchall()
    assert [key for (key,) in kept] == keys == [f"{number:09d}" for number in range(10)]
    with make_collection(tmp_path, 3000).connect() as connection:
        splits = dict(connection.execute("SELECT split, count(*) / 3000 FROM kept GROUP BY split").fetchall())
    assert splits == pytest.approx(SPLIT, abs=0.02)


def test_extracting_each_time_gives_what_the_store_gives(photographs: Dataset, tmp_path: Path) -> None:
    section = Pixel(kind="pixel", image_size=64, patch=16)
    extractor = PixelExtractor(section, find(section), torch.device("cpu"))
    files = {key: content for tar in photographs.images.paths(".tar") for key, content in members(tar)}

    def row(image: int) -> ImageFeatures:
        picture = decoded(files[f"{image:09d}"])
        assert picture is not None
        (arrays,) = extractor([extractor.prepare(picture)])
        return ImageFeatures(f"{image:09d}", len(arrays["features"]), arrays)

    write_store(tmp_path, "pixel", extractor.columns, 10, row, identity_of("pixel", extractor.columns))
    store = FeatureStore.open(tmp_path, "pixel")
    anew = Extracting(store, extractor, files)
    keys = ["000000004", "000000001", "000000004"]
    for positions in (None, [np.array([1]), np.array([0, 2, 3]), np.array([5, 2])]):
        ours, other = store.gather(keys, positions=positions), anew.gather(keys, positions=positions)
        np.testing.assert_array_equal(ours.n, other.n)
        assert ours.arrays.keys() == other.arrays.keys()
        for name, array in ours.arrays.items():
            np.testing.assert_array_equal(array, other[name])
    assert not anew.gather(keys, columns=()).arrays


def test_a_side_that_leaves_an_image_out_is_told(photographs: Dataset, tmp_path: Path) -> None:
    sections = {"pixel": Pixel(kind="pixel", image_size=64, patch=16)}
    work = Work(photographs.root, 0, sections, threads=1)
    extract(work, 1)
    made = photographs.root / "extracted" / "0" / "pixel" / "00001.parquet"
    assert pq.read_table(made, columns=["key"])["key"].to_pylist() == [f"{number:09d}" for number in range(4, 8)]
    broken = make_collection(
        tmp_path, 4, lambda number: photograph(number, 64) if number else b"no picture", shard_images=4
    )
    with pytest.raises(AssertionError, match="of 4 images"):
        extract(replace(work, dataset=broken.root), 0)


def test_a_bench_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench"])
    assert front.run("made-up", {"no_such_bench": "", "nor_this": ""}, ("numpy",), "") == 2
    assert (tmp_path / "bench" / "made-up.json").read_text() == "[]\n"


def test_retrieval_on_int8_features_of_a_trained_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(feature_sizes, "FOLDER", tmp_path / "bench")
    dataset = make_dataset(tmp_path / "synthetic", images=60)
    runs = {"wide": model_recipe("region", steps=4), "small": model_recipe("region8", steps=2)}
    train.run(Job("train", Recipe(name="synthetic", train=runs), dataset, InlineEngine()))
    rows = feature_sizes.retrieval(dataset.root)
    # The model that was trained on int8 features is left out.
    assert [row.unit for row in rows] == ["x", "cosine", "cosine", "points apart", "points apart"]
    assert all(row.work.startswith("wide, R@10") for row in rows[3:])
    store, smaller = (
        FeatureStore.open(dataset.root, "region"),
        FeatureStore.open(tmp_path / "bench/int8/synthetic", "region"),
    )
    assert cosines(store, smaller)[1] == pytest.approx(rows[1].ratio, abs=1e-3)


def test_a_step_beside_the_loader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(feature_streams, "FOLDER", tmp_path)
    monkeypatch.setattr(feature_waits, "tiny", partial(tiny, batch={"size": 16}))
    row = feature_waits.waits(100, 3, 1)
    assert row.unit == "% of the step"
    assert 0 < row.ratio < 1000


@pytest.mark.slow
def test_streams_beside_the_limit_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(feature_streams, "FOLDER", tmp_path)
    rows = feature_streams.against_limit(300, 1)
    assert [row.target for row in rows] == [">= 0.85", ">= 0.85", ">= 0.75", ">= 0.75"]
    assert all(0 < row.ratio < 100 for row in rows)


@pytest.mark.slow
def test_extraction_beside_the_bare_forward(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extraction, "FOLDER", tmp_path)
    monkeypatch.setattr(extraction, "SINGLE", {"efficientnet": Grid(kind="grid", image_size=64)})
    crew = extraction.Crew()
    (row,) = extraction.against_forward(crew, 6, 1)
    crew.dismiss()
    assert 0 < row.ratio < 100
