"""Thumbnails of images in the shards, as data URIs. Each is decoded and encoded anew: no byte of the web's passes."""

import base64
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass

import duckdb
from PIL import Image

from pipeline.store.sql import parquet
from pipeline.store.table import Table

SIDE = 176
LARGE_SIDE = 352
QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """A JPEG as a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


class Pictures:
    """The wanted images of a dataset. One that is absent or cannot be decoded is None."""

    def __init__(self, images: Table, connection: duckdb.DuckDBPyConnection, keys: Iterable[str | None]) -> None:
        wanted = sorted({key for key in keys if key})
        self._files = {}
        for path in images.paths(".tar"):
            source = parquet([path.with_suffix(".parquet")])
            query = f"SELECT key FROM {source} SEMI JOIN (SELECT unnest(?) AS key) USING (key)"
            here = {f"{key}.jpg": key for (key,) in connection.execute(query, [wanted]).fetchall()}
            if here:
                with tarfile.open(path) as tar:
                    for member in tar:
                        if member.name in here and (file := tar.extractfile(member)):
                            self._files[here[member.name]] = file.read()

    def get(self, key: str | None, side: int = SIDE) -> Picture | None:
        """The image, its longer side at most `side` pixels."""
        if key not in self._files:
            return None
        try:
            with Image.open(io.BytesIO(self._files[key])) as image:
                image.draft("RGB", (side, side))
                small = image.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError):
            return None
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        small.save(out, "JPEG", quality=QUALITY, optimize=True)
        return Picture("data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode(), small.width, small.height)

    def large(self, key: str) -> Picture | None:
        return self.get(key, LARGE_SIDE)
