"""Thumbnails of the dataset's images as data URIs, as many as the page has room for."""

import base64
from dataclasses import dataclass

from pipeline.store.pictures import Pictures, encoded

SIDE = 176
TINY_SIDE = 56
SMALL_SIDE = 112
LARGE_SIDE = 352
ROOM = 5_500_000
"""Characters of all data URIs of a page, so that it stays under 10 MB whatever the recipe asks for."""


@dataclass(frozen=True)
class Picture:
    """A JPEG as a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


class Album:
    """Thumbnails by key. One that is absent, or cannot be decoded, is None; so is any when the page is full."""

    def __init__(self, pictures: Pictures, room: int = ROOM) -> None:
        self._pictures = pictures
        self._room = room
        self.left_out = 0

    def get(self, key: str | None, side: int = SIDE) -> Picture | None:
        """The image, its longer side at most `side` pixels."""
        image = self._pictures.image(key, side) if key else None
        if image is None:
            return None
        uri = "data:image/jpeg;base64," + base64.b64encode(encoded(image)).decode()
        if len(uri) > self._room:
            self.left_out += 1
            return None
        self._room -= len(uri)
        return Picture(uri, image.width, image.height)

    def tiny(self, key: str | None) -> Picture | None:
        return self.get(key, TINY_SIDE)

    def small(self, key: str | None) -> Picture | None:
        return self.get(key, SMALL_SIDE)

    def large(self, key: str | None) -> Picture | None:
        return self.get(key, LARGE_SIDE)
