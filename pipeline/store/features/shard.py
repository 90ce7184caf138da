"""Reading one shard of features by position: from the file straight into the caller's array, in one copy.

The values of an uncompressed PLAIN page in which nothing is null end its column chunk (Parquet's format, "Data Pages"
and "Plain encoding"), so their places follow from the footer and the rows' n; see `writing`. What is read is compared
with its checksum: a tensor's row the first time that this object reads it, other columns each time.
"""

import json
import os
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from typing_extensions import Buffer

from pipeline.errors import PairmillError
from pipeline.store.features.columns import CHECKSUM, Column, stored_columns
from pipeline.store.features.writing import METADATA, ROWS_PER_GROUP, TAIL, footer_checksum

CHECKSUM_BYTES = 8
_LENGTH = 4
"""Bytes before each value of a binary column: its length."""


def read_footer(path: Path, identity: str, bytes_wanted: int | None = None) -> tuple[pq.FileMetaData, dict[str, Any]]:
    """A shard's Parquet metadata and ours. Raises PairmillError for what is no whole shard of this identity."""
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
        footer = pq.read_metadata(path)
        described = json.loads((footer.metadata or {})[METADATA])
        found, _ = described["identity"], described["checksums"]
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise damaged(path, str(error) or type(error).__name__) from None
    if found != identity:
        raise PairmillError(
            f"{path} holds features of another extractor, model or setting than its folder's manifest says",
            "remove it and run `make extract` again",
        )
    return footer, described["checksums"]


def damaged(path: Path, what: str) -> PairmillError:
    return PairmillError(f"{path} is damaged: {what}", "remove it and run `make extract` again")


class Span(NamedTuple):
    """A row group, a row's place in it, and the row's part of the n of all its rows."""

    group: int
    row: int
    start: int
    stop: int


class FeatureShard:
    """An open shard. `keys`: (rows,) bytes in order, `n`: (rows,) int32."""

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
        self._footer, self._checksums = read_footer(path, identity, bytes_wanted)
        self._place = _columns_at(self._footer)
        self._file = os.open(path, os.O_RDONLY)
        self._bytes_there = os.fstat(self._file).st_size
        self.groups = self._footer.num_row_groups
        try:
            narrow = pq.ParquetFile(path, metadata=self._footer).read(["key", "n"], use_threads=False)
            keys = narrow["key"].to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise damaged(path, str(error)) from None
        self.keys = np.array([key.encode() for key in keys], np.bytes_)
        self.n = narrow["n"].to_numpy().astype(np.int32)
        for group in range(self.groups):
            rows = self.rows_of(group)
            self._check("key", group, "\n".join(keys[rows]).encode())
            self._check("n", group, self.n[rows].astype("<i4").data)
        # Of memoryviews single numbers are had ten times as fast as of arrays.
        self._bounds = np.concatenate([[0], np.cumsum(self.n, dtype=np.int64)]).data
        tensors = [name for name, column in self.columns.items() if column.tensor]
        self._offsets = {name: self._offsets_of(name) for name in tensors}
        self._sums: dict[str, np.ndarray] = {}
        self._seen = {name: np.zeros(len(self.n), bool) for name in tensors}
        self._widths = {
            name: np.dtype(column.dtype).itemsize * int(np.prod(column.shape, dtype=np.int64))
            for name, column in self.columns.items()
        }
        self._bytes = lru_cache(maxsize=16 * len(self.columns))(self._list_bytes)

    def __len__(self) -> int:
        return len(self.n)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def rows_of(self, group: int) -> slice:
        """The rows of a row group."""
        return slice(group * ROWS_PER_GROUP, min((group + 1) * ROWS_PER_GROUP, self._footer.num_rows))

    def row(self, key: str) -> int | None:
        """Where a key stands, or None."""
        wanted = key.encode()
        at = int(np.searchsorted(self.keys, wanted))
        return at if at < len(self.keys) and self.keys[at] == wanted else None

    def span(self, row: int) -> Span:
        """Where a row's values stand among those of its row group."""
        group = row // ROWS_PER_GROUP
        first = group * ROWS_PER_GROUP
        before = self._bounds[first]
        return Span(group, row - first, self._bounds[row] - before, self._bounds[row + 1] - before)

    def size(self, name: str, span: Span) -> int:
        """Bytes of a row of a tensor."""
        column = self.columns[name]
        return column.size * (1 if column.per_image else span.stop - span.start)

    def read_tensor(self, name: str, span: Span, target: memoryview) -> None:
        """Fill `target` with the bytes of a row of a tensor, of which it has the size."""
        row = span.group * ROWS_PER_GROUP + span.row
        if os.preadv(self._file, [target], self._offsets[name][row]) != len(target):
            raise damaged(self.path, "it ends too early")
        if self._verify and not self._seen[name][row]:
            if xxhash.xxh3_64_intdigest(target) != self._sum(name, row):
                raise damaged(self.path, f"{name} of image {self.keys[row].decode()} has another checksum")
            self._seen[name][row] = True

    def content(self, name: str, span: Span) -> memoryview:
        """The bytes of a row, as numbers of its column's dtype."""
        column = self.columns[name]
        if column.tensor:
            target = memoryview(bytearray(self.size(name, span)))
            self.read_tensor(name, span, target)
            return target
        values, width = self._bytes(name, span.group), self._widths[name]
        if column.per_image:
            return values[span.row * width : (span.row + 1) * width]
        return values[span.start * width : span.stop * width]

    def advise(self, group: int, columns: Mapping[str, Column]) -> None:
        """Let the kernel read a row group's columns ahead."""
        for name in columns:
            start, end = self._extent(name, group)
            os.posix_fadvise(self._file, start, end - start, os.POSIX_FADV_WILLNEED)

    def check(self) -> None:
        """Read everything. Raises PairmillError for the first damage, and for NaN or infinity."""
        for name, column in self.columns.items():
            if not column.tensor:
                for group in range(self.groups):
                    self._finite(name, self._list_values(name, group), group * ROWS_PER_GROUP)
                continue
            self._seen[name][:] = False
            for row in range(len(self)):
                content = self.content(name, self.span(row))
                self._finite(name, np.frombuffer(content, column.stored), row)

    def _finite(self, name: str, values: np.ndarray, row: int) -> None:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise damaged(self.path, f"{name} holds NaN or infinity at or after image {self.keys[row].decode()}")

    def _list_bytes(self, name: str, group: int) -> memoryview:
        return self._list_values(name, group).view(np.uint8).data

    def _list_values(self, name: str, group: int) -> np.ndarray:
        """A row group's numbers of a column that is no tensor, one after another, as its column's dtype."""
        column = self.columns.get(name) or Column("uint64", per_image=True)  # a column of checksums
        rows = self.rows_of(group)
        count = rows.stop - rows.start if column.per_image else self._bounds[rows.stop] - self._bounds[rows.start]
        start, end = self._extent(name, group)
        size = count * column.size
        content = bytearray(min(size, end - start))
        if size > end - start or os.preadv(self._file, [content], end - size) != size:
            raise damaged(self.path, f"its column {name} is too short")
        self._check(name, group, content)
        return np.frombuffer(content, column.stored).astype(column.dtype, copy=False)

    def _check(self, name: str, group: int, content: Buffer) -> None:
        try:
            same = xxhash.xxh3_64_intdigest(content) == self._checksums[name][group]
        except (KeyError, IndexError, TypeError):
            raise damaged(self.path, f"its metadata lack the checksum of {name}") from None
        if not same:
            raise damaged(self.path, f"{name} has another checksum in the rows from {group * ROWS_PER_GROUP:,} on")

    def _sum(self, name: str, row: int) -> int:
        if name not in self._sums:
            self._sums[name] = np.concatenate(
                [self._list_values(name + CHECKSUM, group) for group in range(self.groups)]
            )
        return int(self._sums[name][row])

    def _offsets_of(self, name: str) -> memoryview:
        """Where each row's bytes begin in the file."""
        column = self.columns[name]
        sizes = (
            np.full(len(self.n), column.size, np.int64) if column.per_image else self.n.astype(np.int64) * column.size
        )
        offsets = np.empty(len(self.n), np.int64)
        for group in range(self.groups):
            rows = self.rows_of(group)
            start, end = self._extent(name, group)
            ends = end - np.cumsum((sizes[rows] + _LENGTH)[::-1])[::-1]
            offsets[rows] = ends + _LENGTH
            if len(ends) and ends[0] < start:
                raise damaged(self.path, f"its column {name} is too short")
        return offsets.data

    def _extent(self, name: str, group: int) -> tuple[int, int]:
        """Where a column chunk begins and ends."""
        if name not in self._place:
            raise damaged(self.path, f"it has no column {name}")
        chunk = self._footer.row_group(group).column(self._place[name])
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
            raise damaged(self.path, f"its column {name} is compressed: some other program wrote it")
        start, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
        if not 0 <= start <= end <= self._bytes_there:
            raise damaged(self.path, f"its column {name} lies outside of it")
        return start, end


def _columns_at(footer: pq.FileMetaData) -> dict[str, int]:
    """Column name -> its place in the row groups."""
    return {footer.schema.column(at).path.partition(".")[0]: at for at in range(footer.num_columns)}
