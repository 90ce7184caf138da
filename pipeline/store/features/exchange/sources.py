"""The files of an import, and the first pass over them: where each image's features lie, and under which id."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PairmillError
from pipeline.store.atomic import digest, file_sha256, replacing, write_json
from pipeline.store.features.exchange.hdf5 import Hdf5File
from pipeline.store.features.exchange.lxmert_tsv import TsvFile
from pipeline.store.features.exchange.published import (
    Damage,
    Place,
    PublishedFile,
    UnreadableError,
    columns_of,
    read_image,
    where,
)
from pipeline.store.features.exchange.uniter_npz import NpzFile
from pipeline.store.features.exchange.webdataset import TarFile

OPENERS: dict[str, type[PublishedFile]] = {
    "webdataset": TarFile,
    "uniter-npz": NpzFile,
    "lxmert-tsv": TsvFile,
    "hdf5": Hdf5File,
}
_SUFFIXES = {"webdataset": (".tar",), "uniter-npz": (".npz",), "lxmert-tsv": (".tsv",), "hdf5": (".h5", ".hdf5")}
PLACES = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.int32()),
        ("number", pa.int64()),
        ("unit", pa.string()),
        ("start", pa.int64()),
        ("length", pa.int64()),
    ]
)
_CHUNK_BYTES = 1 << 28
_CHUNK_FILES = 2048
_BATCH = 10_000
_TOLD = 3


def list_files(paths: Sequence[Path], format: str) -> list[Path]:
    """The files, absolute and in order; of a folder all those of the format's suffix. Raises PairmillError."""
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found |= {
                file.absolute() for file in path.rglob("*") if file.suffix in _SUFFIXES[format] and file.is_file()
            }
        elif path.is_file():
            found.add(path.absolute())
        else:
            raise PairmillError(f"{path} is not there", "name files, or folders of files")
    if not found:
        raise PairmillError(f"there is no {' or '.join(_SUFFIXES[format])} in {', '.join(map(str, paths))}")
    return sorted(found)


@dataclass(frozen=True)
class Sources:
    """The files of one format, whose names lie in a staged list: there may be millions."""

    format: str
    listed: Path

    @classmethod
    def stage(cls, paths: Sequence[Path], format: str, folder: Path) -> "Sources":
        """Write the list to `folder`, under a name that says which it is: workers remember what they have read."""
        names = list(map(str, paths))
        listed = folder / f"files-{digest(names)}.json"
        write_json(listed, names)
        return cls(format, listed)

    def path(self, file: int) -> Path:
        return Path(_names(self.listed)[file])

    def chunks(self) -> list[str]:
        """The files in runs that are worth a task each, as names "first-end"."""
        chunks, first, size = [], 0, 0
        names = _names(self.listed)
        for end, name in enumerate(names, 1):
            size += Path(name).stat().st_size
            if size >= _CHUNK_BYTES or end - first == _CHUNK_FILES or end == len(names):
                chunks.append(f"{first:08d}-{end:08d}")
                first, size = end, 0
        return chunks


@lru_cache(maxsize=1)
def _names(listed: Path) -> list[str]:
    return list(json.loads(listed.read_bytes()))


@dataclass
class Indexed:
    """What the first pass found in a chunk."""

    sha256: str = ""
    """Of its files' digests, in order."""
    images: int = 0
    damaged: int = 0
    examples: list[str] = field(default_factory=list)
    """The first damages, each with its file and place."""
    columns: dict[str, Any] | None = None
    """Those of the first image that can be read, described."""


def index_chunk(chunk: str, *, sources: Sources, folder: Path, top_k: int, dtype: str) -> Indexed:
    """Write the chunk's PLACES to `folder`; returns what else was found."""
    first, end = map(int, chunk.split("-"))
    found, sums = Indexed(), hashlib.sha256()

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(first, end):
            path = sources.path(number)
            sums.update(file_sha256(path).encode())
            beside = path.with_name(f"{path.stem}_imgid2idx.json")  # the ids of some HDF5 files
            if beside.is_file():
                sums.update(file_sha256(beside).encode())
            with closing(OPENERS[sources.format](path)) as file:
                for place in file.places():
                    if isinstance(place, Damage):
                        _note(found, f"{where(path, place)}: {place.what}")
                        continue
                    found.images += 1
                    if found.columns is None:
                        found.columns = _columns(file, place, top_k, dtype)
                    yield {"file": number, **vars(place)}

    with replacing(folder / f"{chunk}.parquet") as partial, pq.ParquetWriter(partial, PLACES) as writer:
        waiting = rows()
        while batch := list(islice(waiting, _BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, PLACES))
    found.sha256 = sums.hexdigest()
    return found


def _note(found: Indexed, damage: str) -> None:
    found.damaged += 1
    if len(found.examples) < _TOLD:
        found.examples.append(damage)


def _columns(file: PublishedFile, place: Place, top_k: int, dtype: str) -> dict[str, Any] | None:
    try:
        columns = columns_of(read_image(file, place, top_k), dtype)
    except UnreadableError:
        return None
    return {name: column.described for name, column in columns.items()}


class OpenFiles:
    """The sources' files by their number, a few of them open at once."""

    def __init__(self, sources: Sources, most: int = 16) -> None:
        self._sources, self._most = sources, most
        self._open: OrderedDict[int, PublishedFile] = OrderedDict()

    def __getitem__(self, file: int) -> PublishedFile:
        if file not in self._open:
            if len(self._open) == self._most:
                self._open.popitem(last=False)[1].close()
            self._open[file] = OPENERS[self._sources.format](self._sources.path(file))
        self._open.move_to_end(file)
        return self._open[file]

    def close(self) -> None:
        for file in self._open.values():
            file.close()
