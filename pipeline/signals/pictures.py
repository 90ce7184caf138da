"""Pictures out of tars and folders, decoded as the download decodes them; what cannot be decoded is a None."""

import tarfile
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import PairmillError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".ppm"})
MAX_BYTES = 200_000_000
"""A file beyond it is no picture to us: a tar may say of a member that it has any size."""


Picture = tuple[str, np.ndarray | None]
"""A name, and RGB uint8 (h, w, 3), or None where it cannot be decoded."""


def pictures_of(
    source: Path | Sequence[Path], side: int | None = None, known: Container[str] = ()
) -> Iterator[Picture]:
    """Each picture in a tar or a list of files, in order.

    A tar's pictures are named by their members without the suffix, files by their paths. `side`: shrink what is larger
    to this longer side, in pixels. `known`: names of pictures that need not be decoded; theirs is a None as well.
    Raises PairmillError for a tar or a file that cannot be read.
    """
    for name, content in members(source) if isinstance(source, Path) else _files(source):
        picture = None if name in known else decoded(content)
        yield name, picture if picture is None or side is None else shrunk(picture, side)


def decoded(content: bytes) -> np.ndarray | None:
    """An encoded picture's pixels, RGB uint8 (h, w, 3): transparency over white, orientation tags ignored.

    So img2dataset decodes what it stores; a copy of an evaluation picture must come out the same.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # no bytes at all, or more pixels than OpenCV is ready to decode
        return None
    if pixels is None:
        return None
    if pixels.dtype != np.uint8:
        scale = 255 / 65535 if pixels.dtype == np.uint16 else 255
        pixels = np.rint((np.nan_to_num(pixels) * scale).clip(0, 255)).astype(np.uint8)
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:].astype(np.float32) / 255
        pixels = np.rint(pixels[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    elif pixels.shape[2] != 3:
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture with its longer side at most `side` pixels, by area, as the download shrinks."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return picture
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def members(tar: Path) -> Iterator[tuple[str, bytes]]:
    """(name without its suffix, content) of each picture in a tar, in its order. Raises PairmillError as above."""
    try:
        with open(tar, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as file:
            for member in file:
                path = Path(member.name)
                if member.isfile() and path.suffix.lower() in SUFFIXES:
                    stream = file.extractfile(member)
                    assert stream is not None
                    yield str(path.with_suffix("")), stream.read() if member.size <= MAX_BYTES else b""
            raw.seek(file.offset)
            if raw.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes it for the end
                raise tarfile.ReadError(f"a damaged header at byte {file.offset:,}")
    except (OSError, tarfile.TarError) as error:
        raise PairmillError(f"{tar} cannot be read: {error}", "bring back the whole tar, or take it away") from error


def _files(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        try:
            yield str(path), path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
        except OSError as error:
            raise PairmillError(f"{path} cannot be read: {error.strerror}", "give it back, or take it away") from error
