"""An .npz an image, as UNITER or bottom-up-attention.pytorch write it.

UNITER's (its container's tools/generate_npz.py; ChenRocks/UNITER scripts/convert_imgdir.py and data/data.py read it):
`features` (n, d), `norm_bb` (n, 6: x1 y1 x2 y2 w h in [0, 1]; training adds w * h), `conf` (n, 1) and `soft_labels`
(n, 1 + classes, the background first), all float16, in `<prefix>_<image id>.npz`. UNITER then puts the files into an
LMDB; these are what changes hands.

bottom-up-attention.pytorch's (MILVLG, utils/extract_utils.py): `x` (n, d), or transposed as older tools wrote it,
`bbox` (n, 4: x1 y1 x2 y2 in pixels), `num_bbox`, `image_h`, `image_w`; its `info` is a pickle, and is left alone.
"""

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PairmillError
from pipeline.store.atomic import replacing
from pipeline.store.features.columns import ImageFeatures, is_key
from pipeline.store.features.exchange.npy import parse_npy
from pipeline.store.features.exchange.published import (
    NO_CLASS,
    Arrays,
    Damage,
    Place,
    UnreadableError,
    from_distribution,
    read_images,
    region_image,
)

if TYPE_CHECKING:
    from pipeline.store.features.store import FeatureStore

TOP_K = 10
MAX_MEMBER = 1 << 26
"""Bytes of an array, unpacked: 4096 regions of 2048 float64."""
_UNITER = ("features", "norm_bb", "conf", "soft_labels")
_BOTTOM_UP = ("x", "bbox", "num_bbox", "image_h", "image_w")


class NpzFile:
    """An .npz file: one image, whose id is the file's name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        """Nothing stays open."""

    def places(self) -> Iterator[Place | Damage]:
        yield Place(self.path.name.removesuffix(".npz"))

    def read(self, place: Place, top_k: int) -> ImageFeatures:
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = {name.removesuffix(".npy") for name in archive.namelist()}
                wanted = _UNITER if "norm_bb" in members else _BOTTOM_UP
                arrays = {name: _member(archive, name) for name in wanted if name in members}
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            if isinstance(error, UnreadableError):
                raise
            raise UnreadableError(f"it is no .npz ({error})") from None
        return decoded(place.id, arrays, top_k)


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        content = file.read(MAX_MEMBER + 1)
    if len(content) > MAX_MEMBER:
        raise UnreadableError(f"its {name} has more than {MAX_MEMBER:,} bytes")
    try:
        return parse_npy(content)
    except UnreadableError as error:
        raise UnreadableError(f"its {name}: {error}") from None


def decoded(id: str, members: Arrays, top_k: int = TOP_K) -> ImageFeatures:
    """An image out of either kind of members. Raises UnreadableError."""
    if "features" in members and "norm_bb" in members:
        boxes = members["norm_bb"]
        if boxes.ndim != 2 or boxes.shape[1] < 4:
            raise UnreadableError(f"its norm_bb is of the form {boxes.shape}, not (n, 6)")
        labels = {}
        if "soft_labels" in members and "conf" in members:
            labels = from_distribution(members["soft_labels"], members["conf"], top_k)
        return region_image(id, members["features"], boxes[:, :4], labels=labels)
    if missing := [name for name in _BOTTOM_UP if name not in members]:
        raise UnreadableError(f"it has neither norm_bb and features nor {', '.join(missing)}")
    n, height, width = (_scalar(members, name) for name in ("num_bbox", "image_h", "image_w"))
    features = members["x"]
    if features.ndim == 2 and features.shape[0] != n and features.shape[1] == n:
        features = features.T
    return region_image(id, features, members["bbox"], size=(width, height))


def _scalar(members: Arrays, name: str) -> float:
    if members[name].size != 1 or members[name].dtype.kind not in "iuf":
        raise UnreadableError(f"its {name} is no number")
    return float(members[name].reshape(()))


def encoded(row: ImageFeatures, classes: int) -> Arrays:
    """UNITER's members for a row of regions that a detector of so many classes saw.

    Of a distribution the row has the most probable classes; the others are 0. A region without a class (the box of the
    whole image) is background, with all its probability. Without a number of classes there are no soft labels, and
    without confidences all are 1, so that UNITER keeps the regions.
    """
    boxes = row["boxes"]
    members = {
        "norm_bb": np.concatenate([boxes, boxes[:, 2:] - boxes[:, :2]], axis=1),
        "features": row["features"],
        "conf": row.arrays.get("confidences", np.ones(row.n))[:, None],
    }
    if classes and "topk_ids" in row.arrays:
        soft = np.zeros((row.n, 1 + classes), np.float32)
        # Ids of probability 0 are padding, which may name a class twice: what is there stays.
        np.maximum.at(soft, (np.arange(row.n)[:, None], row["topk_ids"] + 1), row["topk_values"])
        soft[row["classes"] == NO_CLASS, 0] = 1
        members["soft_labels"] = soft
    return {name: array.astype("<f2") for name, array in members.items()}


def read(paths: Iterable[Path], top_k: int = TOP_K) -> Iterator[ImageFeatures]:
    """The images of .npz files, their names as keys. Raises PairmillError, naming the file."""
    return read_images(NpzFile, paths, top_k)


def write(store: "FeatureStore", folder: Path, keys: Iterable[str] | None = None) -> int:
    """Write `<key>.npz` for these images (by default all), with UNITER's members; returns how many.

    Raises PairmillError for features that have no boxes.
    """
    if "boxes" not in store.columns:
        raise PairmillError("UNITER's .npz hold regions, and these features have no boxes", "export to webdataset")
    classes = len(store.identity.get("classes") or ())
    count = 0
    for key in store.keys() if keys is None else keys:
        if not is_key(key):
            raise PairmillError(f"the image {key!r} cannot be a file's name", "import it under another id")
        with replacing(folder / f"{key}.npz") as partial, open(partial, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **encoded(store[key], classes))
        count += 1
    return count
