"""RandAugment for models that see pixels (Cubuk et al. 2020, section 3; ViLT, section 3.4).

Of each image's operations `operations` are drawn, evenly and with replacement, and applied one after the other, each as
strongly as `magnitude` of 30 says and half of them the other way round. As in ViLT there is no inversion of colours,
which texts speak of, and no cutout, which may take away what they speak of. Everything is done in bytes.
"""

from collections.abc import Callable
from math import ceil

import cv2
import numpy as np

from pipeline.model_recipe import Augmentation

STRONGEST = 30
"""The magnitude at which an operation reaches the end of its range."""
ENHANCEMENT = 0.9
SHEAR = 0.3
TURN = 30.0
"""Degrees."""
SHIFT = 150 / 331
"""Of the side: AutoAugment's 150 pixels of 331."""
POSTERIZED = 4
"""How many bits of a byte go at the most."""

Operation = Callable[[np.ndarray, float], np.ndarray]
"""(h, w, 3) uint8 and a strength in [-1, 1] -> an image of the same shape."""


def augmented(patches: np.ndarray, positions: np.ndarray, how: Augmentation, random: np.random.Generator) -> np.ndarray:
    """An image's patches -> those of the augmented image: (n, p * p * 3) uint8, row by row, as `positions` (n, 2) say.

    All patches of the image must be there.
    """
    rows, columns = (int(side) for side in positions.max(0) + 1)
    if len(patches) != rows * columns:
        raise ValueError(f"{len(patches)} patches are no picture of {rows} x {columns}")
    side = round((patches.shape[1] / 3) ** 0.5)
    cut = (rows, columns, side, side, 3)
    image = np.ascontiguousarray(patches.reshape(cut).swapaxes(1, 2).reshape(rows * side, columns * side, 3))
    for name in random.choice(list(OPERATIONS), how.operations):
        strength = how.magnitude / STRONGEST * float(random.choice((-1, 1)))
        image = OPERATIONS[name](image, strength)
    return image.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(patches.shape)


def _warped(image: np.ndarray, matrix: list[list[float]] | np.ndarray) -> np.ndarray:
    """Each pixel from where the 2 x 3 matrix says, black where that is outside. A pixel's middle is at a half."""
    matrix = np.array(matrix, np.float64)
    matrix[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5  # for OpenCV it is at a whole number
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=flags)


def _turned(image: np.ndarray, strength: float) -> np.ndarray:
    centre = (image.shape[1] / 2, image.shape[0] / 2)
    return _warped(image, cv2.getRotationMatrix2D(centre, -TURN * strength, 1.0))


def _blended(image: np.ndarray, other: np.ndarray | float, strength: float) -> np.ndarray:
    """From `other` (0) past the image (1): a strength of -1 leaves a tenth of the image, one of 1 goes beyond it."""
    factor = 1 + ENHANCEMENT * strength
    return np.clip(np.rint(image * np.float32(factor) + other * np.float32(1 - factor)), 0, 255).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _smooth(image: np.ndarray) -> np.ndarray:
    """The mean of 3 x 3 pixels, the middle one five times, as PIL's SMOOTH; the border stays."""
    smooth = image.copy()
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel)[1:-1, 1:-1]
    return smooth


def _posterized(image: np.ndarray, strength: float) -> np.ndarray:
    gone = round(POSTERIZED * abs(strength))
    return image & np.uint8(256 - (1 << gone))


def _solarized(image: np.ndarray, strength: float) -> np.ndarray:
    threshold = ceil(256 - 256 * abs(strength))
    return np.where(image < threshold, image, 255 - image).astype(np.uint8)


def _stretched(image: np.ndarray, _: float) -> np.ndarray:
    """Each colour's darkest becomes 0 and its brightest 255."""
    table = np.zeros((256, 3), np.uint8)
    for colour in range(3):
        darkest, brightest = int(image[..., colour].min()), int(image[..., colour].max())
        scale = 255 / (brightest - darkest) if brightest > darkest else 1.0
        offset = darkest if brightest > darkest else 0
        table[:, colour] = ((np.arange(256) - offset) * scale).clip(0, 255)
    return _looked_up(image, table)


def _equalized(image: np.ndarray, _: float) -> np.ndarray:
    """Each colour's values become evenly frequent, as PIL counts."""
    table = np.tile(np.arange(256, dtype=np.uint8)[:, None], 3)
    for colour in range(3):
        counts = np.bincount(image[..., colour].reshape(-1), minlength=256)
        step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        if step:
            before = np.concatenate([[0], np.cumsum(counts)[:-1]])
            table[:, colour] = ((before + step // 2) // step).clip(max=255)
    return _looked_up(image, table)


def _looked_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return cv2.LUT(image, np.ascontiguousarray(table[None]))


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, _: image,
    "shear_x": lambda image, s: _warped(image, [[1, SHEAR * s, 0], [0, 1, 0]]),
    "shear_y": lambda image, s: _warped(image, [[1, 0, 0], [SHEAR * s, 1, 0]]),
    "translate_x": lambda image, s: _warped(image, [[1, 0, round(SHIFT * s * image.shape[1])], [0, 1, 0]]),
    "translate_y": lambda image, s: _warped(image, [[1, 0, 0], [0, 1, round(SHIFT * s * image.shape[0])]]),
    "rotate": _turned,
    "brightness": lambda image, s: _blended(image, 0.0, s),
    "contrast": lambda image, s: _blended(image, float(np.rint(_grey(image).mean())), s),
    "colour": lambda image, s: _blended(image, _grey(image)[..., None], s),
    "sharpness": lambda image, s: _blended(image, _smooth(image), s),
    "posterize": _posterized,
    "solarize": _solarized,
    "autocontrast": _stretched,
    "equalize": _equalized,
}
