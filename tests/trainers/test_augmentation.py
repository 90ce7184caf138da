"""Each operation against Pillow's, which RandAugment was published with."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from pipeline.model_recipe import Augmentation, Vision
from trainers.data.augmentation import OPERATIONS, SHIFT, augmented


def picture(seed: int, height: int = 48, width: int = 80) -> np.ndarray:
    """Smooth blobs of colour over a part of the range, and some noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(30, 200, (5, 7, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + random.integers(-12, 13, smooth.shape)).clip(3, 240).astype(np.uint8)


def moved(matrix: Callable[[float, Image.Image], tuple[float, ...]]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, s: image.transform(image.size, Image.Transform.AFFINE, matrix(s, image))


PILLOWS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, s: image,
    "shear_x": moved(lambda s, _: (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": moved(lambda s, _: (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": moved(lambda s, image: (1, 0, round(SHIFT * s * image.width), 0, 1, 0)),
    "translate_y": moved(lambda s, image: (1, 0, 0, 0, 1, round(SHIFT * s * image.height))),
    "rotate": lambda image, s: image.rotate(30 * s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "colour": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 - 256 * abs(s)),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}
GEOMETRIC = {"shear_x", "shear_y", "rotate"}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [-0.9, -0.3, 0.3, 1.0])
def test_an_operation_is_pillows(name: str, strength: float) -> None:
    for seed in range(3):
        before = picture(seed)
        kept = before.copy()
        found = OPERATIONS[name](before, strength)
        assert np.array_equal(before, kept)
        assert found.shape == before.shape
        assert found.dtype == np.uint8
        expected = np.asarray(PILLOWS[name](Image.fromarray(before), strength)).astype(int)
        apart = np.abs(found.astype(int) - expected).max(-1)
        if name in GEOMETRIC:
            # Pixels between two are rounded to the one or the other.
            assert (apart > 0).mean() < 0.02
            continue
        assert apart.max() <= 2


def test_of_one_colour() -> None:
    for level in (0, 9, 255):
        flat = np.full((16, 16, 3), level, np.uint8)
        for name in ("autocontrast", "equalize"):
            assert np.array_equal(OPERATIONS[name](flat, 0.3), np.asarray(PILLOWS[name](Image.fromarray(flat), 0.3)))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.integers(0, 30), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_patches_are_cut_as_they_came(rows: int, columns: int, operations: int, magnitude: int, seed: int) -> None:
    """The augmented picture's patches are the patches of the picture augmented as a whole."""
    image = picture(seed % 7, rows * 8, columns * 8)

    def cut(image: np.ndarray) -> np.ndarray:
        parts = [image[r * 8 : r * 8 + 8, c * 8 : c * 8 + 8].reshape(-1) for r in range(rows) for c in range(columns)]
        return np.stack(parts)

    positions = np.array([(r, c) for r in range(rows) for c in range(columns)], np.int16)
    how = Augmentation.model_construct(operations=operations, magnitude=magnitude)
    random = np.random.default_rng(seed)
    for name in random.choice(list(OPERATIONS), operations):
        image = OPERATIONS[name](image, magnitude / 30 * float(random.choice((-1, 1))))
    again = augmented(cut(picture(seed % 7, rows * 8, columns * 8)), positions, how, np.random.default_rng(seed))
    assert np.array_equal(again, cut(image))


def test_a_part_of_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="no picture of 2 x 2"):
        augmented(
            np.zeros((3, 48), np.uint8), np.array([[0, 0], [0, 1], [1, 1]]), Augmentation(), np.random.default_rng(0)
        )


def test_only_pixels_are_augmented() -> None:
    assert Vision(kind="pixel", augment=Augmentation()).augment == Augmentation(operations=2, magnitude=9)
    with pytest.raises(ValueError, match="augment needs pixel features"):
        Vision(kind="grid", augment=Augmentation())
