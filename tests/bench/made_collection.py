"""A dataset as the stages before `extract` leave it: pairs that are all kept, and image shards with or without tars."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.atomic import digest
from pipeline.store.dataset import Dataset
from pipeline.store.table import Shard, Table

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "grey", "brown")
THINGS = ("cat", "house", "tree", "flag", "arrow", "face", "button", "car", "boat", "ladder", "lamp", "bridge")
SPLIT = {"train": 0.9, "validation": 0.05, "test": 0.05}
_VERDICTS = pa.schema([*((name, pa.string()) for name in ("uid", "stage", "rule")), ("value", pa.float64())])


def make_collection(
    root: Path, images: int, picture: Callable[[int], bytes] | None = None, shard_images: int = 10_000
) -> Dataset:
    """`images` images under the keys 000000000 and so on, each with one text; `picture` gives an image's file."""
    dataset = Dataset(root)
    if dataset.filtered.exists and not dataset.gaps:
        return dataset
    urls = [f"http://example.org/{number}.jpg" for number in range(images)]
    contents = [hashlib.sha256(url.encode()).hexdigest() for url in urls]
    colours, things = len(COLOURS), len(THINGS)
    texts = [
        f"{COLOURS[number % colours]} {THINGS[number % things]} by a {THINGS[number // things % things]}, {number % 97}"
        for number in range(images)
    ]
    uids = pa.array([content[:32] for content in contents])
    pairs = pa.table({"uid": uids, "url": urls, "text": texts}).sort_by("uid")
    strings = pa.array([], pa.string())
    repeated = pa.table({"uid": strings, "file": strings, "row": pa.array([], pa.int64())})
    _commit(dataset.pairs, {"00000": {"00000": pairs, "repeated": repeated}})
    _commit(dataset.quarantine, {"00000": {"00000": _VERDICTS.empty_table()}})
    passed = pa.table({"uid": pairs["uid"], "failures": np.zeros(images, np.int32)})
    _commit(dataset.screened, {"00000": {"00000.measured": passed}}, {}, {"rules": {}})
    metadata = pa.table(
        {
            "key": [f"{number:09d}" for number in range(images)],
            "url": urls,
            "status": ["ok"] * images,
            "http_status": np.full(images, 200, np.int32),
            "sha256": contents,
        }
    )
    firsts = range(0, images, shard_images)
    shards = {f"{at:05d}": metadata.slice(first, shard_images) for at, first in enumerate(firsts)}
    tars: dict[str, Callable[[Path], None]] = {}
    if picture:
        for (name, rows), first in zip(shards.items(), firsts, strict=True):
            members = ((f"{number:09d}.jpg", picture(number)) for number in range(first, first + len(rows)))
            tars[name] = partial(_write_tar, members=members)
    _commit(dataset.images, {name: {name: rows} for name, rows in shards.items()}, tars)
    _commit(dataset.filtered, {"00000": {"00000": _VERDICTS.empty_table()}}, {}, {"rules": {}, "split": SPLIT})
    return dataset


def photograph(number: int, longest: int) -> bytes:
    """A JPEG of `longest` x 3/4 `longest` pixels with blots of all sizes, edges and grain: about as many bytes a pixel
    as a photograph has."""
    random = np.random.default_rng(number)
    height, width = longest * 3 // 4, longest
    total = np.zeros((height, width, 3), np.float32)
    for cells in (2, 5, 13, 40, 120):
        blots = random.random((cells, cells, 3), np.float32) - 0.5
        total += cv2.resize(blots, (width, height), interpolation=cv2.INTER_LINEAR) * cells**-0.4
    for _ in range(12):
        corner, other = random.integers(0, (width, height), (2, 2)).tolist()
        cv2.rectangle(total, corner, other, random.random(3).tolist(), thickness=max(1, longest // 100))
    grain = random.standard_normal((height, width, 1), np.float32) * 0.02
    pixels = ((total + grain) * 160 + 120).clip(0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _commit(
    table: Table,
    shards: Mapping[str, Mapping[str, pa.Table]],
    tars: Mapping[str, Callable[[Path], None]] | None = None,
    info: Mapping[str, object] | None = None,
) -> None:
    """`shards`: shard -> its Parquet files, without their suffix -> rows; `tars`: shard -> what writes its tar."""
    key = digest(sorted(shards))
    with table.writing(key, dict.fromkeys(shards, key)) as writing:
        for name in writing.todo:
            files = []
            for file, rows in shards[name].items():
                pq.write_table(rows, table.folder / f"{file}.parquet")
                files.append(f"{file}.parquet")
            if tars:
                tars[name](table.folder / f"{name}.tar")
                files.insert(0, f"{name}.tar")
            writing.add(Shard.of(table.folder, name, key, files, {"rows": len(rows)}))
        writing.commit(dict(info or {}))
