import json

import numpy as np
import pytest
from synthetic import LONGEST, PATCHES, WIDTH

from pipeline.errors import PairmillError
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers.network.features import feature_shape, feature_statistics, features_digest


@pytest.mark.parametrize("features", ["region", "region8", "pixel"])
def test_statistics_are_those_of_the_features(dataset: Dataset, features: str) -> None:
    store = FeatureStore(dataset.features(features))
    keys = [f"{number:09d}" for number in range(0, 150, 2)]
    everything = np.concatenate([store[key]["features"] for key in keys]).astype(np.float64)
    mean, deviation = feature_statistics(store, np.array(keys, np.bytes_))
    np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(deviation, everything.std(0), rtol=1e-4)


def test_features_of_another_kind_are_refused(region_store: FeatureStore) -> None:
    assert feature_shape(region_store, "region").width == WIDTH
    with pytest.raises(PairmillError, match="reads grid features"):
        feature_shape(region_store, "grid")


@pytest.mark.parametrize(("features", "grid"), [("grid", (3, 3)), ("patch", PATCHES), ("pixel", (LONGEST, LONGEST))])
def test_the_grid_is_that_of_the_identity(dataset: Dataset, features: str, grid: tuple[int, int]) -> None:
    assert feature_shape(FeatureStore(dataset.features(features)), features).grid == grid


def test_tokens_without_a_place_are_refused(dataset: Dataset) -> None:
    store = FeatureStore(dataset.features("patch"))
    del store.identity["grid"]
    with pytest.raises(PairmillError, match="no place in rows and columns"):
        feature_shape(store, "patch")


def test_the_digest_is_of_what_the_features_mean(dataset: Dataset) -> None:
    store = FeatureStore(dataset.features("region"))
    digest, in_any_dtype = features_digest(store), features_digest(store, storage=False)
    original = json.dumps(store.identity)
    changes = {
        "weights_sha256": "other",
        "settings": {"image_size": 1},
        "model": "other",
        "classes": ["one"],
        "what_an_extractor_adds": "something",
        "columns": store.identity["columns"] | {"boxes": {"dtype": "float32", "shape": [5], "tensor": False}},
    }
    for name, value in changes.items():
        store.identity = json.loads(original) | {name: value}
        assert features_digest(store) != digest, name
        assert features_digest(store, storage=False) != in_any_dtype, name
    for name, same in {"libraries": {"torch": "99"}, "weights": "the same under another name"}.items():
        store.identity = json.loads(original) | {name: same}
        assert features_digest(store) == digest, name
    small = FeatureStore(dataset.features("region8"))
    assert features_digest(small) != digest
    assert features_digest(small, storage=False) == in_any_dtype
