"""Pictures resized to a square, as a network without a preprocessing of its own sees them."""

import cv2
import numpy as np


def square(image: np.ndarray, side: int) -> np.ndarray:
    """RGB uint8 (h, w, 3) -> (side, side, 3): nothing is cropped away, the ratio of the sides is not kept."""
    shrinks = min(image.shape[:2]) > side
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
