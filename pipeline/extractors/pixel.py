"""Pixel patches: the image itself, resized and cut, for models that embed pixels (ViLT)."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.recipe import Pixel
from pipeline.store.features import Column
from pipeline.weights import Weights


class PixelExtractor:
    """`features`: (rows * columns, patch * patch * 3) uint8, RGB; `positions`: (rows * columns, 2), row and column.

    The longer side becomes `image_size`; the shorter keeps the ratio, rounded to whole patches (ViLT, section 4.2).
    Nothing is flipped, cropped or coloured: augmentation is the trainer's. There is no model: neither weights nor
    device matter.
    """

    def __init__(self, section: Pixel, weights: Weights, device: torch.device) -> None:
        self.section = section
        self.identity: dict[str, Any] = {"model": "none", "trained": True, "patch": section.patch}
        self.columns = {
            "positions": Column("int16", (2,)),
            "features": Column("uint8", (section.patch * section.patch * 3,), tensor=True),
        }

    def prepare(self, image: np.ndarray) -> dict[str, np.ndarray]:
        patch = self.section.patch
        scale = self.section.image_size / max(image.shape[:2]) / patch
        rows, columns = (max(1, round(side * scale)) for side in image.shape[:2])
        shrinks = max(image.shape[:2]) > self.section.image_size
        resized = cv2.resize(
            image, (columns * patch, rows * patch), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        cut = resized.reshape(rows, patch, columns, patch, 3).swapaxes(1, 2).reshape(rows * columns, -1)
        positions = np.indices((rows, columns), dtype=np.int16).reshape(2, -1).T
        return {"positions": positions, "features": cut}

    def __call__(self, prepared: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        return list(prepared)
