"""LXMERT's TSV: a line an image, its arrays in base64, no header, no quoting.

The ten fields are those of airsplay/lxmert (src/utils.py, data/*/extract_*_image.py): img_id, img_h, img_w, objects_id
(int64), objects_conf, attrs_id (int64), attrs_conf, num_boxes, boxes (x1 y1 x2 y2 in pixels), features; all else
float32. Its classes leave out the background: the first object is 0. Six fields are those of
peteanderson80/bottom-up-attention (tools/generate_tsv.py): image_id, image_w, image_h, num_boxes, boxes, features.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PairmillError
from pipeline.store.atomic import replacing
from pipeline.store.features.columns import ImageFeatures
from pipeline.store.features.exchange.published import (
    MAX_REGIONS,
    Arrays,
    Damage,
    Place,
    UnreadableError,
    attributes,
    from_best,
    read_images,
    region_image,
)

if TYPE_CHECKING:
    from pipeline.store.features.store import FeatureStore

LXMERT = ("id", "h", "w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "n", "boxes", "features")
BOTTOM_UP = ("id", "w", "h", "n", "boxes", "features")
LINE = "line"
MAX_ID = 1000
MAX_LINE = 1 << 26
"""Bytes: twenty times the largest that is published (100 regions of 2048 numbers, 1.1 MB)."""


class TsvFile:
    """A TSV file. A place is a line: where it starts and how many bytes it has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()

    def close(self) -> None:
        self._file.close()

    def places(self) -> Iterator[Place | Damage]:
        """Every line that is not blank, with its id; what has none, or is too long, is a Damage."""
        start = number = 0
        with open(self.path, "rb") as file:
            while line := file.readline(MAX_LINE):
                number += 1
                length = len(line)
                while not line.endswith(b"\n") and (more := file.readline(MAX_LINE)):
                    line, length = more, length + len(more)
                if length > MAX_LINE:
                    yield Damage(number, LINE, f"it has {length:,} bytes")
                elif line.strip():
                    yield _place(line, number, start)
                start += length

    def read(self, place: Place, top_k: int) -> ImageFeatures:
        """One line's image; of each region only the best class is in the file, whatever `top_k`."""
        self._file.seek(place.start)
        image = decoded(self._file.read(place.length))
        if image.key != place.id:
            raise UnreadableError("the file has changed since it was looked through")
        return image


def _place(line: bytes, number: int, start: int) -> Place | Damage:
    name, separator, _ = line[:MAX_ID].partition(b"\t")
    if not (name and separator):
        return Damage(number, LINE, "it has no id")
    try:
        return Place(name.decode(), number, LINE, start, len(line))
    except UnicodeDecodeError:
        return Damage(number, LINE, "its id is no UTF-8")


def decoded(line: bytes) -> ImageFeatures:
    """A line's image. Raises UnreadableError."""
    fields = line.rstrip(b"\r\n").split(b"\t")
    names = {len(LXMERT): LXMERT, len(BOTTOM_UP): BOTTOM_UP}.get(len(fields))
    if names is None:
        raise UnreadableError(f"it has {len(fields)} fields, not {len(LXMERT)} or {len(BOTTOM_UP)}")
    row = dict(zip(names, fields, strict=True))
    n, width, height = (_whole(row[name], name) for name in ("n", "w", "h"))
    if not 0 < n <= MAX_REGIONS:
        raise UnreadableError(f"it states {n:,} boxes")
    labels: Arrays = {}
    if names is LXMERT:
        labels = from_best(_array(row, "objects_id", "<i8", n, 1)[:, 0], _array(row, "objects_conf", "<f4", n, 1)[:, 0])
        labels |= attributes(_array(row, "attrs_id", "<i8", n, 1)[:, 0], _array(row, "attrs_conf", "<f4", n, 1)[:, 0])
    return region_image(
        row["id"].decode(errors="replace"),
        _array(row, "features", "<f4", n),
        _array(row, "boxes", "<f4", n, 4),
        size=(width, height),
        labels=labels,
    )


def _whole(field: bytes, name: str) -> int:
    if not field.isdigit() or len(field) > 9:
        raise UnreadableError(f"its {name} is {field[:20]!r}, no whole number")
    return int(field)


def _array(row: dict[str, bytes], name: str, dtype: str, n: int, width: int | None = None) -> NDArray[Any]:
    """(n, width) out of base64; any width where none is asked for."""
    try:
        content = base64.b64decode(row[name], validate=True)
    except binascii.Error as error:
        raise UnreadableError(f"its {name} is no base64 ({error})") from None
    row_bytes = n * np.dtype(dtype).itemsize
    if len(content) % row_bytes or (width is not None and len(content) != row_bytes * width):
        raise UnreadableError(f"its {name} has {len(content):,} bytes for {n} boxes")
    return np.frombuffer(content, dtype).reshape(n, -1)


def encoded(row: ImageFeatures, width: int, height: int) -> bytes:
    """An image's line, for a picture of `width` x `height` pixels.

    What has no class, or no attribute, is written as the first one at confidence 0: LXMERT's losses are weighted by it.
    """
    objects, objects_conf = _best(row, "classes", "confidences")
    attrs, attrs_conf = _best(row, "attributes", "attribute_confidences")
    pixels = row["boxes"] * np.array([width, height, width, height])
    fields = {
        "id": row.key.encode(),
        "h": str(height).encode(),
        "w": str(width).encode(),
        "objects_id": _base64(objects, "<i8"),
        "objects_conf": _base64(objects_conf, "<f4"),
        "attrs_id": _base64(attrs, "<i8"),
        "attrs_conf": _base64(attrs_conf, "<f4"),
        "n": str(row.n).encode(),
        "boxes": _base64(pixels, "<f4"),
        "features": _base64(row["features"], "<f4"),
    }
    return b"\t".join(fields[name] for name in LXMERT) + b"\n"


def _best(row: ImageFeatures, ids: str, confidences: str) -> tuple[NDArray[Any], NDArray[Any]]:
    if ids not in row.arrays:
        return np.zeros(row.n), np.zeros(row.n)
    sure = row[ids] >= 0
    return np.where(sure, row[ids], 0), np.where(sure, row[confidences], 0)


def _base64(array: NDArray[Any], dtype: str) -> bytes:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes())


def read(paths: Iterable[Path]) -> Iterator[ImageFeatures]:
    """The images of TSV files, by their own ids as keys. Raises PairmillError, naming file and line."""
    return read_images(TsvFile, paths, 1)


def write(
    store: "FeatureStore",
    path: Path,
    keys: Iterable[str] | None = None,
    sizes: Iterable[tuple[int, int]] | None = None,
) -> int:
    """Write these images (by default all) as LXMERT's ten fields, their keys as ids; returns how many.

    `sizes`: (width, height) in pixels, aligned with `keys`. Without, a picture counts as 1 x 1: LXMERT divides the
    boxes by it and comes to the same. Raises PairmillError for features that have no boxes.
    """
    if "boxes" not in store.columns:
        raise PairmillError("LXMERT's TSV holds regions, and these features have no boxes", "export to webdataset")
    count = 0
    with replacing(path) as partial, open(partial, "wb") as file:
        for key, (width, height) in zip(store.keys() if keys is None else keys, sizes or repeat((1, 1)), strict=False):
            file.write(encoded(store[key], width, height))
            count += 1
    return count
