"""HDF5 in its three published forms.

* A group an image, named by its id (VOLTA's features_extraction/tsv_to_h5.py, VL-T5): `features` (n, d), `boxes`
  (n, 4: x1 y1 x2 y2 in pixels), `img_w`, `img_h`, and mostly `obj_id`, `obj_conf`, `attr_id`, `attr_conf` (n,).
* Arrays over all images (hengyuan-hu/bottom-up-attention-vqa, tools/detection_features_converter.py):
  `image_features` (images, n, d) and `spatial_features` (images, n, 6: x1 y1 x2 y2 w h in [0, 1]).
* Arrays over all boxes (jnhwkim/ban-vqa, tools/adaptive_detection_features_converter.py): `image_features` (boxes, d),
  `spatial_features` (boxes, 6) and `pos_boxes` (images, 2: each image's first box and the one after its last).

The images' ids of the last two are published as a pickle beside the file. No pickle is read: they are taken from a
JSON beside it, `<name>_imgid2idx.json`, which holds {id: position} or the ids in order.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PairmillError
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

IMAGE = "image"
MAX_ARRAY = 1 << 28
"""Bytes of one image's array: a chunk that claims more is damaged."""


class Hdf5File:
    """An HDF5 file. Links out of the file, and arrays kept in others, are refused."""

    def __init__(self, path: Path) -> None:
        try:
            import h5py
        except ImportError:
            raise PairmillError("reading HDF5 needs h5py", "pip install 'pairmill[h5]'") from None
        self.path, self._h5 = path, h5py
        try:
            self._file = h5py.File(path, "r")
        except (OSError, RuntimeError) as error:
            raise PairmillError(f"{path} is no HDF5 file ({error})", "name another, or bring it back whole") from None
        try:
            self._stacked = self._datasets(self._file, ("image_features", "spatial_features", "pos_boxes"))
            self._check_stacked()
        except (UnreadableError, RuntimeError, KeyError, TypeError) as error:  # h5py's words for damaged bytes
            raise PairmillError(f"{path}: {error}", "it is none of the three forms") from None

    def close(self) -> None:
        self._file.close()

    def places(self) -> Iterator[Place | Damage]:
        if not self._stacked:
            # By their names' order in the file; a group's content is looked at when it is read.
            for number, name in enumerate(self._file, 1):
                sound = name.isprintable()  # bytes that are no text come as surrogates, which are not
                yield Place(name, number, IMAGE) if sound else Damage(number, IMAGE, f"its name is {name!r}")
            return
        for number, (name, at) in enumerate(self._ids(), 1):
            if "pos_boxes" not in self._stacked:
                yield Place(name, number, IMAGE, at, 1)
                continue
            bounds = self._stacked["pos_boxes"][at].astype(np.float64)
            start, stop = bounds.astype(np.int64).tolist() if np.isfinite(bounds).all() else (0, 0)
            if 0 <= start < stop <= self._stacked["image_features"].shape[0] and stop - start <= MAX_REGIONS:
                yield Place(name, number, IMAGE, start, stop - start)
            else:
                yield Damage(number, IMAGE, f"the boxes of {name} are those from {start} to {stop}")

    def read(self, place: Place, top_k: int) -> ImageFeatures:
        """One image; of each region only the best class is in the file, whatever `top_k`."""
        try:
            if self._stacked:
                return self._read_stacked(place)
            return self._read_group(place.id, self._own(self._file, place.id))
        except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:  # what h5py says of damaged bytes
            if isinstance(error, UnreadableError):
                raise
            raise UnreadableError(f"it cannot be read ({error})") from None

    def _read_stacked(self, place: Place) -> ImageFeatures:
        for name in ("image_features", "spatial_features"):
            dataset = self._stacked[name]
            rows = place.length if "pos_boxes" in self._stacked else dataset.shape[1]
            if rows * dataset.shape[-1] * dataset.dtype.itemsize > MAX_ARRAY:
                raise UnreadableError(f"{name} states arrays of {dataset.shape[1:]}")
        where: Any = place.start if "pos_boxes" not in self._stacked else slice(place.start, place.start + place.length)
        features, boxes = (self._stacked[name][where] for name in ("image_features", "spatial_features"))
        return region_image(place.id, features, boxes[:, :4])

    def _read_group(self, id: str, group: Any) -> ImageFeatures:
        if not isinstance(group, self._h5.Group):
            raise UnreadableError("it is no group")
        names = ("features", "boxes", "img_w", "img_h", "obj_id", "obj_conf", "attr_id", "attr_conf")
        found = {name: dataset[()] for name, dataset in self._datasets(group, names).items()}
        if missing := [name for name in names[:4] if name not in found]:
            raise UnreadableError(f"it lacks {', '.join(missing)}")
        labels: Arrays = {}
        if "obj_id" in found:
            ids = found["obj_id"]
            labels = from_best(ids, found.get("obj_conf", np.ones(len(ids), np.float32)))
        if "attr_id" in found and "attr_conf" in found:
            labels |= attributes(found["attr_id"], found["attr_conf"])
        size = float(found["img_w"]), float(found["img_h"])
        return region_image(id, found["features"], found["boxes"], size=size, labels=labels)

    def _check_stacked(self) -> None:
        shapes = {name: dataset.shape for name, dataset in self._stacked.items()}
        if not shapes:
            return
        deep = 2 if "pos_boxes" in shapes else 3
        features, boxes = shapes.get("image_features", ()), shapes.get("spatial_features", ())
        if len(features) != deep or len(boxes) != deep or features[:-1] != boxes[:-1] or boxes[-1] < 4:
            raise UnreadableError(f"its arrays are of the forms {shapes}")
        if deep == 2 and (len(shapes["pos_boxes"]) != 2 or shapes["pos_boxes"][1] != 2):
            raise UnreadableError(f"its arrays are of the forms {shapes}")

    def _ids(self) -> list[tuple[str, int]]:
        """(id, position) of every image."""
        path = self.path.with_name(f"{self.path.stem}_imgid2idx.json")
        images = self._stacked["pos_boxes" if "pos_boxes" in self._stacked else "image_features"].shape[0]
        try:
            value = json.loads(path.read_bytes())
            pairs = list(value.items()) if isinstance(value, dict) else list(zip(value, range(len(value)), strict=True))
            if not all(isinstance(at, int) for _, at in pairs):
                raise ValueError("a position is no whole number")
            ids = [(str(name), at) for name, at in pairs]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise PairmillError(
                f"{path} does not tell the images' ids ({error})",
                'the published pickle, where you trust it, becomes one by: python -c "import json, pickle; '
                f"json.dump(pickle.load(open('{self.path.stem}_imgid2idx.pkl', 'rb')), open('{path.name}', 'w'))\"",
            ) from None
        if not all(0 <= at < images for _, at in ids):
            raise PairmillError(f"{path} names positions beyond the {images:,} images", "is it this file's own?")
        return ids

    def _datasets(self, group: Any, names: Iterable[str]) -> dict[str, Any]:
        """Those of the datasets that are there, without their content."""
        found = {}
        for name in names:
            if name not in group:
                continue
            dataset = self._own(group, name)
            if not isinstance(dataset, self._h5.Dataset) or dataset.dtype.kind not in "iuf":
                raise UnreadableError(f"{name} is no array of numbers")
            if dataset.external is not None or dataset.is_virtual:
                raise UnreadableError(f"{name} is kept in another file")
            if group.name != "/" and dataset.nbytes > MAX_ARRAY:
                raise UnreadableError(f"{name} states {dataset.nbytes:,} bytes")
            found[name] = dataset
        return found

    def _own(self, group: Any, name: str) -> Any:
        if not isinstance(group.get(name, getlink=True), self._h5.HardLink):
            raise UnreadableError(f"{name} is a link")
        return group[name]


def read(paths: Iterable[Path]) -> Iterator[ImageFeatures]:
    """The images of HDF5 files, by their own ids as keys. Raises PairmillError, naming file and image."""
    return read_images(Hdf5File, paths, 1)
