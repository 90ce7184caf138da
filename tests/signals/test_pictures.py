"""Pictures decoded as the download decodes them, and what is no picture."""

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from corpus import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import PairmillError
from pipeline.signals.pictures import decoded, pictures_of, shrunk
from pipeline.web.resizing import PlainResizer

draw = np.random.default_rng(0)
NOISE = np.asarray(Image.fromarray(draw.integers(0, 256, (3, 4, 4), dtype=np.uint8)).resize((90, 70)))
RGB, GREY = np.ascontiguousarray(NOISE[:, :, :3]), np.ascontiguousarray(NOISE[:, :, 0])
KINDS = {
    "rgb png": (RGB, "PNG", {}),
    "transparent png": (NOISE, "PNG", {}),
    "transparent webp": (NOISE, "WEBP", {"lossless": True}),
    "grey png": (GREY, "PNG", {}),
    "grey jpeg": (GREY, "JPEG", {}),
    "palette png": (RGB, "PNG", {"mode": "P"}),
    "16-bit png": (GREY.astype(np.uint16) * 257, "PNG", {}),
    "jpeg": (RGB, "JPEG", {"quality": 95}),
    "cmyk jpeg": (RGB, "JPEG", {"mode": "CMYK", "quality": 95}),
    "bmp": (RGB, "BMP", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_comes_out_as_the_download_stores_it(kind: str) -> None:
    pixels, form, options = KINDS[kind]
    content = encoded(pixels, form, **options)
    resizer = PlainResizer(
        image_size=64, resize_mode="keep_ratio_largest", resize_only_if_bigger=True, encode_quality=100
    )
    stored, *_, error = resizer(io.BytesIO(content))
    assert error is None
    picture = decoded(content)
    assert picture is not None
    assert picture.dtype == np.uint8
    smaller, downloaded = shrunk(picture, 64), decoded(stored)
    assert downloaded is not None
    assert smaller.shape == downloaded.shape == (50, 64, 3)
    assert (
        np.abs(smaller.astype(int) - downloaded.astype(int)).mean() < 8
    )  # JPEG's loss; with channels swapped it is 60


def test_an_orientation_tag_is_ignored_as_the_download_ignores_it() -> None:
    stream, tags = io.BytesIO(), Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(RGB).save(stream, "JPEG", exif=tags)
    assert decoded(stream.getvalue()).shape == RGB.shape


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


BOMB = (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    + _chunk(b"IEND", b"")
)


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff\xd8\xff", b"<svg/>", BOMB, b"GIF89a"])
def test_what_is_no_picture_is_none(content: bytes) -> None:
    assert decoded(content) is None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 3000), st.binary(min_size=1, max_size=40))
def test_damage_gives_a_picture_or_none_and_no_error(kind: str, place: int, damage: bytes) -> None:
    pixels, form, options = KINDS[kind]
    content = bytearray(encoded(pixels, form, **options))
    content[place % len(content) : place % len(content) + len(damage)] = damage
    picture = decoded(bytes(content))
    assert picture is None or (picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 50), (64, 32)), ((50, 100), (32, 64)), ((64, 9), (64, 9)), ((4000, 3), (64, 1))]
)
def test_shrinking(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert shrunk(np.zeros((*size[::-1], 3), np.uint8), 64).shape[:2] == expected[::-1]


def tar_of(folder: Path, members: dict[str, Any]) -> Path:
    with tarfile.open(folder / "some.tar", "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            entry.size = len(content or b"")
            tar.addfile(entry, io.BytesIO(content or b""))
    return folder / "some.tar"


def test_a_tars_pictures_in_order_and_nothing_else(tmp_path: Path) -> None:
    good = encoded(RGB, "PNG")
    tar = tar_of(
        tmp_path, {"b.png": good, "b.txt": b"x", "../../a.PNG": good, "link.png": None, "c.jpg": b"no", "d": good}
    )
    found = [(name, None if picture is None else picture.shape) for name, picture in pictures_of(tar)]
    assert found == [("b", RGB.shape), ("../../a", RGB.shape), ("c", None)]


@pytest.mark.parametrize("cut", [100, 700, 1500])
def test_a_tar_that_ends_too_early_is_an_error(tmp_path: Path, cut: int) -> None:
    tar = tar_of(tmp_path, {"a.png": encoded(RGB, "PNG"), "b.png": encoded(RGB, "PNG")})
    tar.write_bytes(tar.read_bytes()[:cut])
    with pytest.raises(PairmillError, match=r"some\.tar"):
        list(pictures_of(tar))


def test_files_by_their_paths(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), RGB)
    assert [name for name, _ in pictures_of([tmp_path / "a.png"])] == [str(tmp_path / "a.png")]
    with pytest.raises(PairmillError, match=r"gone\.png"):
        list(pictures_of([tmp_path / "gone.png"]))
