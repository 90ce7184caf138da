"""Datasets as `download` leaves them, made without it: pairs, verdicts of `screen`, and image shards with real tars."""

import hashlib
import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from corpus import encoded

from pipeline import filter
from pipeline.job import Job
from pipeline.recipe import Recipe
from pipeline.store.atomic import digest
from pipeline.store.dataset import Dataset
from pipeline.store.table import Shard, Table
from pipeline.web.image_shard import METADATA

_VERDICTS = pa.schema(
    [(name, pa.string()) for name in ("uid", "stage", "rule")]
    + [("value", pa.float64()), ("detail", pa.string()), ("first", pa.bool_())]
)


class Inline:
    """An engine without processes, which counts its calls."""

    workers = 1

    def __init__(self) -> None:
        self.done: list[str] = []

    def map(self, function: Any, tasks: Any, label: str) -> Any:
        for task in tasks:
            self.done.append(f"{label}/{task}")
            yield function(task)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Image:
    """One url's image: stored `content`, and what the metadata say of the original."""

    url: str
    content: bytes = b""
    status: str = "ok"
    original: tuple[int, int] = (300, 300)
    bytes: int = 10_000
    sha256: str | None = None


def jpeg(pixels: np.ndarray) -> bytes:
    return encoded(pixels, "JPEG", quality=95)


def uid_of(url: str, text: str) -> str:
    return hashlib.sha256(f"{url}\0{text}".encode()).hexdigest()[:32]


def write_table(
    table: Table, shards: Mapping[str, Mapping[str, pa.Table]], info: Mapping[str, Any] | None = None
) -> None:
    """`shards`: shard -> its files without their suffix -> rows."""
    keys = {name: digest([rows.to_pydict() for rows in files.values()]) for name, files in shards.items()}
    with table.writing(digest(keys), keys) as writing:
        for name, files in shards.items():
            for file, rows in files.items():
                pq.write_table(rows, table.folder / f"{file}.parquet")
            writing.add(Shard.of(table.folder, name, keys[name], [f"{file}.parquet" for file in files], {}))
        writing.commit(dict(info or {}))


def write_screened(dataset: Dataset, shards: Mapping[str, Sequence[str]], fell: Iterable[str] = ()) -> None:
    """What `screen` leaves: of each shard's uids those in `fell` have one word, where two are asked for."""
    fell = set(fell)
    described = {"threshold": 2.0, "setting": "2", "condition": "words <", "takes": "number", "measure": "words"}
    judged = {}
    for name, uids in shards.items():
        out = [
            {"uid": uid, "stage": "screen", "rule": "min_words", "value": 1.0, "first": True}
            for uid in uids
            if uid in fell
        ]
        measured = {
            "uid": pa.array(uids, pa.string()),
            "failures": pa.array([int(uid in fell) for uid in uids], pa.int32()),
            "min_words": pa.array([1.0 if uid in fell else 5.0 for uid in uids], pa.float64()),
        }
        verdicts = pa.Table.from_pylist(out, _VERDICTS)
        judged[name] = {f"{name}.verdicts": verdicts, f"{name}.measured": pa.table(measured)}
    write_table(dataset.screened, judged, {"rules": {"min_words": described}})


def write_images(dataset: Dataset, shards: Sequence[Sequence[Image]]) -> None:
    """Each shard's metadata, and a tar of its images that are ok, as `download` writes them."""
    names = [f"{number:05d}" for number in range(len(shards))]
    key = hashlib.sha256(repr(shards).encode()).hexdigest()
    with dataset.images.writing(key, dict.fromkeys(names, key)) as writing:
        for name, images in zip(names, shards, strict=True):
            rows = []
            with tarfile.open(dataset.images.folder / f"{name}.tar", "w") as tar:
                for number, image in enumerate(images):
                    key, ok = f"{name}{number:04d}", image.status == "ok"
                    members = {"jpg": image.content, "txt": b"words", "json": b"{}"} if ok else {}
                    for suffix, content in members.items():
                        entry = tarfile.TarInfo(f"{key}.{suffix}")
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
                    found = {
                        "sha256": image.sha256 or hashlib.sha256(image.content).hexdigest(),
                        "bytes": image.bytes,
                        "original_width": image.original[0],
                        "original_height": image.original[1],
                    }
                    row = dict.fromkeys(METADATA.names) | {"key": key, "url": image.url, "status": image.status}
                    rows.append(row | (found if ok else {}))
            pq.write_table(pa.Table.from_pylist(rows, METADATA), dataset.images.folder / f"{name}.parquet")
            writing.add(Shard.of(dataset.images.folder, name, key, [f"{name}.tar", f"{name}.parquet"], {}))
        writing.commit()


def made_dataset(
    folder: Path,
    pairs: Sequence[tuple[str, str]],
    images: Sequence[Sequence[Image]],
    screened: Sequence[tuple[str, str]] = (),
    **columns: Sequence[Any],
) -> Dataset:
    """`pairs` are (url, text); `columns` the lists' further columns, aligned with them; `screened` fell out before."""
    dataset = Dataset(folder)
    order = sorted(range(len(pairs)), key=lambda row: uid_of(*pairs[row]))
    parts = {f"{number:04d}": order[number::2] for number in range(2)}
    listed = {"url": [url for url, _ in pairs], "text": [text for _, text in pairs], **columns}
    uids = pa.array([uid_of(*pair) for pair in pairs], pa.string())
    table = pa.table({"uid": uids, **{name: pa.array(values) for name, values in listed.items()}})
    none = pa.table({name: pa.array([], pa.string()) for name in ("uid", "file", "row")})
    files = {
        name: {name: table.take(pa.array(rows, pa.int64())), f"repeated-{name}": none} for name, rows in parts.items()
    }
    write_table(dataset.pairs, files)
    write_table(dataset.quarantine, {"0000": {"0000": none}})
    shards = {name: [uids[row].as_py() for row in rows] for name, rows in parts.items()}
    write_screened(dataset, shards, {uid_of(*pair) for pair in screened})
    write_images(dataset, images)
    return dataset


def filter_job(dataset: Dataset, rules: Mapping[str, Any], engine: Any = None, **more: Any) -> Job:
    """`more`: other keys of [filter], or whole sections where they are named as ones."""
    sections = {name: more.pop(name) for name in list(more) if name in Recipe.model_fields}
    recipe = Recipe.model_validate({"name": "t", "filter": {"rules": rules, **more}, **sections})
    return Job("filter", recipe, dataset, engine or Inline())


def run_filter(dataset: Dataset, rules: Mapping[str, Any], engine: Any = None, **more: Any) -> str:
    return filter.run(filter_job(dataset, rules, engine, **more))


def verdicts(dataset: Dataset) -> dict[tuple[str, str], dict[str, float | None]]:
    """(url, text) -> rule -> value, in the order of the verdicts."""
    with dataset.connect() as connection:
        rows = connection.execute("SELECT uid, url, text FROM pairs").fetchall()
    pairs = {uid: (url, text) for uid, url, text in rows}
    found: dict[tuple[str, str], dict[str, float | None]] = defaultdict(dict)
    for path in dataset.filtered.paths(".verdicts.parquet"):
        for row in pq.read_table(path).to_pylist():
            found[pairs[row["uid"]]][row["rule"]] = row["value"]
    return dict(found)


def signal(dataset: Dataset, group: str) -> list[dict[str, Any]]:
    """A table of signals, as rows."""
    paths = dataset.signals(group, "filter").paths(".parquet")
    return [row for path in paths for row in pq.read_table(path).to_pylist()]
