"""An image's labels, best first, each once."""

import numpy as np

from pipeline.store.tags import tags

LABELS = ["cat", "dog", "hat"]
ROW = {"classes": np.array([-1, 1, 0, 1, 2]), "confidences": np.array([1.0, 0.5, 0.9, 0.6, 0.1], np.float32)}


def test_tags_are_the_labels_best_first_and_each_once() -> None:
    assert tags(ROW, LABELS) == ["cat", "dog", "hat"]
    assert tags(ROW, LABELS, limit=1) == ["cat"]
    assert tags(ROW, LABELS, confidence=0.55) == ["cat", "dog"]


def test_equal_ones_keep_the_stores_order_and_the_whole_image_has_none() -> None:
    row = {"classes": np.array([-1, 2, 0, 1]), "confidences": np.array([1.0, 0.5, 0.5, 0.5])}
    assert tags(row, LABELS) == ["hat", "cat", "dog"]
    assert tags({name: values[:1] for name, values in row.items()}, LABELS) == []
