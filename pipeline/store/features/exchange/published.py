"""What the published formats have in common: where an image's features lie in a file, and what columns they become.

| column                            | of an image with n regions                                                      |
|-----------------------------------|---------------------------------------------------------------------------------|
| features                          | (n, d)                                                                          |
| boxes                             | (n, 4) float32, x1 y1 x2 y2 in [0, 1]                                           |
| classes, confidences              | (n,) int32 (-1: none) and float32, where the file has them                      |
| topk_ids, topk_values             | (n, k) int32 and float32, the most probable classes, likewise                   |
| attributes, attribute_confidences | (n,) int32 (-1: none) and float32, likewise                                     |
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PairmillError
from pipeline.store.features.columns import Column, ImageFeatures

MAX_REGIONS = 4096
"""More than any detector keeps; a file that states more is damaged."""
OVERHANG = 0.02
"""By how much of a side a box may stand out of its image, as rounded ones do; it is cut off there."""
NO_CLASS = -1

Arrays = dict[str, NDArray[Any]]


class UnreadableError(ValueError):
    """One image's features are not what the format says. The message tells what, and not where."""


@dataclass(frozen=True)
class Place:
    """Where one image's features lie in a file; what `start` and `length` count is the format's own business."""

    id: str
    number: int = 0
    """Counted from 1, in what the file has: lines, or images."""
    unit: str = ""
    start: int = 0
    length: int = 0


@dataclass(frozen=True)
class Damage:
    """What stands in an image's place and has not even an id."""

    number: int
    unit: str
    what: str


class PublishedFile(Protocol):
    """One file of a published format, opened. Raises PairmillError, naming it, where it is none of that format."""

    def __init__(self, path: Path) -> None: ...

    def places(self) -> Iterator[Place | Damage]:
        """All images of the file, in its order, without their features."""
        ...

    def read(self, place: Place, top_k: int) -> ImageFeatures:
        """One image, its id as key, with at most so many classes a region. Raises UnreadableError."""
        ...

    def close(self) -> None: ...


def read_image(file: PublishedFile, place: Place, top_k: int) -> ImageFeatures:
    """One image. Whatever its bytes make of the libraries that read them is an UnreadableError."""
    try:
        return file.read(place, top_k)
    except UnreadableError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise UnreadableError(f"it cannot be read ({type(error).__name__}: {said})") from None


def read_images(opener: type[PublishedFile], paths: Iterable[Path], top_k: int) -> Iterator[ImageFeatures]:
    """The images of files, by their own ids as keys. Raises PairmillError, naming the file and the image."""
    for path in paths:
        file = opener(path)
        try:
            for place in file.places():
                try:
                    if isinstance(place, Damage):
                        raise UnreadableError(place.what)
                    image = read_image(file, place, top_k)
                except UnreadableError as error:
                    raise PairmillError(f"{where(path, place)}: {error}", "mend it, or take it out") from None
                yield image
        finally:
            file.close()


def where(path: Path, place: Place | Damage) -> str:
    """For a message: the file, and what it calls its place."""
    name = f" ({place.id})" if isinstance(place, Place) else ""
    return f"{path}, {place.unit} {place.number}{name}" if place.unit else str(path)


def columns_of(image: ImageFeatures, dtype: str = "float16") -> dict[str, Column]:
    """The store's columns for images like this one; the features as tensors of `dtype`, "float16" or "int8"."""
    return {
        name: Column(dtype, array.shape[1:], tensor=True)
        if name == "features"
        else Column(array.dtype.name, array.shape[1:])
        for name, array in image.arrays.items()
    }


def region_image(
    id: str,
    features: NDArray[Any],
    boxes: NDArray[Any],
    *,
    size: tuple[float, float] | None = None,
    labels: Arrays | None = None,
) -> ImageFeatures:
    """One image, checked.

    `features`: (n, d). `boxes`: (n, 4) x1 y1 x2 y2, in pixels of an image of `size` (width, height), or without it in
    [0, 1]. `labels`: further columns, n long. Raises UnreadableError.
    """
    if features.ndim != 2 or not 0 < (n := len(features)) <= MAX_REGIONS or not features.shape[1]:
        raise UnreadableError(f"its features are of the form {features.shape}, not (regions, dimensions)")
    if features.dtype.kind != "f":
        raise UnreadableError(f"its features are {features.dtype}, not floats")
    columns: Arrays = {"boxes": _boxes(boxes, n, size), **(labels or {}), "features": features}
    for name, column in columns.items():
        if len(column) != n:
            raise UnreadableError(f"it has {n} features and {len(column)} {name}")
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise UnreadableError(f"its {name} hold NaN or infinity")
    return ImageFeatures(id, n, columns)


def _boxes(boxes: NDArray[Any], n: int, size: tuple[float, float] | None) -> NDArray[np.float32]:
    if boxes.shape != (n, 4) or boxes.dtype.kind not in "fiu":
        raise UnreadableError(f"its boxes are {boxes.dtype} of the form {boxes.shape}, not ({n}, 4)")
    scaled = boxes.astype(np.float64)
    if size is not None:
        if not (np.isfinite(size).all() and min(size) > 0):
            raise UnreadableError(f"its image is {size[0]:g} x {size[1]:g} pixels")
        scaled /= np.array([*size, *size])
    # Written so that NaN is refused too.
    if not ((scaled >= -OVERHANG) & (scaled <= 1 + OVERHANG)).all():
        raise UnreadableError("a box stands out of its image")
    if not (scaled[:, :2] <= scaled[:, 2:]).all():
        raise UnreadableError("a box ends before it begins")
    return scaled.clip(0, 1).astype(np.float32)


def from_best(ids: NDArray[Any], confidences: NDArray[Any]) -> Arrays:
    """The columns of regions of which only the best class is known: (n,) ids and (n,) probabilities.

    A region of probability 0 has no class.
    """
    ids, confidences = _ids(ids), _probabilities(confidences)
    if ids.ndim != 1 or confidences.shape != ids.shape:
        raise UnreadableError(f"its classes are of the form {ids.shape}, their confidences {confidences.shape}")
    sure = (ids >= 0) & (confidences > 0)
    return {
        "classes": np.where(sure, ids, NO_CLASS).astype(np.int32),
        "confidences": confidences,
        "topk_ids": np.where(sure, ids, 0).astype(np.int32)[:, None],
        "topk_values": np.where(sure, confidences, 0).astype(np.float32)[:, None],
    }


def from_distribution(soft: NDArray[Any], confidences: NDArray[Any], top_k: int) -> Arrays:
    """The columns of regions with all classes' probabilities: (n, 1 + classes), the first that of the background.

    The background is no class. It is dropped, so that the first class is 0, as in the files that give ids; where
    nothing else has any probability the region has no class.
    """
    soft = _probabilities(soft)
    if soft.ndim != 2 or soft.shape[1] < 2:
        raise UnreadableError(f"its soft labels are of the form {soft.shape}, not (regions, 1 + classes)")
    confidences = _probabilities(confidences).reshape(-1)
    if len(confidences) != len(soft):
        raise UnreadableError(f"it has {len(soft)} soft labels and {len(confidences)} confidences")
    classes = soft[:, 1:]
    # Stable, so that of equal ones the first comes first.
    ids = np.argsort(-classes, axis=1, kind="stable")[:, :top_k].astype(np.int32)
    values = np.take_along_axis(classes, ids, axis=1)
    return {
        "classes": np.where(values[:, 0] > 0, ids[:, 0], NO_CLASS).astype(np.int32),
        "confidences": confidences,
        "topk_ids": np.where(values > 0, ids, 0).astype(np.int32),
        "topk_values": values,
    }


def attributes(ids: NDArray[Any], confidences: NDArray[Any]) -> Arrays:
    """The columns of the regions' attributes: (n,) ids and (n,) probabilities; 0 is none."""
    best = from_best(ids, confidences)
    return {"attributes": best["classes"], "attribute_confidences": best["confidences"]}


def _ids(ids: NDArray[Any]) -> NDArray[np.int32]:
    if ids.dtype.kind not in "iu" or not ((ids >= NO_CLASS) & (ids < 2**31)).all():
        raise UnreadableError("its class ids are no small whole numbers")
    return ids.astype(np.int32)


def _probabilities(values: NDArray[Any]) -> NDArray[np.float32]:
    # fp16 and softmax overshoot 1 by their rounding; what is further off is no probability.
    if values.dtype.kind != "f" or not ((values >= 0) & (values <= 1.001)).all():
        raise UnreadableError("its confidences are not between 0 and 1")
    return values.astype(np.float32)
