"""Pairs as numbers, against the same with Python's own sets and tuples."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import WIDTH, commit_features, make_dataset, model_recipe

from pipeline.store.dataset import Dataset
from pipeline.store.features import Column, FeatureStore, ImageFeatures
from pipeline.store.table import Table
from trainers import text
from trainers.samples import Pairs, Samples, prepare, read_pairs
from trainers.text import encode, train_tokenizer


@pytest.fixture(scope="module")
def pairs(dataset: Dataset, region_store: FeatureStore) -> Pairs:
    return read_pairs(dataset, region_store, "train", "1GB")


@pytest.fixture(scope="module")
def samples(pairs: Pairs, region_store: FeatureStore) -> Samples:
    return prepare(pairs, train_tokenizer(pairs.texts.to_pylist(), 200), model_recipe(), region_store)


def keys_of(pairs: Pairs) -> list[str]:
    return [pairs.keys[image].decode() for image in pairs.image_of]


def test_pairs_come_in_order_of_uid_and_splits_are_apart(dataset: Dataset, region_store: FeatureStore) -> None:
    splits = [read_pairs(dataset, region_store, split, "1GB") for split in ("train", "validation", "test")]
    for pairs in splits:
        assert len(pairs)
        assert pairs.uids.tolist() == sorted(set(pairs.uids.tolist()))
        assert pairs.keys.tolist() == sorted(set(pairs.keys.tolist()))
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
    whole = read_pairs(dataset, FeatureStore(dataset.features("region")), "train", "1GB")
    lost = set(whole.keys.tolist()[::3])
    columns = {"features": Column("float16", (WIDTH,), tensor=True)}
    rows = [
        ImageFeatures(key, 9, {"features": np.zeros((9, WIDTH))})
        for key in FeatureStore(dataset.features("region")).keys()  # noqa: SIM118 - a store is no dict
        if key.encode() not in lost
    ]
    commit_features(dataset.features("some"), rows, columns, {"kind": "grid", "grid": [3, 3]})
    some = read_pairs(dataset, FeatureStore(dataset.features("some")), "train", "1GB")
    gone = [key.encode() in lost for key in keys_of(whole)]
    assert some.without_features == sum(gone) > 0
    assert some.uids.tolist() == [uid for uid, is_gone in zip(whole.uids.tolist(), gone, strict=True) if not is_gone]


def test_samples_are_what_the_tokenizer_and_the_store_say(
    pairs: Pairs, samples: Samples, region_store: FeatureStore
) -> None:
    texts, keys = pairs.texts.to_pylist(), keys_of(pairs)
    encoded = encode(train_tokenizer(texts, 200), texts, 20)
    assert [tuple(samples.sequence(row).tolist()) for row in range(len(samples))] == encoded
    assert samples.text_lengths.tolist() == [len(sequence) for sequence in encoded]
    assert samples.image_lengths.tolist() == [region_store[key].n for key in keys]
    assert samples.keys_of(np.arange(len(samples))) == keys
    places = [region_store.place(key) for key in keys]
    numbers = {place: number for number, place in enumerate(sorted(set(places)))}
    assert len(numbers) > 1
    assert samples.groups.tolist() == [numbers[place] for place in places]


def test_blocks_of_texts_change_nothing(
    pairs: Pairs, samples: Samples, region_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "TEXTS_AT_ONCE", 7)
    again = prepare(pairs, train_tokenizer(pairs.texts, 200), model_recipe(), region_store)
    for name, values in vars(samples).items():
        assert np.array_equal(values, getattr(again, name)), name


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Eight images."""
    table = Table(tmp_path_factory.mktemp("few"), "extract")
    rows = [ImageFeatures(str(number), 1, {"features": np.zeros((1, 2))}) for number in range(8)]
    commit_features(table, rows, {"features": Column("float16", (2,), tensor=True)}, {"kind": "grid", "grid": [1, 1]})
    return FeatureStore(table)


WORDS = train_tokenizer(["red cat", "a big house"] * 3, 200)


@given(
    st.lists(st.tuples(st.sampled_from(["red", "RED", "cat", "a cat", "big", "a"]), st.integers(0, 7)), min_size=1),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=12),
)
@settings(max_examples=80, deadline=None)
def test_partners_are_all_true_pairs_of_the_split(
    few: FeatureStore, paired: list[tuple[str, int]], drawn: list[int]
) -> None:
    texts = [text for text, _ in paired]
    keys, image_of = np.unique(np.array([str(image) for _, image in paired], np.bytes_), return_inverse=True)
    uids = np.array([f"{row:032x}" for row in range(len(paired))], np.bytes_)
    pairs = Pairs(uids, pa.array(texts, pa.large_string()), image_of.astype(np.int32), keys, 0)
    some = prepare(pairs, WORDS, model_recipe("grid"), few)
    rows = np.array([row % len(paired) for row in drawn])
    true = {(text.lower(), image) for text, image in paired}  # the model reads lower case
    expected = [[(texts[text].lower(), paired[image][1]) in true for image in rows] for text in rows]
    assert some.partners(rows).tolist() == expected


def test_a_pair_is_some_hundred_bytes(pairs: Pairs, samples: Samples) -> None:
    assert all(isinstance(values, np.ndarray) and values.dtype != object for values in vars(samples).values())
    assert sum(values.nbytes for values in vars(samples).values()) < 120 * len(samples)
