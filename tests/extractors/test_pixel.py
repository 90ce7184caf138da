"""Pixel patches: put together again, they are the resized image."""

import cv2
import numpy as np
import pytest

from pipeline.extractors.pixel import PixelExtractor
from pipeline.recipe import Pixel


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 300), (300, 100), (1, 900), (7, 5), (384, 191)])
@pytest.mark.parametrize(("size", "patch"), [(64, 32), (96, 16)])
def test_patches_put_together_are_the_resized_image(height: int, width: int, size: int, patch: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (found,) = PixelExtractor(Pixel(kind="pixel", image_size=size, patch=patch))([image])
    rows, columns = found["positions"].max(0) + 1
    assert max(rows, columns) == size // patch
    canvas = np.zeros((rows * patch, columns * patch, 3), np.uint8)
    for (row, column), values in zip(found["positions"], found["features"], strict=True):
        canvas[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = values.reshape(patch, patch, 3)
    how = cv2.INTER_AREA if max(height, width) > size else cv2.INTER_CUBIC
    np.testing.assert_array_equal(canvas, cv2.resize(image, (columns * patch, rows * patch), interpolation=how))
