"""The published HDF5 forms, against writers that follow their own; and files that reach for other files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import region, scaled, write_adaptive, write_stacked, write_volta

from pipeline.errors import PairmillError
from pipeline.store.features.exchange import hdf5

h5py = pytest.importorskip("h5py")


def images(sizes: tuple[int, ...] = (3, 3, 3)) -> dict[str, dict]:
    random = np.random.default_rng(0)
    return {str(500 + at): region(random, n) for at, n in enumerate(sizes)}


def test_a_group_an_image_is_read(tmp_path: Path) -> None:
    made = images((3, 1, 6))
    write_volta(tmp_path / "val.h5", made)
    for row, (name, found) in zip(hdf5.read([tmp_path / "val.h5"]), made.items(), strict=True):
        assert row.key == name
        np.testing.assert_array_equal(row["features"], found["features"])
        np.testing.assert_allclose(row["boxes"], scaled(found), atol=1e-6)
        np.testing.assert_array_equal(row["classes"], found["objects_id"])
        np.testing.assert_array_equal(row["confidences"], found["objects_conf"])
        np.testing.assert_array_equal(row["attributes"], found["attrs_id"])


@pytest.mark.parametrize("form", ["dict", "list"])
@pytest.mark.parametrize(("write", "sizes"), [(write_stacked, (3, 3, 3)), (write_adaptive, (3, 1, 6))])
def test_arrays_over_all_are_read_with_their_ids(
    tmp_path: Path, write: Callable[..., dict[str, int]], sizes: tuple[int, ...], form: str
) -> None:
    made = images(sizes)
    ids = write(tmp_path / "train36.hdf5", made)
    (tmp_path / "train36_imgid2idx.json").write_text(json.dumps(ids if form == "dict" else list(ids)))
    read = {row.key: row for row in hdf5.read([tmp_path / "train36.hdf5"])}
    assert list(read) == list(made)
    for name, found in made.items():
        np.testing.assert_array_equal(read[name]["features"], found["features"])
        np.testing.assert_allclose(read[name]["boxes"], scaled(found), atol=1e-6)
        assert set(read[name].arrays) == {"boxes", "features"}


@pytest.mark.parametrize("ids", [None, "[", "3", '{"1": 99}', '{"1": -1}', '{"1": "x"}'])
def test_ids_that_are_missing_or_wrong_are_named(tmp_path: Path, ids: str | None) -> None:
    write_stacked(tmp_path / "train36.hdf5", images())
    if ids is not None:
        (tmp_path / "train36_imgid2idx.json").write_text(ids)
    with pytest.raises(PairmillError, match=r"train36_imgid2idx\.json"):
        list(hdf5.read([tmp_path / "train36.hdf5"]))


def test_boxes_that_are_not_there_are_named(tmp_path: Path) -> None:
    ids = write_adaptive(tmp_path / "train.hdf5", images((3, 1, 6)))
    (tmp_path / "train_imgid2idx.json").write_text(json.dumps(ids))
    with h5py.File(tmp_path / "train.hdf5", "r+") as file:
        file["pos_boxes"][1] = 3, 2_000_000_000
    rows = hdf5.read([tmp_path / "train.hdf5"])
    assert next(rows).key == "500"
    with pytest.raises(PairmillError, match=r"train\.hdf5, image 2: the boxes of 501"):
        next(rows)


def _external_array(file: Any, secret: Path) -> None:
    del file["500/features"]
    file.create_dataset("500/features", (3, 2), "f4", external=[(str(secret), 0, 24)])


def _external_link(file: Any, secret: Path) -> None:
    del file["500"]
    file["500"] = h5py.ExternalLink(str(secret), "/500")


def _soft_link(file: Any, secret: Path) -> None:
    del file["500/features"]
    file["500/features"] = h5py.SoftLink("/501/features")


def _virtual(file: Any, secret: Path) -> None:
    layout = h5py.VirtualLayout((3, 2), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "features", (3, 2))
    del file["500/features"]
    file.create_virtual_dataset("500/features", layout)


def _huge(file: Any, secret: Path) -> None:
    del file["500/features"]
    file.create_dataset("500/features", (3, 10**12), "f4", chunks=(1, 1000))


def _text(file: Any, secret: Path) -> None:
    del file["500/features"]
    file["500/features"] = "words"


def _no_group(file: Any, secret: Path) -> None:
    del file["500"]
    file["500"] = np.ones(3)


def _lacking(file: Any, secret: Path) -> None:
    del file["500/boxes"]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_external_array, "features is kept in another file"),
        (_external_link, "500 is a link"),
        (_soft_link, "features is a link"),
        (_virtual, "features is kept in another file"),
        (_huge, "features states 12,000,000,000,000 bytes"),
        (_text, "features is no array of numbers"),
        (_no_group, "it is no group"),
        (_lacking, "it lacks boxes"),
    ],
)
def test_what_is_not_in_the_file_itself_is_refused(tmp_path: Path, harm: Callable[..., None], said: str) -> None:
    write_volta(tmp_path / "val.h5", images())
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 24)
    with h5py.File(tmp_path / "val.h5", "r+") as file:
        harm(file, secret)
    with pytest.raises(PairmillError, match=rf"val\.h5, image 1 \(500\): {said}"):
        list(hdf5.read([tmp_path / "val.h5"]))


@pytest.mark.parametrize("harm", [lambda content: b"", lambda content: content[:600], lambda content: b"\0" * 5000])
def test_what_is_no_hdf5_is_named(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    write_volta(tmp_path / "val.h5", images())
    (tmp_path / "val.h5").write_bytes(harm((tmp_path / "val.h5").read_bytes()))
    with pytest.raises(PairmillError, match=r"val\.h5"):
        list(hdf5.read([tmp_path / "val.h5"]))


@pytest.mark.parametrize(
    "shapes",
    [
        {"image_features": (2, 3, 4)},
        {"image_features": (2, 3, 4), "spatial_features": (2, 5, 6)},
        {"image_features": (2, 3, 4), "spatial_features": (2, 3, 2)},
        {"image_features": (2, 4), "spatial_features": (2, 6)},
        {"image_features": (2, 4), "spatial_features": (2, 6), "pos_boxes": (2, 3)},
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    with h5py.File(tmp_path / "train.hdf5", "w") as file:
        for name, shape in shapes.items():
            file[name] = np.zeros(shape, np.float32)
    with pytest.raises(PairmillError, match=r"train\.hdf5: its arrays are of the forms"):
        list(hdf5.read([tmp_path / "train.hdf5"]))
