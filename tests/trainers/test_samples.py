"""Pairs, catalogues and partners, against the same with Python's own lists, sets and tuples."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import WIDTH, commit_features, make_dataset

from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, FeatureStore, ImageFeatures, write_features
from pipeline.store.table import Shard, Table
from trainers.data.samples import Catalogue, Pairs, Partners, byte_strings, pairs_in, read_pairs


@pytest.fixture(scope="module")
def pairs(dataset: Dataset, region_store: FeatureStore) -> Pairs:
    return read_pairs(dataset, region_store, "train", "1GB")


def keys_of(pairs: Pairs) -> list[str]:
    return [pairs.keys[image].decode() for image in pairs.image_of]


def some_features(dataset: Dataset, name: str, lost: set[bytes]) -> FeatureStore:
    """Of all images but these."""
    columns = {"features": Column("float16", (WIDTH,), tensor=True)}
    rows = [
        ImageFeatures(key, 9, {"features": np.zeros((9, WIDTH))})
        for key in FeatureStore(dataset.features("region")).keys()  # noqa: SIM118 - a store is no dict
        if key.encode() not in lost
    ]
    commit_features(dataset.features(name), rows, columns, {"kind": "grid", "grid": [3, 3]})
    return FeatureStore(dataset.features(name))


def test_pairs_come_in_order_of_uid_and_splits_are_apart(dataset: Dataset, region_store: FeatureStore) -> None:
    splits = [read_pairs(dataset, region_store, split, "1GB") for split in ("train", "validation", "test")]
    for pairs in splits:
        assert len(pairs)
        assert pairs.uids.tolist() == sorted(set(pairs.uids.tolist()))
        assert pairs.keys.tolist() == sorted(set(pairs.keys.tolist()))
        assert set(pairs.image_of.tolist()) == set(range(len(pairs.keys)))
        assert pairs.without_features == 0
    keys = [set(pairs.keys.tolist()) for pairs in splits]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    with dataset.connect() as connection:
        rows = connection.execute("SELECT uid, text, key FROM kept WHERE split = 'train' ORDER BY uid").fetchall()
    uids = [uid.decode() for uid in splits[0].uids.tolist()]
    assert list(zip(uids, splits[0].texts.to_pylist(), keys_of(splits[0]), strict=True)) == rows


def test_pairs_without_features_are_counted(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, images=40)
    whole = pairs_in(dataset, [], "train", "1GB")
    lost = [set(whole.keys.tolist()[first::3]) for first in (0, 1)]
    stores = [some_features(dataset, name, keys) for name, keys in zip(("some", "others"), lost, strict=True)]
    for found, gone in (
        (read_pairs(dataset, stores[0], "train", "1GB"), lost[0]),
        (pairs_in(dataset, [Catalogue.of(store) for store in stores], "train", "1GB"), lost[0] | lost[1]),
    ):
        kept = [row for row, key in enumerate(keys_of(whole)) if key.encode() not in gone]
        assert found.without_features == len(whole) - len(kept) > 0
        assert found.uids.tolist() == whole.uids[kept].tolist()
        assert found.texts.to_pylist() == whole.texts.take(pa.array(kept)).to_pylist()
        assert keys_of(found) == [keys_of(whole)[row] for row in kept]
        assert found.keys.tolist() == sorted(set(found.keys.tolist()))


def test_a_catalogue_is_what_the_store_says_of_each_image(region_store: FeatureStore) -> None:
    catalogue = Catalogue.of(region_store)
    keys = list(region_store)
    assert [key.decode() for key in catalogue.keys.tolist()] == keys
    assert catalogue.lengths.tolist() == [region_store[key].n for key in keys]
    places = [region_store.place(key) for key in keys]
    numbers = {place: number for number, place in enumerate(sorted(set(places)))}
    assert len(numbers) > 1
    assert catalogue.groups.tolist() == [numbers[place] for place in places]
    assert catalogue.shards.tolist() == [shard for shard, _ in numbers]


def test_a_catalogue_goes_through_all_shards(tmp_path: Path) -> None:
    table, columns = Table(tmp_path, "extract"), {"features": Column("float16", (2,), tensor=True)}
    identity = {"kind": "grid", "model": "made up", "columns": {name: c.described for name, c in columns.items()}}
    counts, first = {"a": 130, "b": 64, "c": 1}, 0
    with table.writing("key", dict.fromkeys(counts, "key")) as writing:
        for name, count in counts.items():
            rows = [
                ImageFeatures(f"{number:05}", 1 + number % 3, {"features": np.zeros((1 + number % 3, 2))})
                for number in range(first, first + count)
            ]
            write_features(table.folder / f"{name}.parquet", rows, columns, identity)
            writing.add(Shard.of(table.folder, name, "key", [f"{name}.parquet"], {}))
            first += count
        writing.commit({"identity": identity})
    store = FeatureStore(table)
    catalogue = Catalogue.of(store)
    assert catalogue.keys.tolist() == [key.encode() for key in store]
    assert catalogue.lengths.tolist() == [1 + number % 3 for number in range(195)]
    assert catalogue.groups.tolist() == [0] * 64 + [1] * 64 + [2] * 2 + [3] * 64 + [4]
    assert catalogue.shards.tolist() == [0, 0, 0, 1, 2]
    for place, key in enumerate(store):
        group = catalogue.groups[place]
        assert store.place(key) == (catalogue.shards[group], [0, 1, 2, 0, 0][group])


@given(st.sets(st.integers(0, 30)), st.lists(st.integers(0, 30), max_size=20))
def test_keys_are_found(there: set[int], asked: list[int]) -> None:
    keys = [f"{number:02}" for number in sorted(there)]
    nothing = np.zeros(len(keys), np.int32)
    catalogue = Catalogue(np.array(keys, "S2"), nothing, nothing, nothing)
    names = [f"{number:02}" for number in asked]
    found = catalogue.find(np.array(names, "S2")).tolist()
    assert found == [keys.index(name) if name in keys else -1 for name in names]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1), st.lists(st.integers(0, 10**6), min_size=1)
)
def test_partners_are_all_true_pairs_of_the_split(paired: list[tuple[int, int]], drawn: list[int]) -> None:
    first, second = np.array(paired, np.int32).T
    rows = np.array([row % len(paired) for row in drawn])
    true = set(paired)
    expected = [[(paired[text][0], paired[image][1]) in true for image in rows] for text in rows]
    assert Partners(first, second).among(rows).tolist() == expected


@given(st.lists(st.lists(st.text("ab0-", max_size=9), max_size=5), max_size=3), st.integers(0, 2))
def test_strings_become_bytes(chunks: list[list[str]], skipped: int) -> None:
    arrays = [pa.array(chunk, pa.string())[skipped:] for chunk in chunks]
    expected = [text.encode() for chunk in chunks for text in chunk[skipped:]]
    assert byte_strings(pa.chunked_array(arrays, pa.string())).tolist() == expected
