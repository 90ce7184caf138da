"""Pictures by their keys: as a scan of the tars finds them, whatever is damaged, from many threads at once."""

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_dataset import Image, jpeg, write_images
from PIL import Image as Pillow

from pipeline.store.dataset import Dataset
from pipeline.store.pictures import MAX_PIXELS, Pictures

SIZES = ((40, 30), (300, 200), (7, 500))


def _pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (*SIZES[number % 3][::-1], 3), np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two shards of 12 pictures, every fourth of them not fetched."""
    dataset = Dataset(tmp_path_factory.mktemp("pictures"))
    shards = [
        [
            Image(f"http://web.example/{n}", jpeg(_pixels(n)), "ok" if n % 4 else "timeout")
            for n in range(first, first + 12)
        ]
        for first in (0, 12)
    ]
    write_images(dataset, shards)
    return dataset


def scanned(dataset: Dataset) -> dict[str, bytes]:
    found = {}
    for path in dataset.images.paths(".tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                if member.name.endswith(".jpg"):
                    found[member.name[:-4]] = content.read()
    return found


def test_each_picture_is_the_one_that_a_scan_finds(dataset: Dataset) -> None:
    expected = scanned(dataset)
    assert len(expected) == 18
    pictures = Pictures(dataset.images)
    assert {key: pictures.jpeg(key) for key in sorted(expected, reverse=True)} == expected


KEYS = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"0000[01]\d{0,4}[\0/.]?", fullmatch=True),
    st.sampled_from(["00000", "000010", "../images/000000001", "000000001.jpg", "000000001\0", "00000\u0660001"]),
)


@settings(max_examples=60, deadline=None)
@given(key=KEYS)
def test_a_key_that_no_picture_has_gives_none(dataset: Dataset, key: str) -> None:
    pictures, expected = Pictures(dataset.images), scanned(dataset)
    assert pictures.jpeg(key) == expected.get(key)
    assert (pictures.thumbnail(key, 16) is None) == (key not in expected)


def test_there_are_none_before_the_download(tmp_path: Path) -> None:
    assert Pictures(Dataset(tmp_path).images).jpeg("000000001") is None


@pytest.mark.parametrize("side", [5, 64, 1000])
def test_a_thumbnail_is_shrunk_and_keeps_its_shape(dataset: Dataset, side: int) -> None:
    content = Pictures(dataset.images).thumbnail("000000001", side)
    assert content is not None
    with Pillow.open(io.BytesIO(content)) as image:
        assert (image.format, max(image.size)) == ("JPEG", min(side, 300))
        assert abs(image.width / image.height - 1.5) < 0.35


def test_a_thumbnail_carries_nothing_but_pixels(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x010E] = "<script>alert(1)</script>"
    out = io.BytesIO()
    Pillow.new("CMYK", (64, 64)).save(out, "JPEG", exif=exif, comment="<script>", icc_profile=b"<script>" * 9)
    dataset = Dataset(tmp_path)
    write_images(dataset, [[Image("http://web.example/", out.getvalue())]])
    pictures = Pictures(dataset.images)
    assert b"<script>" in (pictures.jpeg("000000000") or b"")
    assert b"<script>" not in (pictures.thumbnail("000000000", 64) or b"<script>")


@settings(max_examples=60, deadline=None)
@given(
    at=st.integers(0, 40_000),
    damage=st.binary(min_size=1, max_size=700),
    cut=st.one_of(st.none(), st.integers(0, 9999)),
)
def test_a_damaged_tar_raises_nothing_and_never_gives_another_picture(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory, at: int, damage: bytes, cut: int | None
) -> None:
    other = Dataset(tmp_path_factory.getbasetemp() / "damaged")
    other.images.folder.mkdir(parents=True, exist_ok=True)
    for path in dataset.images.folder.iterdir():
        (other.images.folder / path.name).write_bytes(path.read_bytes())
    tar, whole = other.images.folder / "00000.tar", (dataset.images.folder / "00000.tar").read_bytes()
    tar.write_bytes((whole[:at] + damage + whole[at + len(damage) :])[:cut])
    pictures, expected = Pictures(other.images), scanned(dataset)
    for key in expected:
        found = pictures.jpeg(key)
        pictures.thumbnail(key, 32)
        untouched = key >= "00001" or whole.find(key.encode()) + 1024 + len(expected[key]) < min(at, cut or at)
        if untouched:
            assert found == expected[key]


@pytest.mark.parametrize("size", [b"-0000001000\0", b"77777777777\0", b"\x80" + b"\xff" * 11, b"not a number"])
def test_a_header_that_lies_about_its_size_ends_the_search(dataset: Dataset, tmp_path: Path, size: bytes) -> None:
    other = Dataset(tmp_path)
    other.images.folder.mkdir()
    for path in dataset.images.folder.iterdir():
        (other.images.folder / path.name).write_bytes(path.read_bytes())
    tar = other.images.folder / "00000.tar"
    whole = tar.read_bytes()
    header = whole.index(b"000000003.jpg")
    tar.write_bytes(whole[: header + 124] + size + whole[header + 136 :])
    pictures = Pictures(other.images)
    assert pictures.jpeg("000000002") == scanned(dataset)["000000002"]
    assert pictures.jpeg("000000003") is None


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    content = bytearray(jpeg(_pixels(0)))
    frame = content.index(b"\xff\xc0")  # its height and width, which any header may claim
    content[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    assert MAX_PIXELS < 0xFFFF**2
    dataset = Dataset(tmp_path)
    write_images(dataset, [[Image("http://web.example/", bytes(content))]])
    pictures = Pictures(dataset.images)
    assert pictures.jpeg("000000000") == content
    assert pictures.thumbnail("000000000", 64) is None


def test_a_tar_that_was_written_anew_is_read_anew(dataset: Dataset, tmp_path: Path) -> None:
    other = Dataset(tmp_path)
    write_images(other, [[Image(f"http://web.example/{n}", jpeg(_pixels(n))) for n in range(3)]])
    pictures = Pictures(other.images)
    assert pictures.jpeg("000000002") == jpeg(_pixels(2))
    write_images(other, [[Image(f"http://web.example/{n}", jpeg(_pixels(n + 5))) for n in range(3)]])
    assert pictures.jpeg("000000002") == jpeg(_pixels(7))


def test_many_threads_at_once(dataset: Dataset) -> None:
    expected = scanned(dataset)
    pictures = Pictures(dataset.images)
    keys = [*expected, "000000000"] * 30
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(pictures.jpeg, keys)) == [expected.get(key) for key in keys]
