"""What every export is made of: an image with its captions, boxes, scores and metadata."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PairmillError

_NAME = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Caption:
    """A kept pair's text.

    `scores`: what was measured of the pair, by name; None where it was not. `metadata`: what the lists say of it and
    where it stood in them, as values that JSON has (`pipeline.exports.metadata`).
    """

    uid: str
    url: str
    text: str
    scores: Mapping[str, float | None]
    metadata: Mapping[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        own = {"scores": dict(self.scores), "metadata": dict(self.metadata)}
        return {"uid": self.uid, "url": self.url, "text": self.text, **own}

    @property
    def size(self) -> int:
        """About how many bytes it has: what in it may be of any size, counted in characters."""
        return len(self.text) + sum(len(str(value)) for value in self.metadata.values())


@dataclass(frozen=True, slots=True)
class Box:
    """What a region extractor found. `box`: x1, y1, x2, y2 in [0, 1]; the whole image has no label."""

    extractor: str
    box: tuple[float, float, float, float]
    label: str | None
    confidence: float | None

    @property
    def is_whole_image(self) -> bool:
        """Whether it is the region that models take for the image itself, and no object."""
        return self.label is None and self.box == (0, 0, 1, 1)

    @property
    def record(self) -> dict[str, Any]:
        return {"extractor": self.extractor, "box": self.box, "label": self.label, "confidence": self.confidence}


@dataclass(frozen=True, slots=True)
class Image:
    """One picture that is kept. Copies of it on the web are one image, with the captions of all.

    `jpeg`: the file as it was stored. `sha256`: of the original, as it came from the web. `width` and `height`: of the
    stored picture, in pixels. `captions`: at least one, in order of uid.
    """

    key: str
    sha256: str
    split: str
    width: int | None
    height: int | None
    captions: tuple[Caption, ...]
    boxes: tuple[Box, ...]
    jpeg: bytes

    @property
    def text(self) -> str:
        """The one caption of those who want one."""
        return self.captions[0].text

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        return len(self.jpeg) + sum(caption.size for caption in self.captions)

    @property
    def record(self) -> dict[str, Any]:
        """All but the picture, as values that JSON has."""
        return {
            "key": self.key,
            "text": self.text,
            "sha256": self.sha256,
            "split": self.split,
            "width": self.width,
            "height": self.height,
            "bytes": len(self.jpeg),
            "captions": [caption.record for caption in self.captions],
            "boxes": [box.record for box in self.boxes],
        }


def file_name(value: str) -> str:
    """A key or uid that becomes a file's name. Raises PairmillError for one that could lead out of the folder."""
    if not _NAME.fullmatch(value):
        raise PairmillError(
            f"{value[:80]!r} cannot name a file", "run `make verify`: the tables hold what no stage writes"
        )
    return value


def number_or_none(value: float | None) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return None if value is None or not math.isfinite(value) else float(value)
