import numpy as np
import pytest
import torch
from synthetic import WIDTH, model_recipe

from pipeline.errors import PairmillError
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers.loader import make_batch, prefetched
from trainers.samples import Samples, feature_shape, feature_statistics, image_lengths, prepare, read_pairs
from trainers.text import train_tokenizer


@pytest.fixture(scope="module")
def samples(dataset: Dataset, region_store: FeatureStore) -> Samples:
    pairs = read_pairs(dataset, region_store, "train", "1GB")
    tokenizer = train_tokenizer(pairs.texts, 200)
    return prepare(pairs, tokenizer, model_recipe(), region_store, image_lengths(dataset.features("region")))


def test_pairs_come_in_order_of_uid_and_splits_are_apart(dataset: Dataset, region_store: FeatureStore) -> None:
    splits = [read_pairs(dataset, region_store, split, "1GB") for split in ("train", "validation", "test")]
    assert all(list(pairs.uids) == sorted(pairs.uids) and len(pairs) for pairs in splits)
    keys = [set(pairs.keys) for pairs in splits]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]


def test_a_batch_holds_what_the_store_holds(samples: Samples, region_store: FeatureStore) -> None:
    rows = list(range(0, 40, 3))
    batch = make_batch(samples, region_store, rows, (0, 0))
    for place, row in enumerate(rows):
        image = region_store[samples.pairs.keys[row]]
        present = batch.vision.present[place]
        assert int(present.sum()) == image.n == samples.image_lengths[row]
        assert np.array_equal(batch.vision.features[place][present].numpy(), image["features"])
        assert not batch.vision.features[place][~present].any()
        assert batch.vision.boxes is not None
        assert np.array_equal(batch.vision.boxes[place][present].numpy(), image["boxes"])
        assert tuple(batch.text.tokens[place][batch.text.present[place]].tolist()) == samples.tokens[row]


def test_partners_are_all_true_pairs_of_the_split(samples: Samples, region_store: FeatureStore) -> None:
    rows = list(range(len(samples)))
    partners = make_batch(samples, region_store, rows, (0, 0)).partners
    true_pairs = set(zip(samples.pairs.texts, samples.pairs.keys, strict=True))
    for first, text in enumerate(samples.pairs.texts):
        for second, key in enumerate(samples.pairs.keys):
            assert bool(partners[first, second]) == ((text, key) in true_pairs)
    assert int(partners.sum()) > len(rows)


def test_sampled_grid_cells_keep_their_place(dataset: Dataset) -> None:
    store = FeatureStore(dataset.features("grid"))
    pairs = read_pairs(dataset, store, "train", "1GB")
    recipe = model_recipe("grid", vision={"kind": "grid", "sample": 4})
    samples = prepare(pairs, train_tokenizer(pairs.texts, 200), recipe, store, image_lengths(dataset.features("grid")))
    assert set(samples.image_lengths) == {4}
    vision = make_batch(samples, store, [0, 1], (3, 3), 4, np.random.default_rng(0)).vision
    assert vision.features.shape == (2, 4, WIDTH)
    assert vision.cells is not None
    for row in range(2):
        for position in range(4):
            line, column = vision.cells[row, position].tolist()
            cell = store[pairs.keys[row]]["features"][3 * line + column]
            assert np.array_equal(vision.features[row, position].numpy(), cell)


def test_statistics_are_those_of_the_features(dataset: Dataset, region_store: FeatureStore) -> None:
    keys = list(read_pairs(dataset, region_store, "train", "1GB").keys)
    everything = np.concatenate([region_store[key]["features"] for key in set(keys)]).astype(np.float64)
    mean, deviation = feature_statistics(region_store, keys)
    np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(deviation, everything.std(0), rtol=1e-4)


def test_features_of_another_kind_are_refused(region_store: FeatureStore) -> None:
    assert feature_shape(region_store, "region").width == WIDTH
    with pytest.raises(PairmillError, match="reads grid features"):
        feature_shape(region_store, "grid")


def test_prefetching_keeps_order_and_hands_over_errors() -> None:
    assert list(prefetched(lambda n: n * n, range(50))) == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(prefetched(lambda n: 1 / n, [1, 0]))
    endless = prefetched(lambda n: torch.zeros(n), iter(lambda: 1, 0))
    assert len(next(endless)) == 1
    endless.close()
