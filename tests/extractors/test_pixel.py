"""Pixel patches: put together again, they are the resized image."""

import cv2
import numpy as np
import pytest
import torch

from pipeline.extractors.pixel import PixelExtractor
from pipeline.recipe import Pixel
from pipeline.weights import find


def extractor_of(size: int, patch: int) -> PixelExtractor:
    section = Pixel(kind="pixel", image_size=size, patch=patch)
    return PixelExtractor(section, find(section), torch.device("cpu"))


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (100, 300), (300, 100), (1, 900), (7, 5), (384, 191), (1, 1), (1, 20_000)]
)
@pytest.mark.parametrize(("size", "patch"), [(64, 32), (96, 16)])
def test_patches_put_together_are_the_resized_image(height: int, width: int, size: int, patch: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    extractor = extractor_of(size, patch)
    (found,) = extractor([extractor.prepare(image)])
    rows, columns = found["positions"].max(0) + 1
    assert max(rows, columns) == size // patch
    canvas = np.zeros((rows * patch, columns * patch, 3), np.uint8)
    for (row, column), values in zip(found["positions"], found["features"], strict=True):
        canvas[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = values.reshape(patch, patch, 3)
    how = cv2.INTER_AREA if max(height, width) > size else cv2.INTER_CUBIC
    np.testing.assert_array_equal(canvas, cv2.resize(image, (columns * patch, rows * patch), interpolation=how))


def test_rows_have_the_columns_form_and_pictures_do_not_meet() -> None:
    extractor = extractor_of(96, 16)
    images = [np.full((height, 90, 3), height, np.uint8) for height in (20, 60, 90)]
    rows = extractor([extractor.prepare(image) for image in images])
    for image, row in zip(images, rows, strict=True):
        n = len(row["features"])
        assert {name: (str(row[name].dtype), row[name].shape) for name in row} == {
            name: (column.dtype, (n, *column.shape)) for name, column in extractor.columns.items()
        }
        assert np.unique(row["features"]).tolist() == [image.shape[0]]  # one colour in, one colour out
