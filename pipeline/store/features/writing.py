"""Writing a shard of features: one Parquet file, row group by row group, whole or not at all.

Every column is uncompressed and PLAIN, in one page a row group, and nothing in it is null: its values, one after the
other, are then the last bytes of its column chunk, and `reading` copies them from the file straight into a batch. Each
tensor has a checksum a row (xxh3, 64 bits) in a column of its own; for each other column the file's metadata hold
one a row group. The footer has its checksum behind it, where Parquet lets a signature stand and readers take no notice:
pyarrow aborts the whole process over some footers with a wrong bit.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from typing_extensions import Buffer

from pipeline.store.atomic import replacing
from pipeline.store.features.columns import (
    CHECKSUM,
    SCALES,
    Column,
    ImageFeatures,
    NotFiniteError,
    identity_digest,
    is_key,
    quantised,
    stored_columns,
)

ROWS_PER_GROUP = 64
METADATA = b"pairmill"
LENGTH_BYTES = 4
"""Before each value of a binary column: its length."""
TAIL = 8
"""Bytes at the end of a Parquet file: the footer's length, and its magic."""
_WHOLE_GROUP = 1 << 30
"""Bytes of a page: a row group's column is to be one."""


class FeatureWriter:
    """Writes rows, in ascending order of key, to `path`, which appears when the block ends without an error.

    `identity`: what made the features; a reader refuses a file of another.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column], identity: Mapping[str, Any]) -> None:
        self._path, self._columns = path, dict(columns)
        self._stored = stored_columns(columns)
        self._identity = identity_digest(identity)
        self._tensors = [name for name, column in self._stored.items() if column.tensor]
        self._schema = pa.schema(
            [
                pa.field("key", pa.string(), nullable=False),
                pa.field("n", pa.int32(), nullable=False),
                *(pa.field(name, column.field, nullable=False) for name, column in self._stored.items()),
                *(pa.field(name + CHECKSUM, pa.uint64(), nullable=False) for name in self._tensors),
            ]
        )
        self._group: list[tuple[str, int, dict[str, np.ndarray]]] = []
        self._checksums: dict[str, list[int]] = {}
        self._key_bytes: list[int] = []
        self._last: str | None = None
        self.rows = 0

    def __enter__(self) -> "FeatureWriter":
        with ExitStack() as stack:
            self._partial = stack.enter_context(replacing(self._path))
            self._file = stack.enter_context(
                pq.ParquetWriter(
                    self._partial,
                    self._schema,
                    compression="none",
                    use_dictionary=False,
                    write_statistics=["key", "n"],
                    data_page_size=_WHOLE_GROUP,
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:  # an error of the last row group, as on a full disk, leaves no file either
            if self._group:
                self._flush()
            described = {"identity": self._identity, "checksums": self._checksums, "key_bytes": self._key_bytes}
            self._file.add_key_value_metadata({METADATA: json.dumps(described).encode()})
            self._file.close()
            _seal(self._partial)

    def add(self, row: ImageFeatures) -> None:
        """Add a row. Raises ValueError for a key out of order or a wrong shape, NotFiniteError for NaN and infinity;
        the row is then left out, and the writer goes on."""
        if not is_key(row.key):
            raise ValueError(f"{row.key!r} is no key: it could not be a file's name")
        if self._last is not None and row.key <= self._last:
            raise ValueError(f"image {row.key} comes after {self._last}: rows are written in order of key")
        arrays: dict[str, np.ndarray] = {}
        for name, column in self._columns.items():
            given = np.asarray(row[name])
            if given.shape != column.row_shape(row.n):
                raise ValueError(f"{name} of image {row.key} has shape {given.shape}, not {column.row_shape(row.n)}")
            if column.quantised:
                if not np.isfinite(given).all():
                    raise NotFiniteError(f"{name} of image {row.key} holds NaN or infinity")
                arrays[name], arrays[name + SCALES] = quantised(given)
            else:
                arrays[name] = _converted(given, column, f"{name} of image {row.key}")
        self._group.append((row.key, row.n, arrays))
        self._last = row.key
        self.rows += 1
        if len(self._group) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        keys = [key for key, _, _ in self._group]
        n = np.array([n for _, n, _ in self._group], "<i4")
        fields: list[pa.Array] = [pa.array(keys, pa.string()), pa.array(n)]
        self._note("key", b"".join(key.encode() for key in keys))
        self._key_bytes.append(sum(len(key.encode()) + LENGTH_BYTES for key in keys))
        self._note("n", n.data)
        checksums: list[pa.Array] = []
        for name, column in self._stored.items():
            rows = [arrays[name] for _, _, arrays in self._group]
            if column.tensor:
                contents = [row.reshape(-1).view(np.uint8).data for row in rows]
                fields.append(pa.array(contents, pa.large_binary()))
                sums = np.array([xxhash.xxh3_64_intdigest(content) for content in contents], "<u8")
                self._note(name + CHECKSUM, sums.data)
                checksums.append(pa.array(sums))
                continue
            flat = np.concatenate([row.reshape(-1) for row in rows])
            self._note(name, flat.astype(column.stored).data)
            values = pa.array(flat)
            if column.per_image:
                fields.append(pa.FixedSizeListArray.from_arrays(values, type=column.field))
            else:
                offsets = np.cumsum([0, *(row.size for row in rows)], dtype=np.int32)
                fields.append(pa.ListArray.from_arrays(pa.array(offsets), values, type=column.field))
        self._file.write_table(
            pa.Table.from_arrays([*fields, *checksums], schema=self._schema), row_group_size=ROWS_PER_GROUP
        )
        self._group = []

    def _note(self, name: str, content: Buffer) -> None:
        self._checksums.setdefault(name, []).append(xxhash.xxh3_64_intdigest(content))


def footer_checksum(footer: bytes) -> bytes:
    """The eight bytes behind a footer."""
    return xxhash.xxh3_64_digest(footer)


def _seal(path: Path) -> None:
    """Put the footer's checksum behind it, as a part of it."""
    with open(path, "r+b") as file:
        file.seek(-TAIL, os.SEEK_END)
        length, magic = struct.unpack("<I4s", file.read())
        file.seek(-TAIL - length, os.SEEK_END)
        footer = file.read(length)
        file.seek(-TAIL, os.SEEK_END)
        checksum = footer_checksum(footer)
        file.write(checksum + struct.pack("<I4s", length + len(checksum), magic))


def write_features(
    path: Path,
    rows: Iterable[ImageFeatures],
    columns: Mapping[str, Column],
    identity: Mapping[str, Any],
) -> int:
    """Write one shard of rows in any order; returns how many. Raises ValueError as `FeatureWriter.add` does."""
    with FeatureWriter(path, columns, identity) as writer:
        for row in sorted(rows, key=lambda row: row.key):
            writer.add(row)
    return writer.rows


def _converted(given: np.ndarray, column: Column, what: str) -> np.ndarray:
    """The array as its column's dtype, in C order."""
    wanted = np.dtype(column.dtype).newbyteorder("<")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        array = np.ascontiguousarray(given, dtype=wanted)
    if wanted.kind == "f" and not np.isfinite(array).all():
        raise NotFiniteError(f"{what} holds NaN, infinity or numbers too large for {column.dtype}")
    if wanted.kind in "iu" and given.dtype != wanted and not np.array_equal(array, given):
        raise ValueError(f"{what} holds numbers that are no {column.dtype}")
    return array
