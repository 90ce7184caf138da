"""A dataset of hostile texts up to its verdicts and boxes, and what an export of it must hold, found without SQL."""

import hashlib
import io
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from made_dataset import Image, jpeg, made_dataset, run_filter, uid_of
from PIL import Image as Picture

from pipeline.store.dataset import Dataset

sys.path.append(str(Path(__file__).parents[1] / "store" / "exchange"))
import stores

SHARDS = 3
EACH = 14
ODD_COLUMN = 'a "b".$c; DROP'
HOSTILE_NAMES = (
    *("key", "split", "scores", "metadata", "captions", "image", "jpeg", "list", "struct", "dtype", "shard"),
    *("score:words", "metadata:licence", "a.b", "a-b", "a'b", "--- x: [", "<script>", " ", "é\u2028", "$oid"),
    *("filename", "_type_", "N_L", "_id", "x" * 3000),
)
"""Columns of the lists that are named like ours or like what readers know, or are nobody's names."""
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
LISTS = "/home/somebody/lists"
DAY = datetime(2021, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Own:
    """A column of the lists: what it holds in the list's row `at`, and what must go out, under which name."""

    name: str
    type: pa.DataType
    held: Callable[[int], Any]
    out: Callable[[int], Any]
    goes_out_as: str | None = None


def _same(name: str, type: pa.DataType, held: Callable[[int], Any], goes_out_as: str | None = None) -> Own:
    return Own(name, type, held, held, goes_out_as)


def _person(at: int) -> dict[str, Any]:
    return {"name": TEXTS[at % 9], "born": DAY.date(), "height": float("nan") if at % 2 else 1.5}


OWN = (
    Own(
        "original", pa.string(), lambda at: None if at % 3 else f"<b>{at}</b>", lambda at: None
    ),  # or the text: see `expected`
    _same("licence", pa.string(), lambda at: None if at % 5 == 1 else TEXTS[at % len(TEXTS)]),
    _same("nsfw", pa.bool_(), lambda at: (True, False, None)[at % 3]),
    _same("photo", pa.int64(), lambda at: 2**53 + 1 + at),
    _same("max_copies", pa.int64(), lambda at: -(2**60) - at),  # named like a rule
    Own("hash", pa.uint64(), lambda at: 2**64 - 1 - at, lambda at: str(2**64 - 1 - at)),
    Own("words", pa.float32(), lambda at: -0.5 if at % 2 else float("inf"), lambda at: -0.5 if at % 2 else None),
    Own("day", pa.date32(), lambda at: DAY.date() + timedelta(at), lambda at: f"{DAY.date() + timedelta(at)}"),
    Own("taken", pa.timestamp("us"), lambda at: DAY + timedelta(at), lambda at: f"{(DAY + timedelta(at)).isoformat()}"),
    Own(
        "uploaded",
        pa.timestamp("us", "Asia/Kolkata"),
        lambda at: None if at % 4 == 2 else (DAY + timedelta(hours=at)).replace(tzinfo=UTC),
        lambda at: None if at % 4 == 2 else f"{(DAY + timedelta(hours=at)).isoformat()}Z",
    ),
    _same("tags", pa.list_(pa.string()), lambda at: None if at % 6 == 5 else ["<script>", "\0", "", None][: at % 5]),
    Own("days", pa.list_(pa.date32()), lambda at: [date(1, 1, 1), None], lambda at: ["0001-01-01", None]),
    Own(
        "polygons",
        pa.list_(pa.list_(pa.float32())),
        lambda at: [[0.5, float("nan")], [], None],
        lambda at: [[0.5, None], [], None],
    ),
    Own(
        "embedding",
        pa.list_(pa.float32(), 2),
        lambda at: None if at % 2 else [at / 4, -1.0],
        lambda at: None if at % 2 else [at / 4, -1.0],
    ),
    Own(
        "who",
        pa.list_(pa.struct({"name": pa.string(), "born": pa.date32(), "height": pa.float64()})),
        lambda at: None if at % 7 == 1 else [_person(at), None],
        lambda at: (
            None
            if at % 7 == 1
            else [{"name": TEXTS[at % 9], "born": "2021-02-03", "height": None if at % 2 else 1.5}, None]
        ),
    ),
    Own("raw", pa.binary(), lambda at: b"\xff<" if at % 2 else "é".encode(), lambda at: "\\xFF<" if at % 2 else "é"),
    _same("long", pa.string(), lambda at: "\0 long" * (30_000 if at == 6 else 1)),
    *(_same(name, pa.string(), lambda at, name=name: f"{name} {at}") for name in HOSTILE_NAMES),
    _same("A", pa.string(), lambda at: "large"),
    _same("a", pa.string(), lambda at: "small", "a_1"),
    _same("n\0l", pa.string(), lambda at: "NUL", "n_l_"),
    _same("_type", pa.string(), lambda at: "Value", "_type__"),
    _same("file_name", pa.string(), lambda at: "../../../etc/passwd", "file_name_"),
    _same("Image_File_Names", pa.string(), lambda at: "images/00000/000000000.jpg"),
    _same("image_file_name", pa.string(), lambda at: "http://127.0.0.1/x", "image_file_name_"),
    Own("file", pa.string(), lambda at: f"{LISTS}/{at % 2}/a.csv", lambda at: f"{at % 2}/a.csv"),
    _same("row", pa.int64(), lambda at: at + 1),
)


@dataclass
class Expected:
    """One image as every export must hold it. `captions`: uid -> (url, text); `scores`: uid -> name -> number;
    `metadata`: uid -> name -> value."""

    key: str
    sha256: str
    split: str
    jpeg: bytes
    captions: dict[str, tuple[str, str]] = field(default_factory=dict)
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)
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
        "s\0core": [0.5] * len(pairs),
    }
    columns |= {own.name: pa.array([own.held(at) for at in range(len(pairs))], own.type) for own in OWN}
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
            "s_core": 0.5,
        }
        kept.metadata[uid] = {own.goes_out_as or own.name: own.out(at) for own in OWN}
        kept.metadata[uid]["original"] = OWN[0].held(at) or text
    return found


def with_json_read(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with what is in the JSON of `who`."""
    return {**metadata, "who": metadata["who"] and json.loads(metadata["who"])}


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
