"""What is measured of each picture's pixels: any number of groups in one pass, each picture decoded once.

The image shards and the pictures of evaluation sets go the same way. A group's table `signals/<group>/` holds one
Parquet file a shard, with the pictures' key and the group's columns, in the shard's order.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine import Engine
from pipeline.job import Job
from pipeline.signals.pictures import Picture, pictures_of
from pipeline.store.atomic import digest, replacing
from pipeline.store.table import Shard, Table

Measure = Callable[[Sequence[np.ndarray]], dict[str, pa.Array]]
"""Some RGB uint8 pictures (h, w, 3) -> their columns, typed as the group's schema."""


class PictureSignals(Hashable, Protocol):
    """A group of signals of a picture alone. Instances are frozen: they go to worker processes, and are keys there."""

    @property
    def name(self) -> str: ...

    @property
    def schema(self) -> pa.Schema:
        """The group's columns."""

    @property
    def batch_size(self) -> int:
        """How many pictures the measurer is given at once, at most."""

    @property
    def identity(self) -> Any:
        """What the signals hang on beside the pictures: version, settings, digests of weights."""

    def measurer(self) -> Measure:
        """Called once a worker process, where models are loaded."""


@dataclass(frozen=True)
class Source:
    """A shard of pictures: a tar or some files, and a digest of its content."""

    pictures: Path | tuple[Path, ...]
    digest: str


@dataclass(frozen=True)
class _Todo:
    """A group with the table that it fills, and the key of each shard that is missing there."""

    group: PictureSignals
    folder: Path
    keys: Mapping[str, str]


def image_shards(job: Job) -> dict[str, Source]:
    """The downloaded images: shard -> its tar. A tar's content follows from its sha256."""
    sources = {}
    for shard in job.dataset.images.manifest.shards:
        tar = next(file for file in shard.files if file.name.endswith(".tar"))
        sources[shard.name] = Source(job.dataset.images.folder / tar.name, tar.sha256)
    return sources


def measure_pictures(
    engine: Engine,
    tables: Mapping[PictureSignals, Table],
    sources: Mapping[str, Source],
    label: str,
    side: int | None = None,
) -> None:
    """Bring the table of each group up to date with the pictures of `sources` (shard -> source).

    `side`: see `pictures_of`. What cannot be decoded has NULLs, and the manifest counts it as `unreadable`. Killed
    anywhere, the next call measures only the shards that a group lacks.
    """
    with ExitStack() as stack:
        writings, todo = {}, []
        for group, table in tables.items():
            keys = {shard: digest(group.identity, source.digest, side) for shard, source in sources.items()}
            key = digest("pictures", keys)
            if not table.is_current(key):
                writings[group.name] = writing = stack.enter_context(table.writing(key, keys))
                todo.append(_Todo(group, table.folder, {shard: keys[shard] for shard in writing.todo}))
        shards = [shard for shard in sources if any(shard in each.keys for each in todo)]
        work = partial(_measure_shard, sources=sources, todo=tuple(todo), side=side)
        for done in engine.map(work, shards, label):
            for name, shard in done.items():
                writings[name].add(shard)
        for writing in writings.values():
            writing.commit()


def _measure_shard(
    name: str, *, sources: Mapping[str, Source], todo: Sequence[_Todo], side: int | None
) -> dict[str, Shard]:
    """Measure one shard's pictures for every group that lacks them. Returns group -> what was written."""
    missing = [each for each in todo if name in each.keys]
    measurers = {each.group.name: _measurer(each.group) for each in missing}
    rows: dict[str, list[pa.Table]] = {each.group.name: [] for each in missing}
    unreadable = 0
    for batch in _batches(pictures_of(sources[name].pictures, side), max(each.group.batch_size for each in missing)):
        readable = [picture for _, picture in batch if picture is not None]
        unreadable += len(batch) - len(readable)
        numbers = iter(range(len(batch)))
        place = pa.array([None if picture is None else next(numbers) for _, picture in batch], pa.int32())
        for each in missing:
            size = each.group.batch_size
            parts = [readable[first : first + size] for first in range(0, len(readable), size)]
            measured = pa.concat_tables(
                [each.group.schema.empty_table(), *(pa.table(measurers[each.group.name](part)) for part in parts)]
            )
            columns = {column: measured[column].take(place) for column in measured.column_names}
            rows[each.group.name].append(pa.table({"key": [key for key, _ in batch], **columns}))
    done = {}
    for each in missing:
        schema = pa.schema([pa.field("key", pa.string()), *each.group.schema])
        table = pa.concat_tables([schema.empty_table(), *rows[each.group.name]])
        with replacing(each.folder / f"{name}.parquet") as path:
            pq.write_table(table, path, compression="zstd")
        counts = {"rows": table.num_rows, "unreadable": unreadable}
        done[each.group.name] = Shard.of(each.folder, name, each.keys[name], [f"{name}.parquet"], counts)
    return done


@lru_cache(maxsize=8)
def _measurer(group: PictureSignals) -> Measure:
    """Kept for a worker's next shard: a model takes seconds to load."""
    return group.measurer()


def _batches(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    iterator = iter(pictures)
    while batch := list(islice(iterator, size)):
        yield batch
