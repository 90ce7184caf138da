"""UNITER's .npz and bottom-up-attention.pytorch's, against a reader and writers that follow their own."""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import load_uniter, region, scaled, write_bottom_up_npz, write_uniter
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import CLASSES, region_store, write_table

from pipeline.errors import PairmillError
from pipeline.store.features.exchange import uniter_npz
from pipeline.store.features.exchange.npy import parse_npy
from pipeline.store.features.exchange.published import UnreadableError, columns_of
from pipeline.store.table import Table


def test_what_uniter_writes_is_read(tmp_path: Path) -> None:
    found = region(np.random.default_rng(1), n=12, classes=30)
    write_uniter(tmp_path / "nlvr2_dev-850-0-img0.npz", found)
    (row,) = uniter_npz.read([tmp_path / "nlvr2_dev-850-0-img0.npz"])
    assert (row.key, row.n) == ("nlvr2_dev-850-0-img0", 12)
    np.testing.assert_array_equal(row["features"], found["features"].astype(np.float16))
    np.testing.assert_allclose(row["boxes"], scaled(found), atol=1e-3)
    stored = found["soft"].astype(np.float16)[:, 1:].astype(np.float32)
    for at in range(12):
        best = sorted(range(30), key=lambda label: (-stored[at, label], label))[:10]
        assert row["topk_ids"][at].tolist() == best
        assert row["topk_values"][at].tolist() == stored[at, best].tolist()
        assert row["classes"][at] == best[0]
    np.testing.assert_array_equal(row["confidences"], found["objects_conf"].astype(np.float16))


@pytest.mark.parametrize("transposed", [False, True])
def test_what_bottom_up_attention_writes_is_read_but_for_its_pickle(tmp_path: Path, transposed: bool) -> None:
    found = region(np.random.default_rng(2), n=5)
    write_bottom_up_npz(tmp_path / "12.npz", found, transposed)
    (row,) = uniter_npz.read([tmp_path / "12.npz"])
    assert (row.key, row.n, set(row.arrays)) == ("12", 5, {"boxes", "features"})
    np.testing.assert_array_equal(row["features"], found["features"])
    np.testing.assert_allclose(row["boxes"], scaled(found), atol=1e-6)


def test_what_is_written_uniter_reads(tmp_path: Path) -> None:
    store = region_store(tmp_path / "store", [12, 3])
    assert uniter_npz.write(store, tmp_path / "out") == 2
    for key in list(store.keys()):
        ours, read = store[key], load_uniter(tmp_path / "out" / f"{key}.npz", fewest=100)
        np.testing.assert_array_equal(read["features"], ours["features"].astype(np.float32))
        x1, y1, x2, y2 = ours["boxes"].T
        wanted = np.stack([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)], 1)
        np.testing.assert_allclose(read["position"], wanted, atol=2e-3)
        np.testing.assert_allclose(read["conf"][:, 0], ours["confidences"], atol=1e-3)
        assert read["soft_labels"].shape == (ours.n, 1 + len(CLASSES))
        for at in range(ours.n):
            dense = np.zeros(1 + len(CLASSES))
            for label, value in zip(ours["topk_ids"][at], ours["topk_values"][at], strict=True):
                dense[1 + label] = max(dense[1 + label], value)
            dense[0] = at == 0  # the whole image
            np.testing.assert_allclose(read["soft_labels"][at], dense, atol=1e-3)


def test_without_classes_and_confidences_uniter_still_reads_all_regions(tmp_path: Path) -> None:
    found = region(np.random.default_rng(2), n=20)
    write_bottom_up_npz(tmp_path / "12.npz", found)
    (row,) = uniter_npz.read([tmp_path / "12.npz"])
    store = write_table(Table(tmp_path / "store", "extract"), {"0": [row]}, columns_of(row), classes=[])
    uniter_npz.write(store, tmp_path / "out")
    read = load_uniter(tmp_path / "out" / "12.npz")
    assert set(read) == {"norm_bb", "features", "conf", "position"}
    np.testing.assert_array_equal(read["features"], found["features"].astype(np.float16))


def test_there_and_back_again(tmp_path: Path) -> None:
    store = region_store(tmp_path / "store", [9])
    uniter_npz.write(store, tmp_path / "out", ["000000000"])
    (back,) = uniter_npz.read([tmp_path / "out" / "000000000.npz"], top_k=3)
    ours = store["000000000"]
    np.testing.assert_array_equal(back["classes"], ours["classes"])
    np.testing.assert_array_equal(back["topk_ids"], ours["topk_ids"])
    np.testing.assert_array_equal(back["features"], ours["features"])
    for name in ("boxes", "confidences", "topk_values"):
        np.testing.assert_allclose(back[name], ours[name], atol=1e-3)


def npz(path: Path, **members: Any) -> Path:
    np.savez(path, **members)
    return path


SOUND: dict[str, Any] = {
    "features": np.ones((2, 3), np.float16),
    "norm_bb": np.array([[0, 0, 0.5, 0.5, 0.5, 0.5]] * 2, np.float16),
    "conf": np.ones((2, 1), np.float16),
    "soft_labels": np.full((2, 4), 0.25, np.float16),
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": np.ones((2, 3), object)}, "features: it holds object"),
        ({"features": np.ones((3, 3), np.float16)}, r"not \(3, 4\)"),
        ({"features": np.ones((2, 3), np.int8)}, "not floats"),
        ({"features": np.ones(2, np.float16)}, "form"),
        ({"features": np.ones((0, 3), np.float16), "norm_bb": np.ones((0, 6))}, "form"),
        ({"norm_bb": np.ones((2, 3), np.float16)}, "norm_bb"),
        ({"norm_bb": np.full((2, 6), np.inf, np.float16)}, "stands out"),
        ({"conf": np.ones(5, np.float16)}, "5 confidences"),
        ({"soft_labels": np.ones((2, 1), np.float16)}, "soft labels are of the form"),
        ({"soft_labels": np.full((2, 4), np.nan, np.float16)}, "not between"),
    ],
)
def test_damaged_members_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PairmillError, match=rf"a\.npz: .*{said}"):
        list(uniter_npz.read([npz(tmp_path / "a.npz", **SOUND | changes)]))


def test_sound_members_are_not(tmp_path: Path) -> None:
    assert [row.n for row in uniter_npz.read([npz(tmp_path / "a.npz", **SOUND)])] == [2]


def test_no_pickle_runs(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    content = io.BytesIO()
    np.lib.format.write_array(content, np.array([Bomb()], object))
    for suffix in ("features", "info"):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            for name, member in (SOUND | {suffix: None}).items():
                if member is not None:
                    file = io.BytesIO()
                    np.save(file, member)
                    archive.writestr(f"{name}.npy", file.getvalue())
            archive.writestr(f"{suffix}.npy", content.getvalue())
        try:
            list(uniter_npz.read([tmp_path / "a.npz"]))
        except PairmillError:
            assert suffix == "features"
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "ran").exists(), "the bomb is none"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"no zip at all"])
def test_what_is_no_zip_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(PairmillError, match=r"a\.npz"):
        list(uniter_npz.read([tmp_path / "a.npz"]))


def test_a_member_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uniter_npz, "MAX_MEMBER", 10_000)
    np.savez_compressed(tmp_path / "a.npz", **SOUND | {"features": np.zeros((2, 30_000), np.float16)})
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    with pytest.raises(PairmillError, match="more than 10,000 bytes"):
        list(uniter_npz.read([tmp_path / "a.npz"]))


def saved(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(["<f2", ">f4", "<i8", ">i2", "u1", "?", "<U3", "S2"]),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    st.booleans(),
)
def test_npy_is_read_as_numpy_reads_it(shape: tuple[int, ...], dtype: str, version: Any, fortran: bool) -> None:
    array = np.arange(int(np.prod(shape))).astype(dtype).reshape(shape, order="F" if fortran else "C")
    read = parse_npy(saved(array, version))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_npy_is_read_as_numpy_does_or_refused(data: st.DataObject) -> None:
    content = bytearray(saved(np.arange(6, dtype="<f4").reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        read = parse_npy(bytes(content))
    except UnreadableError:
        return
    np.testing.assert_array_equal(read, np.load(io.BytesIO(content), allow_pickle=False))


def test_npy_that_claims_the_world_costs_nothing() -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4), }".ljust(117) + b"\n"
    with pytest.raises(UnreadableError, match="states"):
        parse_npy(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64)
