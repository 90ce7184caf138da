"""Stores as WebDataset tars, read by webdataset itself and read back."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from stores import region_columns, region_store, write_table

from pipeline.errors import PairmillError
from pipeline.store.features import Column, FeatureStore, ImageFeatures
from pipeline.store.features.exchange import webdataset
from pipeline.store.table import Table


def same(left: FeatureStore, right: FeatureStore) -> None:
    assert list(left.keys()) == list(right.keys())
    for key in list(left.keys()):
        for name in left.columns:
            np.testing.assert_array_equal(left[key][name], right[key][name], strict=True)


def test_its_own_decoder_reads_what_is_written(tmp_path: Path) -> None:
    store = region_store(tmp_path / "store")
    assert webdataset.write(store, tmp_path / "out") == 3
    (tar,) = (tmp_path / "out").glob("*.tar")
    samples = list(wds.WebDataset(str(tar), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == list(store.keys())
    for sample in samples:
        ours = store[sample["__key__"]]
        assert sample["json"] == {"key": ours.key, "n": ours.n}
        for name in store.columns:
            np.testing.assert_array_equal(sample[f"{name}.npy"], ours[name], strict=True)


def test_there_and_back_again(tmp_path: Path) -> None:
    store = region_store(tmp_path / "store", [3, 1, 5, 40])
    webdataset.write(store, tmp_path / "out", shard_bytes=1)
    tars = sorted((tmp_path / "out").glob("*.tar"))
    assert [tar.name for tar in tars] == [f"features-{number:06d}.tar" for number in range(4)]
    identity = webdataset.read_identity(tmp_path / "out")
    assert identity == store.identity
    rows = list(webdataset.read(tars))
    del identity["columns"]
    same(write_table(Table(tmp_path / "back", "extract"), {"0": rows}, region_columns(), **identity), store)


def test_int8_goes_out_as_stored_and_comes_back_within_the_last_bit(tmp_path: Path) -> None:
    store = region_store(tmp_path / "store", [7, 20], dtype="int8")
    webdataset.write(store, tmp_path / "out")
    (tar,) = (tmp_path / "out").glob("*.tar")
    for sample in wds.WebDataset(str(tar), shardshuffle=False).decode():
        assert sample["features.npy"].dtype == np.int8
        values = sample["features.npy"] * sample["features_scales.npy"][:, None]
        np.testing.assert_array_equal(values, store[sample["__key__"]]["features"], strict=True)
    rows = list(webdataset.read([tar]))
    for row in rows:
        np.testing.assert_array_equal(row["features"], store[row.key]["features"], strict=True)
    back = write_table(Table(tmp_path / "back", "extract"), {"0": rows}, region_columns(dtype="int8"))
    for key in list(store.keys()):
        np.testing.assert_array_max_ulp(back[key]["features"], store[key]["features"], 1)


def test_one_array_an_image_and_images_without_a_box(tmp_path: Path) -> None:
    columns = {"pooled": Column("float32", (4,), per_image=True), "features": Column("float16", (2, 3), tensor=True)}
    random = np.random.default_rng(0)
    rows = [
        ImageFeatures(f"{n}", n, {"pooled": random.random(4, np.float32), "features": random.random((n, 2, 3))})
        for n in range(3)
    ]
    store = write_table(Table(tmp_path / "store", "extract"), {"0": rows}, columns, kind="patch")
    webdataset.write(store, tmp_path / "out")
    back = list(webdataset.read(sorted((tmp_path / "out").glob("*.tar"))))
    same(write_table(Table(tmp_path / "back", "extract"), {"0": back}, columns, kind="patch"), store)


def test_the_same_features_give_the_same_bytes(tmp_path: Path) -> None:
    store = region_store(tmp_path / "store")
    for name in ("a", "b"):
        webdataset.write(store, tmp_path / name)
    left, right = ((tmp_path / name / "features-000000.tar").read_bytes() for name in ("a", "b"))
    assert left == right


def changed(path: Path, change: Any) -> None:
    """Write the tar anew with members' contents changed; None takes one out."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            new = change(member.name, content)
            if new is not None:
                member.size = len(new)
                tar.addfile(member, io.BytesIO(new))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, content: None if name == "000000001.boxes.npy" else content, "it has no boxes.npy"),
        (lambda name, content: None if name == "000000001.json" else content, "does not state n"),
        (lambda name, content: b"{}" if name == "000000001.json" else content, "does not state n"),
        (lambda name, content: b'{"n": 2}' if name == "000000001.json" else content, r"of the form \(1, 4\)"),
        (lambda name, content: content[:-1] if name == "000000001.boxes.npy" else content, "boxes.npy: it states"),
        (lambda name, content: b"x" if name == "000000001.boxes.npy" else content, "boxes.npy: it is no .npy"),
    ],
)
def test_a_damaged_sample_is_named(tmp_path: Path, change: Any, said: str) -> None:
    webdataset.write(region_store(tmp_path / "store"), tmp_path / "out")
    (tar,) = (tmp_path / "out").glob("*.tar")
    changed(tar, change)
    rows = webdataset.read([tar])
    assert next(rows).key == "000000000"
    with pytest.raises(PairmillError, match=rf"features-000000\.tar, sample 2 \(000000001\): .*{said}"):
        list(rows)


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: content[:2000],
        lambda content: content[:1024] + b"\xff" * 512 + content[1536:],
        lambda content: b"no tar" * 200,
    ],
)
def test_a_damaged_tar_is_named(tmp_path: Path, harm: Any) -> None:
    webdataset.write(region_store(tmp_path / "store"), tmp_path / "out")
    (tar,) = (tmp_path / "out").glob("*.tar")
    tar.write_bytes(harm(tar.read_bytes()))
    with pytest.raises(
        PairmillError, match=r"features-000000\.tar( cannot be read|, sample 1 \(0+\): it has no boxes)"
    ):
        list(webdataset.read([tar]))


@pytest.mark.parametrize("content", [None, "[", "[]", '{"columns": {"x": {}}}'])
def test_a_folder_without_its_identity_is_named(tmp_path: Path, content: str | None) -> None:
    webdataset.write(region_store(tmp_path / "store"), tmp_path / "out")
    (tmp_path / "out" / "identity.json").unlink()
    if content is not None:
        (tmp_path / "out" / "identity.json").write_text(content)
    with pytest.raises(PairmillError, match=r"identity\.json does not say"):
        list(webdataset.read([tmp_path / "out" / "features-000000.tar"]))


def test_the_identity_is_the_stores_own(tmp_path: Path) -> None:
    store = region_store(tmp_path / "store")
    webdataset.write(store, tmp_path / "out", [])
    assert json.loads((tmp_path / "out" / "identity.json").read_text()) == store.identity
    assert not list((tmp_path / "out").glob("*.tar"))
