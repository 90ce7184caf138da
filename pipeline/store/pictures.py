"""Pictures of a dataset by their keys: read out of the shards' tars in place, and shrunk for looking at."""

import io
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from pipeline.store.table import Table

QUALITY = 80
MAX_BYTES = 50_000_000
"""Of a stored JPEG. A header may claim any size."""
MAX_PIXELS = 64_000_000
"""Of a picture that is decoded: `download` stores none as large, and a header may claim any."""
_SHARDS = 256
"""Whose offsets are held: 25 bytes a picture, so 64 MB of shards of 10,000."""
_BLOCK = 512


@dataclass(frozen=True)
class _Offsets:
    """Where the pictures of a tar lie. `keys` (n,) is sorted; `starts` and `sizes` (n,) are in bytes."""

    keys: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    def of(self, key: str) -> tuple[int, int] | None:
        wanted = key.encode()
        place = int(np.searchsorted(self.keys, wanted)) if len(self.keys) else 0
        if place == len(self.keys) or self.keys[place] != wanted:
            return None
        return int(self.starts[place]), int(self.sizes[place])


class Pictures:
    """Random access to the images that a table of shards holds when this is made. Any thread may call.

    Every method gives None for a key that the shards lack, and for what is damaged: to look at a dataset must not fail
    over one picture. `key` may come from anywhere.
    """

    def __init__(self, images: Table) -> None:
        self._folder = images.folder
        self._shards = frozenset(shard.name for shard in images.manifest.shards) if images.exists else frozenset()
        self._lengths = sorted({len(name) for name in self._shards}, reverse=True)
        self._offsets = lru_cache(_SHARDS)(_offsets)
        self._lock = Lock()

    def jpeg(self, key: str) -> bytes | None:
        """The JPEG as it is stored."""
        shard = next((key[:length] for length in self._lengths if key[:length] in self._shards), None)
        if shard is None or not key.isascii():
            return None
        path = self._folder / f"{shard}.tar"
        try:
            with open(path, "rb", buffering=0) as file:
                state = os.fstat(file.fileno())
                with self._lock:  # sixty pictures of a page ask for one shard at once: it is read through once
                    place = self._offsets(path, state.st_size, state.st_mtime_ns).of(key)
                if place is None:
                    return None
                content = os.pread(file.fileno(), place[1], place[0])
        except (OSError, ValueError):
            return None
        return content if len(content) == place[1] else None

    def image(self, key: str, side: int) -> Image.Image | None:
        """The picture in RGB, its longer side at most `side` pixels."""
        content = self.jpeg(key)
        if content is None:
            return None
        try:
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as stored:
                if stored.width * stored.height > MAX_PIXELS:
                    return None
                stored.draft("RGB", (side, side))
                image = stored.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image

    def thumbnail(self, key: str, side: int) -> bytes | None:
        """A JPEG, its longer side at most `side` pixels. Decoded and encoded anew: no byte of the web's passes."""
        image = self.image(key, side)
        return None if image is None else encoded(image)


def encoded(image: Image.Image) -> bytes:
    """The image as a JPEG that holds nothing but its pixels."""
    out = io.BytesIO()
    image.info.clear()  # Pillow would carry over comments and profiles
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def _offsets(path: Path, size: int, modified: int) -> _Offsets:
    """Go from header to header of a tar: ten times as fast as `tarfile`. What lies behind damage is not found.

    `size` in bytes and `modified` in ns are the file's: the cache must not answer for another of the same name.
    """
    found: list[tuple[bytes, int, int]] = []
    with open(path, "rb", buffering=4096) as file:  # a picture's caption and metadata are in one read
        start = 0
        while start + _BLOCK <= size:
            file.seek(start)
            header = file.read(_BLOCK)
            if header[257:262] != b"ustar":
                break
            try:
                length = int(header[124:136].rstrip(b"\0 "), 8)
            except ValueError:
                break
            if length < 0:  # it would lead back, and round and round
                break
            start += _BLOCK
            name = header[:100].rstrip(b"\0")
            if name.endswith(b".jpg") and header[156:157] in b"0\0" and 0 < length <= MAX_BYTES:
                found.append((name[:-4], start, length))
            start += -(-length // _BLOCK) * _BLOCK
    found.sort()
    keys, starts, sizes = zip(*found, strict=True) if found else ((), (), ())
    return _Offsets(np.array(keys, np.bytes_), np.array(starts, np.int64), np.array(sizes, np.int64))
