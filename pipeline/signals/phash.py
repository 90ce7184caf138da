"""Perceptual hashes: 64 bits that differ little between pictures that look alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.fft import dct

from pipeline.signals.images import Measure

VERSION = 1
_SIDE, _FREQUENCIES = 32, 8


@dataclass(frozen=True)
class PerceptualHash:
    """The pHash that the ImageHash library defines (`imagehash.phash`, hash_size 8), bits in that library's order."""

    name: str = "phash"
    batch_size: int = 64
    schema = pa.schema([("phash", pa.uint64())])

    @property
    def identity(self) -> Any:
        return ["phash", VERSION]

    def measurer(self) -> Measure:
        return lambda pictures: {"phash": pa.array(phashes(pictures))}


def phashes(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(n,) uint64 of RGB uint8 pictures (h, w, 3): which of the lowest 8 x 8 frequencies are above their median."""
    grey = np.stack([_grey(picture) for picture in pictures])
    frequencies = dct(dct(grey, axis=1), axis=2)[:, :_FREQUENCIES, :_FREQUENCIES].reshape(len(pictures), -1)
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(-1)


def _grey(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
