"""img2dataset's resizer, for pictures that it would store wrongly or in gigabytes of memory.

It reads 16-bit samples as if they had 8 bits, which leaves white, and lays transparent pictures over white in float64,
24 bytes a pixel and several times over. Both are made plain here, the latter strip by strip, and handed on as BMP.
"""

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.web.fetch import FORMATS
from pipeline.web.img2dataset_light import resizer

_MANY_PIXELS = 2_000_000
_STRIP = 64  # rows


class PlainResizer(resizer.Resizer):  # type: ignore[misc]
    """Takes and returns what img2dataset's does: (bytes, width, height, original width and height, error)."""

    def __call__(self, img_stream: io.BytesIO, blurring_bbox_list: Any = None) -> Any:
        return super().__call__(_Buffer(plain(img_stream.getvalue())), blurring_bbox_list)


class _Buffer:
    """What the resizer needs of a stream, over bytes that are not copied."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def seek(self, _: int) -> None:
        pass

    def read(self) -> Any:
        return self.content


def plain(content: bytes) -> Any:
    """A picture of 8 bits and, if it is a large one, without transparency: as a BMP, or as it is where it is so."""
    if content.startswith(b"\xff\xd8"):
        return content  # a JPEG has 8 bits and no transparency
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        has_16_bits = image.format == "PNG" and content[24] == 16
        if not has_16_bits and image.width * image.height <= _MANY_PIXELS:
            return content
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or (decoded.dtype == np.uint8 and decoded.shape[2:] != (4,)):
        return content
    made: NDArray[np.uint8] = np.empty((*decoded.shape[:2], 1 if decoded.ndim == 2 else 3), np.uint8)
    for top in range(0, len(made), _STRIP):
        made[top : top + _STRIP] = _on_white(np.atleast_3d(decoded[top : top + _STRIP]))
    del decoded
    return cv2.imencode(".bmp", made)[1]


def _on_white(strip: NDArray[Any]) -> NDArray[np.uint8]:
    colours = strip.astype(np.float32) * np.float32(255 / np.iinfo(strip.dtype).max)
    if strip.shape[2] == 4:
        alpha = colours[:, :, 3:] / 255
        colours = alpha * colours[:, :, :3] + 255 * (1 - alpha)
    return np.rint(colours).astype(np.uint8)
