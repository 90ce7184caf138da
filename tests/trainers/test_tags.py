"""Object tags as tokens, against one image at a time by `pipeline.store.tags`."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import CLASSES, REGION_COLUMNS, WIDTH, commit_features
from tokenizers import Tokenizer

from pipeline.errors import PairmillError
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore, ImageFeatures
from pipeline.store.table import Table
from pipeline.store.tags import tags
from trainers.data.tags import _ranked, class_tokens, image_tags
from trainers.data.text import SEP, train_tokenizer

LABELS = ("cat", "dog", "hot dog", "cat", "red house", "tree")  # two classes of one name


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One that cuts some of the names to pieces."""
    return train_tokenizer(["cat tree", "hot house", "class 1 2 3"] * 3, 100)


def store_of(folder: Path, regions: list[list[tuple[int, float]]], labels: tuple[str, ...] = LABELS) -> FeatureStore:
    """Images with regions of these classes and confidences."""
    rows = []
    for number, found in enumerate(regions):
        n = len(found)
        arrays = {
            "boxes": np.zeros((n, 4)),
            "classes": np.array([label for label, _ in found], np.int32),
            "confidences": np.array([confidence for _, confidence in found], np.float32),
            "topk_ids": np.zeros((n, 4), np.int32),
            "topk_values": np.zeros((n, 4)),
            "features": np.zeros((n, WIDTH)),
        }
        rows.append(ImageFeatures(f"{number:04}", n, arrays))
    commit_features(Table(folder, "extract"), rows, REGION_COLUMNS, {"kind": "region", "classes": labels})
    return FeatureStore(Table(folder, "extract"))


REGIONS = st.lists(
    st.tuples(st.integers(-1, len(LABELS) - 1), st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0])), min_size=1, max_size=7
)


@given(st.lists(REGIONS, min_size=1, max_size=6), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_tags_are_the_names_that_fit_best_first(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, images: list[list[tuple[int, float]]], limit: int
) -> None:
    store = store_of(tmp_path_factory.mktemp("regions"), images)
    found = image_tags(store, tokenizer, limit)
    names = dict(zip(LABELS, class_tokens(tokenizer, LABELS), strict=True))
    assert len(found) == len(images)
    for place, key in enumerate(store):
        expected: list[int] = []
        for name in tags(store[key].arrays, LABELS):
            if len(expected) + len(names[name]) + 1 > limit:
                break
            expected += names[name]
        assert found[place].tolist() == [*expected, SEP]


def test_blocks_of_images_change_nothing(
    dataset: Dataset, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(dataset.features("region"))
    whole = image_tags(store, tokenizer, 9)
    assert len(whole) == len(store)
    assert 1 < whole.lengths.mean() <= 9
    monkeypatch.setattr("trainers.data.tags.IMAGES_AT_ONCE", 7)
    again = image_tags(store, tokenizer, 9)
    assert np.array_equal(whole.tokens, again.tokens)
    assert np.array_equal(whole.starts, again.starts)


def test_names_are_pieces_without_ends(tokenizer: Tokenizer) -> None:
    names = class_tokens(tokenizer, [f"class {number}" for number in range(CLASSES)])
    assert [tokenizer.decode(list(name)) for name in names[1:3]] == ["class 1", "class 2"]
    assert class_tokens(tokenizer, [""]) == ((),)


def test_what_is_no_detector_has_no_tags(dataset: Dataset, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(PairmillError, match="no objects"):
        image_tags(FeatureStore(dataset.features("grid")), tokenizer, 9)
    store = store_of(tmp_path, [[(0, 0.5)], [(6, 0.5)]])
    with pytest.raises(PairmillError, match="class 6"):
        image_tags(store, tokenizer, 9)


def test_equal_confidences_keep_their_order() -> None:
    classes = np.array([[3, -1, 1, 3, 2, 0], [-1, -1, -1, 5, 5, 4]])
    confidences = np.array([[0.5, 1.0, 0.5, 0.9, 0.5, 0.1], [1.0, 1.0, 1.0, 0.2, 0.7, 0.2]])
    ranked = _ranked(classes, confidences)
    assert [[place for place in row if place >= 0] for row in ranked.tolist()] == [[3, 1, 2, 0], [5, 4]]
