"""Perceptual hashes against the ImageHash library."""

import io

import imagehash
import numpy as np
import pytest
from PIL import Image

from pipeline.signals.phash import phashes

draw = np.random.default_rng(5)


def by_the_library(picture: np.ndarray) -> int:
    return int(str(imagehash.phash(Image.fromarray(picture))), 16)


def blurred(width: int, height: int, cells: int) -> np.ndarray:
    small = draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


GRADIENT = np.ascontiguousarray(np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 384, 3)))
PICTURES = {
    "natural": [
        blurred(int(w), int(h), int(c))
        for w, h, c in zip(*draw.integers(2, 385, (2, 60)), draw.integers(1, 30, 60), strict=True)
    ],
    "noise": [draw.integers(0, 256, (height, 40, 3), dtype=np.uint8) for height in range(1, 60, 7)],
    "flat": [np.full((90, 120, 3), shade, np.uint8) for shade in (0, 1, 127, 128, 254, 255)],
    "gradients": [
        GRADIENT,
        GRADIENT[::-1],
        GRADIENT.transpose(1, 0, 2).copy(),
        np.abs(GRADIENT.astype(int) - 128).astype(np.uint8),
    ],
    "stripes": [
        np.ascontiguousarray(
            np.broadcast_to((np.arange(384) // n % 2 * 255).astype(np.uint8)[None, :, None], (300, 384, 3))
        )
        for n in (1, 2, 6, 12, 48)
    ],
    "one pixel": [np.full((1, 1, 3), 9, np.uint8)],
}


@pytest.mark.parametrize("kind", PICTURES)
def test_the_bits_are_those_of_the_library(kind: str) -> None:
    pictures = [np.ascontiguousarray(picture) for picture in PICTURES[kind]]
    assert phashes(pictures).tolist() == [by_the_library(picture) for picture in pictures]
    assert phashes(pictures[:1]).tolist() == phashes(pictures).tolist()[:1]


def test_a_picture_looks_like_its_smaller_and_worse_copy_and_not_like_another() -> None:
    one, other = blurred(380, 300, 12), blurred(380, 300, 12)
    stream = io.BytesIO()
    Image.fromarray(one).resize((200, 158)).save(stream, "JPEG", quality=40)
    hashes = phashes([one, np.asarray(Image.open(stream)), other]).tolist()
    assert (hashes[0] ^ hashes[1]).bit_count() <= 4
    assert (hashes[0] ^ hashes[2]).bit_count() > 16
