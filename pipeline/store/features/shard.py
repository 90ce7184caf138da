"""One shard of features, open: where each row's bytes are in the file, and whether they are what was written.

The values of an uncompressed PLAIN page in which nothing is null end its column chunk (Parquet's format, "Data Pages"
and "Plain encoding"), so their places follow from the footer and the rows' n; see `writing`. What is read is compared
with its checksum the first time that this object reads it.
"""

import ctypes
import json
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from typing_extensions import Buffer

from pipeline.errors import PairmillError
from pipeline.store.features.columns import CHECKSUM, Column, stored_columns
from pipeline.store.features.writing import LENGTH_BYTES, METADATA, ROWS_PER_GROUP, TAIL, footer_checksum

CHECKSUM_BYTES = 8
_POPULATE_READ = 22
"""MADV_POPULATE_READ, since Linux 5.14."""
_libc = ctypes.CDLL(None)  # its calls let go of Python's lock, unlike mmap's own madvise


def damaged(path: Path, what: str) -> PairmillError:
    return PairmillError(f"{path} is damaged: {what}", "remove it and run `make extract` again, or import it again")


@dataclass(frozen=True)
class Footer:
    """A shard's Parquet metadata, and ours: what `FeatureWriter` adds to it."""

    parquet: pq.FileMetaData
    identity: str
    checksums: dict[str, list[int]]
    key_bytes: list[int]

    @classmethod
    def read(cls, path: Path, identity: str, bytes_wanted: int | None = None) -> "Footer":
        """Raises PairmillError for what is no whole shard of this identity."""
        try:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                if bytes_wanted is not None and size != bytes_wanted:
                    raise damaged(path, f"it has {size:,} bytes, and was written with {bytes_wanted:,}")
                file.seek(max(0, size - TAIL))
                length, magic = struct.unpack("<I4s", file.read())
                file.seek(max(0, size - TAIL - length))
                content = file.read(length)
            if magic == b"PAR1" and METADATA not in content:
                raise damaged(path, "an earlier version, or some other program, wrote it")
            if magic != b"PAR1" or footer_checksum(content[:-CHECKSUM_BYTES]) != content[-CHECKSUM_BYTES:]:
                raise damaged(path, "its footer has another checksum")
            parquet = pq.read_metadata(path)
            footer = cls(parquet, **json.loads((parquet.metadata or {})[METADATA]))
        except FileNotFoundError:
            raise damaged(path, "it is missing") from None
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise damaged(path, str(error) or type(error).__name__) from None
        if footer.identity != identity:
            raise PairmillError(
                f"{path} holds features of another extractor, model or setting than its folder's manifest says",
                "remove it and run `make extract` again",
            )
        return footer


class FeatureShard:
    """An open shard.

    `keys`: (rows,) bytes, in order. `n`: (rows,) int64. `places`: (rows, columns) uint64, the addresses at which each
    row's values of each of `columns` begin: the file is mapped into memory as long as this object lives.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, Column],
        identity: str,
        bytes_wanted: int | None = None,
        verify: bool = True,
    ) -> None:
        self.path, self._verify = path, verify
        self.columns = stored_columns(columns)
        self._footer = Footer.read(path, identity, bytes_wanted)
        parquet = self._footer.parquet
        self._place = {parquet.schema.column(at).path.partition(".")[0]: at for at in range(parquet.num_columns)}
        self._file = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._file).st_size
        self._map = mmap.mmap(self._file, 0, prot=mmap.PROT_READ)
        self._address: int = np.frombuffer(self._map, np.uint8).ctypes.data
        self.groups = parquet.num_row_groups
        groups = range(self.groups)
        self.keys = np.array([key for group in groups for key in self._keys(group)], np.bytes_)
        self.n = np.concatenate([np.empty(0, np.int64), *(self._numbers("n", group) for group in groups)])
        self._bounds = np.concatenate([[0], np.cumsum(self.n)])
        self.places = np.empty((len(self.n), len(self.columns)), np.uint64)
        for group in groups:
            self._place_rows(group)
        self._sums = {
            name: np.concatenate([self._numbers(name + CHECKSUM, group) for group in groups])
            for name, column in self.columns.items()
            if column.tensor and self.groups
        }
        self._seen = {name: np.full(len(self.n), not verify) for name in self._sums}
        self._compared: set[tuple[str, int]] = set()

    def __len__(self) -> int:
        return len(self.n)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def rows_of(self, group: int) -> slice:
        """The rows of a row group."""
        return slice(group * ROWS_PER_GROUP, min((group + 1) * ROWS_PER_GROUP, self._footer.parquet.num_rows))

    def row(self, key: str) -> int | None:
        """Where a key stands, or None."""
        wanted = key.encode()
        at = int(np.searchsorted(self.keys, wanted))
        return at if at < len(self.keys) and self.keys[at] == wanted else None

    def compare_lists(self, group: int, names: Iterable[str]) -> None:
        """Compare a row group's columns that are no tensors with their checksums, where that was not done."""
        for name in names:
            if self._verify and not self.columns[name].tensor and (name, group) not in self._compared:
                self._list_values(name, group)
                self._compared.add((name, group))

    def compare_tensor(self, name: str, row: int, content: Buffer) -> None:
        """Compare a row of a tensor with its checksum, where that was not done."""
        if not self._seen[name][row]:
            if xxhash.xxh3_64_intdigest(content) != int(self._sums[name][row]):
                raise damaged(self.path, f"{name} of image {self.keys[row].decode()} has another checksum")
            self._seen[name][row] = True

    def compare_size(self) -> None:
        """Look whether the file is as long as it was: what is mapped and gone would end the process."""
        if os.fstat(self._file).st_size < self._size:
            raise damaged(self.path, "it ends too early")

    def bytes_of(self, group: int, names: Iterable[str]) -> int:
        """How large a row group's columns are."""
        return sum(end - start for start, end in (self._extent(name, group) for name in names))

    def read_ahead(self, group: int, names: Iterable[str]) -> None:
        """Have a row group's columns read and mapped, so that copying them waits for nothing. Holds no lock of
        Python's meanwhile."""
        extents = [self._extent(name, group) for name in names]
        for start, end in extents:
            os.posix_fadvise(self._file, start, end - start, os.POSIX_FADV_WILLNEED)
        for start, end in extents:
            self._madvise(start, end, _POPULATE_READ)

    def forget(self, group: int, names: Iterable[str]) -> None:
        """Give back the pages of a row group's columns; they stay in the system's cache and not in this process."""
        for name in names:
            self._madvise(*self._extent(name, group), mmap.MADV_DONTNEED)

    def forget_all(self) -> None:
        self._madvise(0, self._size, mmap.MADV_DONTNEED)

    def _madvise(self, start: int, end: int, advice: int) -> None:
        """Only advice: a kernel that does not know it maps the pages when they are touched."""
        start -= start % mmap.PAGESIZE
        _libc.madvise(ctypes.c_void_p(self._address + start), ctypes.c_size_t(end - start), advice)

    def check(self) -> None:
        """Read everything. Raises PairmillError for the first damage, and for NaN or infinity."""
        for at, (name, column) in enumerate(self.columns.items()):
            if not column.tensor:
                for group in range(self.groups):
                    self._finite(name, self._list_values(name, group), group * ROWS_PER_GROUP)
                continue
            for row in range(len(self)):
                self._seen[name][row] = False
                size = column.size * (1 if column.per_image else int(self.n[row]))
                content = self._read(int(self.places[row, at]) - self._address, size)
                self.compare_tensor(name, row, content)
                self._finite(name, np.frombuffer(content, column.stored), row)

    def _finite(self, name: str, values: np.ndarray, row: int) -> None:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise damaged(self.path, f"{name} holds NaN or infinity at or after image {self.keys[row].decode()}")

    def _keys(self, group: int) -> list[bytes]:
        try:
            size = int(self._footer.key_bytes[group])
        except (IndexError, TypeError, ValueError):
            raise damaged(self.path, "its metadata lack the sizes of the keys") from None
        content = self._end("key", group, size)
        keys, at = [], 0
        for _ in range(*self.rows_of(group).indices(self._footer.parquet.num_rows)):
            length = int.from_bytes(content[at : at + LENGTH_BYTES], "little")
            keys.append(bytes(content[at + LENGTH_BYTES : at + LENGTH_BYTES + length]))
            at += LENGTH_BYTES + length
        self._compare("key", group, b"".join(keys))
        return keys

    def _numbers(self, name: str, group: int) -> np.ndarray:
        """A row group's numbers of `n`, as int64, or of a column of checksums, as uint64: one a row."""
        stored, dtype = ("<i4", np.int64) if name == "n" else ("<u8", np.uint64)
        rows = self.rows_of(group)
        content = self._end(name, group, (rows.stop - rows.start) * np.dtype(stored).itemsize)
        self._compare(name, group, content)
        return np.frombuffer(content, stored).astype(dtype)

    def _list_values(self, name: str, group: int) -> np.ndarray:
        """A row group's numbers of a column that is no tensor, one after another, compared with their checksum."""
        column, rows = self.columns[name], self.rows_of(group)
        count = rows.stop - rows.start if column.per_image else int(self._bounds[rows.stop] - self._bounds[rows.start])
        content = self._end(name, group, count * column.size)
        self._compare(name, group, content)
        return np.frombuffer(content, column.stored)

    def _place_rows(self, group: int) -> None:
        """Fill in the places of a row group's rows: values of a chunk lie one after another up to its end."""
        rows = self.rows_of(group)
        for at, (name, column) in enumerate(self.columns.items()):
            start, end = self._extent(name, group)
            sizes = column.size * (np.ones(rows.stop - rows.start, np.int64) if column.per_image else self.n[rows])
            lengths = LENGTH_BYTES if column.tensor else 0
            offsets = end - np.cumsum((sizes + lengths)[::-1])[::-1]
            if len(offsets) and offsets[0] < start:
                raise damaged(self.path, f"its column {name} is too short")
            self.places[rows, at] = (self._address + offsets + lengths).astype(np.uint64)

    def _compare(self, name: str, group: int, content: Buffer) -> None:
        try:
            same = xxhash.xxh3_64_intdigest(content) == self._footer.checksums[name][group]
        except (KeyError, IndexError, TypeError):
            raise damaged(self.path, f"its metadata lack the checksum of {name}") from None
        if not same:
            raise damaged(self.path, f"{name} has another checksum in the rows from {group * ROWS_PER_GROUP:,} on")

    def _end(self, name: str, group: int, size: int) -> bytes:
        """The last `size` bytes of a column chunk."""
        start, end = self._extent(name, group)
        if not 0 <= size <= end - start:
            raise damaged(self.path, f"its column {name} is too short")
        return self._read(end - size, size)

    def _read(self, offset: int, size: int) -> bytes:
        content = os.pread(self._file, size, offset)
        if len(content) != size:
            raise damaged(self.path, "it ends too early")
        return content

    def _extent(self, name: str, group: int) -> tuple[int, int]:
        """Where a column chunk begins and ends."""
        if name not in self._place:
            raise damaged(self.path, f"it has no column {name}")
        chunk = self._footer.parquet.row_group(group).column(self._place[name])
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
            raise damaged(self.path, f"its column {name} is compressed: some other program wrote it")
        start, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
        if not 0 <= start <= end <= self._size:
            raise damaged(self.path, f"its column {name} lies outside of it")
        return start, end
