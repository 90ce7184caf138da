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


AtHand = Callable[[str], pa.Table]
"""A shard -> (key, a group's columns) of those of its pictures that need not be measured."""


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
    at_hand: Mapping[str, AtHand] | None = None,
) -> None:
    """Bring the table of each group up to date with the pictures of `sources` (shard -> source).

    `side`: see `pictures_of`. `at_hand`: group -> what is known of it already. What cannot be decoded has NULLs, and
    the manifest counts it as `unreadable`. Killed anywhere, the next call measures only the shards that a group lacks.
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
        work = partial(_measure_shard, sources=sources, todo=tuple(todo), side=side, at_hand=at_hand or {})
        for done in engine.map(work, shards, label):
            for name, shard in done.items():
                writings[name].add(shard)
        for writing in writings.values():
            writing.commit()


def _measure_shard(
    name: str,
    *,
    sources: Mapping[str, Source],
    todo: Sequence[_Todo],
    side: int | None,
    at_hand: Mapping[str, AtHand],
) -> dict[str, Shard]:
    """Measure one shard's pictures for every group that lacks them. Returns group -> what was written."""
    at_work = [_AtWork(each, at_hand, name) for each in todo if name in each.keys]
    known = set.intersection(*(set(work.known) for work in at_work))
    unreadable = 0
    pictures = pictures_of(sources[name].pictures, side, known)
    for batch in _batches(pictures, max(work.group.batch_size for work in at_work)):
        unreadable += sum(picture is None and key not in known for key, picture in batch)
        for work in at_work:
            work.take(batch)
    done = {}
    for work in at_work:
        table = pa.concat_tables(work.rows)
        with replacing(work.folder / f"{name}.parquet") as path:
            pq.write_table(table, path, compression="zstd")
        counts = {"rows": table.num_rows, "unreadable": unreadable}
        done[work.group.name] = Shard.of(work.folder, name, work.key, [f"{name}.parquet"], counts)
    return done


class _AtWork:
    """One group in one shard: batches of pictures in, `rows` out."""

    def __init__(self, todo: _Todo, at_hand: Mapping[str, AtHand], shard: str) -> None:
        self.group, self.folder, self.key = todo.group, todo.folder, todo.keys[shard]
        schema = pa.schema([pa.field("key", pa.string()), *self.group.schema])
        self.rows = [schema.empty_table()]
        there = at_hand[self.group.name](shard) if self.group.name in at_hand else schema.empty_table()
        self._known = there.select(self.group.schema.names).cast(self.group.schema).combine_chunks()
        self.known = {key: row for row, key in enumerate(there["key"].to_pylist())}

    def take(self, batch: Sequence[Picture]) -> None:
        new = [picture for key, picture in batch if picture is not None and key not in self.known]
        parts = [new[first : first + self.group.batch_size] for first in range(0, len(new), self.group.batch_size)]
        measured = [pa.table(_measurer(self.group)(part)) for part in parts]
        numbers = iter(range(len(self.known), len(self.known) + len(new)))
        place = [
            self.known[key] if key in self.known else None if picture is None else next(numbers)
            for key, picture in batch
        ]
        values = pa.concat_tables([self._known, *measured]).take(pa.array(place, pa.int64()))
        keys = pa.array([key for key, _ in batch], pa.string())
        self.rows.append(values.add_column(0, "key", keys).cast(self.rows[0].schema))


@lru_cache(maxsize=8)
def _measurer(group: PictureSignals) -> Measure:
    """Kept for a worker's next shard: a model takes seconds to load."""
    return group.measurer()


def _batches(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    iterator = iter(pictures)
    while batch := list(islice(iterator, size)):
        yield batch
