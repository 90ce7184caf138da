"""A dataset of hostile texts up to its verdicts and boxes, and what an export of it must hold, found without SQL."""

import hashlib
import io
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from made_dataset import Image, jpeg, made_dataset, run_filter, uid_of
from PIL import Image as Picture

from pipeline.store.dataset import Dataset

sys.path.append(str(Path(__file__).parents[1] / "store" / "exchange"))
import stores

SHARDS = 3
EACH = 14
ODD_COLUMN = 'a "b".$c; DROP'
TEXTS = (
    "a red fox",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=HYPERLINK(0) +1 -1 @x",
    "line\nbreak\r\nand\ttab",
    "nul\0inside, and \x1b[31m",
    "مرحبا بالعالم \u202e right to left",
    "a line \u2028 separator \u0085 and 🦊 \U0010ffff \ufeff",
    "quote ' and \" and \\ and \\n and {}, [] $oid",
    "long " + "word " * 20_000,
    " ",
    "--- yaml: [",
)


@dataclass
class Expected:
    """One image as every export must hold it. `captions`: uid -> (url, text); `scores`: uid -> name -> number."""

    key: str
    sha256: str
    split: str
    jpeg: bytes
    captions: dict[str, tuple[str, str]] = field(default_factory=dict)
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    boxes: list[tuple[tuple[float, ...], str | None, float]] = field(default_factory=list)


@dataclass
class Web:
    dataset: Dataset
    images: dict[str, Expected]

    @property
    def pairs(self) -> int:
        return sum(len(image.captions) for image in self.images.values())


def picture(random: np.random.Generator) -> bytes:
    height, width = random.integers(8, 24, 2).tolist()
    return jpeg(random.integers(0, 255, (height, width, 3), np.uint8))


def split_of(sha256: str) -> str:
    place = int(sha256[:8], 16) / 2**32
    return "train" if place < 0.5 else "validation" if place < 0.75 else "test"


def make(root: Path) -> Web:
    """Copies under other urls in later shards, several texts a picture, pictures that fell out or never came."""
    random = np.random.default_rng(3)
    shards: list[list[Image]] = []
    for shard in range(SHARDS):
        own = [Image(f"http://x/{shard}-{at}.jpg?'\"<b>", picture(random)) for at in range(EACH)]
        own[3] = Image(own[3].url, own[3].content, original=(50, 900))  # falls by min_side
        own[4] = Image(own[4].url, status="http_404")
        if shard:
            own[5] = Image(own[5].url, shards[0][5].content)  # a copy
        shards.append(own)
    urls = [image.url for shard in shards for image in shard]
    pairs = [(url, TEXTS[at % len(TEXTS)]) for at, url in enumerate(urls)]
    pairs += [(url, f"another text {at % 5} of it") for at, url in enumerate(urls) if at % 3 != 1]
    pairs += [(shard[5].url, "the same text on every copy") for shard in shards]
    screened = [pairs[at] for at in (0, 7, 60)]
    similarity = [None if at % 7 == 3 else float("nan") if at % 7 == 5 else at / 64 for at in range(len(pairs))]
    columns: dict[str, Any] = {
        "similarity": similarity,
        ODD_COLUMN: list(range(len(pairs))),
        "words": [-1.0] * len(pairs),  # hidden by what was measured
        "licence": ["by"] * len(pairs),
    }
    dataset = made_dataset(root, pairs, shards, screened, **columns)
    run_filter(dataset, {"min_side": 100, "max_copies": 1}, split={"train": 0.5, "validation": 0.25, "test": 0.25})
    images = expected(shards, pairs, set(screened), similarity)
    add_boxes(dataset, images)
    return Web(dataset, images)


def expected(
    shards: list[list[Image]], pairs: list[tuple[str, str]], screened: set[tuple[str, str]], similarity: list[Any]
) -> dict[str, Expected]:
    key_of, first_key, by_url = {}, {}, {}
    for shard, images in enumerate(shards):
        for at, image in enumerate(images):
            by_url[image.url] = image
            if image.status == "ok":
                key_of[image.url] = first_key.setdefault(image.content, f"{shard:05d}{at:04d}")
    copies = defaultdict(list)
    for url, text in pairs:
        if url in key_of and (url, text) not in screened:
            copies[key_of[url], text].append(uid_of(url, text))
    found: dict[str, Expected] = {}
    for at, (url, text) in enumerate(pairs):
        uid, image = uid_of(url, text), by_url[url]
        if url not in key_of or (url, text) in screened or min(image.original) < 100:
            continue
        key = key_of[url]
        if uid != min(copies[key, text]):
            continue
        sha256 = hashlib.sha256(image.content).hexdigest()
        kept = found.setdefault(key, Expected(key, sha256, split_of(sha256), image.content))
        kept.captions[uid] = (url, text)
        number = similarity[at]
        kept.scores[uid] = {
            "shorter_side": 300.0,
            "copy": 1.0,
            "words": 5.0,
            "similarity": None if number is None or number != number else number,
            ODD_COLUMN: float(at),
        }
    return found


def add_boxes(dataset: Dataset, images: dict[str, Expected]) -> None:
    """Features of most of the images, and of some that fell out."""
    random = np.random.default_rng(5)
    tables: dict[str, list[Any]] = {f"{shard:05d}": [] for shard in range(SHARDS)}
    for shard, rows in tables.items():
        for at in range(EACH - 2):
            key = f"{shard}{at:04d}"
            row = stores.region_row(random, key, int(random.integers(1, 6)))
            rows.append(row)
            if key in images:
                arrays = row.arrays
                images[key].boxes = [
                    (
                        tuple(map(float, box)),
                        stores.CLASSES[label] if label >= 0 else None,
                        float(confidence),
                    )
                    for box, label, confidence in zip(
                        arrays["boxes"], arrays["classes"], arrays["confidences"], strict=True
                    )
                ]
    stores.write_table(dataset.features("region"), tables, stores.region_columns())


def picture_of(content: bytes) -> Picture.Image:
    return Picture.open(io.BytesIO(content))
