"""LXMERT's TSV, against a reader and a writer that follow LXMERT's own."""

import base64
from pathlib import Path

import numpy as np
import pytest
from foreign import BOTTOM_UP, load_tsv, region, scaled, write_tsv
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import region_store

from pipeline.errors import PairmillError
from pipeline.store.features.exchange import lxmert_tsv
from pipeline.store.features.exchange.published import Damage, Place, UnreadableError


def images(count: int = 5, seed: int = 0) -> dict[str, dict]:
    random = np.random.default_rng(seed)
    return {f"COCO_val2014_{number:012d}": region(random, n=1 + number) for number in range(count)}


def test_what_lxmert_writes_is_read(tmp_path: Path) -> None:
    made = images()
    write_tsv(tmp_path / "val.tsv", made)
    read = list(lxmert_tsv.read([tmp_path / "val.tsv"]))
    assert [row.key for row in read] == list(made)
    for row, found in zip(read, made.values(), strict=True):
        assert row.n == len(found["features"])
        np.testing.assert_array_equal(row["features"], found["features"])
        np.testing.assert_allclose(row["boxes"], scaled(found), atol=1e-6)
        np.testing.assert_array_equal(row["classes"], found["objects_id"])
        np.testing.assert_array_equal(row["confidences"], found["objects_conf"])
        np.testing.assert_array_equal(row["topk_ids"][:, 0], found["objects_id"])
        np.testing.assert_array_equal(row["topk_values"][:, 0], found["objects_conf"])
        np.testing.assert_array_equal(row["attributes"], found["attrs_id"])
        np.testing.assert_array_equal(row["attribute_confidences"], found["attrs_conf"])


def test_what_bottom_up_attention_writes_is_read(tmp_path: Path) -> None:
    made = images()
    write_tsv(tmp_path / "val.tsv", made, BOTTOM_UP)
    for row, found in zip(lxmert_tsv.read([tmp_path / "val.tsv"]), made.values(), strict=True):
        assert set(row.arrays) == {"boxes", "features"}
        np.testing.assert_array_equal(row["features"], found["features"])
        np.testing.assert_allclose(row["boxes"], scaled(found), atol=1e-6)


@pytest.mark.parametrize("sizes", [None, [(640, 480), (31, 777), (1, 2)]])
def test_what_is_written_lxmert_reads(tmp_path: Path, sizes: list[tuple[int, int]] | None) -> None:
    store = region_store(tmp_path / "store")
    assert lxmert_tsv.write(store, tmp_path / "out.tsv", sizes=sizes) == 3
    rows = load_tsv(tmp_path / "out.tsv")
    assert [row["img_id"] for row in rows] == list(store.keys())
    for row, size in zip(rows, sizes or [(1, 1)] * 3, strict=True):
        ours = store[row["img_id"]]
        assert (row["img_w"], row["img_h"]) == size
        np.testing.assert_allclose(row["normalised"], ours["boxes"], atol=1e-6)
        np.testing.assert_array_equal(row["features"], ours["features"].astype(np.float32))
        # What has no class must not be learnt from: LXMERT weighs its losses by the confidence.
        assert row["objects_id"][0] == row["objects_conf"][0] == 0
        np.testing.assert_array_equal(row["objects_id"][1:], ours["classes"][1:])
        np.testing.assert_array_equal(row["objects_conf"][1:], ours["confidences"][1:])


def test_there_and_back_again(tmp_path: Path) -> None:
    store = region_store(tmp_path / "store", [4, 2])
    lxmert_tsv.write(store, tmp_path / "out.tsv", list(store.keys())[1:], [(300, 200)])
    (back,) = lxmert_tsv.read([tmp_path / "out.tsv"])
    ours = store[back.key]
    assert back.key == "000000001"
    np.testing.assert_array_equal(back["classes"], ours["classes"])
    np.testing.assert_array_equal(back["features"].astype(np.float16), ours["features"])
    np.testing.assert_allclose(back["boxes"], ours["boxes"], atol=1e-6)


def line(**changes: bytes) -> bytes:
    """A line of one box, with fields changed."""
    zero, one = (base64.b64encode(np.array([value], "<i8")) for value in (0, 1))
    half = base64.b64encode(np.array([0.5], "<f4"))
    fields = dict.fromkeys(lxmert_tsv.LXMERT, b"") | {
        "id": b"7",
        "h": b"20",
        "w": b"10",
        "objects_id": one,
        "objects_conf": half,
        "attrs_id": zero,
        "attrs_conf": half,
        "n": b"1",
        "boxes": base64.b64encode(np.array([1, 2, 9, 18], "<f4")),
        "features": base64.b64encode(np.array([3, 4], "<f4")),
    }
    return b"\t".join((fields | changes).values()) + b"\n"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": b"2"}, "bytes for 2 boxes"),
        ({"n": b"0"}, "states 0 boxes"),
        ({"n": b"99999999"}, "states 99,999,999 boxes"),
        ({"n": b"-1"}, "no whole number"),
        ({"w": b"0"}, "0 x 20 pixels"),
        ({"w": b"9" * 4000}, "no whole number"),
        ({"features": b"b'AAAA'"}, "features is no base64"),
        ({"features": b""}, "form"),
        ({"boxes": base64.b64encode(np.array([1, 2, 9], "<f4"))}, "boxes has 12 bytes"),
        ({"boxes": base64.b64encode(np.array([1, 2, 90, 18], "<f4"))}, "stands out of its image"),
        ({"boxes": base64.b64encode(np.array([1, 2, np.nan, 18], "<f4"))}, "stands out of its image"),
        ({"boxes": base64.b64encode(np.array([9, 2, 1, 18], "<f4"))}, "ends before it begins"),
        ({"features": base64.b64encode(np.array([np.nan, 1], "<f4"))}, "features hold NaN"),
        ({"objects_conf": base64.b64encode(np.array([7], "<f4"))}, "not between 0 and 1"),
        ({"objects_conf": base64.b64encode(np.array([np.nan], "<f4"))}, "not between 0 and 1"),
        ({"objects_id": base64.b64encode(np.array([2**40], "<i8"))}, "class ids"),
        ({"features": b"AAAA\tAAAA"}, "has 11 fields"),
    ],
)
def test_a_damaged_line_is_refused(changes: dict[str, bytes], said: str) -> None:
    with pytest.raises(UnreadableError, match=said):
        lxmert_tsv.decoded(line(**changes))


def test_a_sound_line_is_not() -> None:
    assert lxmert_tsv.decoded(line())["boxes"][0].tolist() == pytest.approx([0.1, 0.1, 0.9, 0.9])


def test_a_box_that_rounding_pushed_out_is_cut_off() -> None:
    over = line(boxes=base64.b64encode(np.array([-0.1, 2, 10.1, 20], "<f4")))
    assert lxmert_tsv.decoded(over)["boxes"].tolist() == [[0, pytest.approx(0.1), 1, 1]]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400) | st.lists(st.binary(max_size=40), min_size=6, max_size=10).map(b"\t".join))
def test_any_bytes_are_refused_and_nothing_worse(content: bytes) -> None:
    with pytest.raises(UnreadableError):
        lxmert_tsv.decoded(content.replace(b"\n", b""))


def test_damage_is_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "val.tsv").write_bytes(line() + line(n=b"2"))
    rows = lxmert_tsv.read([tmp_path / "val.tsv"])
    assert next(rows).key == "7"
    with pytest.raises(PairmillError, match=r"val\.tsv, line 2 \(7\): .* bytes for 2 boxes"):
        next(rows)


def test_places_pass_over_what_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxmert_tsv, "MAX_LINE", 2000)
    parts = [line(), b"\n", b"x" * 5000 + b"\n", line(id=b"8"), b"\xff\t1\n", b"only\n", line(id=b"9")[:-1]]
    (tmp_path / "val.tsv").write_bytes(b"".join(parts))
    file = lxmert_tsv.TsvFile(tmp_path / "val.tsv")
    places = list(file.places())
    assert [(place.number, getattr(place, "id", None)) for place in places] == [
        (1, "7"),
        (3, None),
        (4, "8"),
        (5, None),
        (6, None),
        (7, "9"),
    ]
    assert [type(place) for place in places].count(Damage) == 3
    for place in reversed([place for place in places if isinstance(place, Place)]):
        assert file.read(place, 1)["features"].tolist() == [[3, 4]]
    file.close()


def test_a_file_that_changes_meanwhile_gives_no_image_another_ones_features(tmp_path: Path) -> None:
    path = tmp_path / "val.tsv"
    path.write_bytes(line() + line(id=b"8"))
    file = lxmert_tsv.TsvFile(path)
    place = next(file.places())
    assert isinstance(place, Place)
    path.write_bytes(line(id=b"8") + line())
    with pytest.raises(UnreadableError, match="has changed"):
        file.read(place, 1)
    file.close()
