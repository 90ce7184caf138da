"""Feature shards: one Parquet file an image shard, one row an image, tensors as raw bytes in uncompressed columns.

A tensor column `<name>` is a large-binary of the tensor's bytes in C order; its dtype and trailing shape stand in the
identity (`columns`), so that a reader needs nothing but the manifest. The first dimension (boxes, cells, patches) is
`n` and differs by image. Small columns (`boxes`, `classes`, ...) are lists, so that SQL can read them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PairmillError
from pipeline.store.atomic import replacing
from pipeline.store.table import Table

ROWS_PER_GROUP = 64


@dataclass(frozen=True)
class Column:
    """A tensor column: rows are (n, *shape) arrays of `dtype`. `tensor`: stored as bytes; else as an Arrow list."""

    dtype: str
    shape: tuple[int, ...] = ()
    tensor: bool = False


@dataclass(frozen=True)
class ImageFeatures:
    """The features of one image. `key` is the image's; `arrays` maps column names to (n, ...) arrays."""

    key: str
    n: int
    arrays: Mapping[str, np.ndarray]

    def __getitem__(self, column: str) -> np.ndarray:
        return self.arrays[column]


def write_features(path: Path, rows: Iterable[ImageFeatures], columns: Mapping[str, Column]) -> int:
    """Write one shard atomically, in key order; returns its rows. Raises ValueError for NaN or a wrong shape."""
    ordered = sorted(rows, key=lambda row: row.key)
    fields = {
        "key": pa.array([row.key for row in ordered], pa.string()),
        "n": pa.array([row.n for row in ordered], pa.int32()),
    }
    for name, column in columns.items():
        with np.errstate(over="ignore"):  # what overflows is refused below
            arrays = [np.ascontiguousarray(row[name], dtype=column.dtype) for row in ordered]
        for row, array in zip(ordered, arrays, strict=True):
            if array.shape != (row.n, *column.shape):
                raise ValueError(f"{name} of image {row.key} has shape {array.shape}, not {(row.n, *column.shape)}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} of image {row.key} holds NaN or infinity")
        if column.tensor:
            fields[name] = pa.array([array.tobytes() for array in arrays], pa.large_binary())
        else:
            kind = pa.from_numpy_dtype(np.dtype(column.dtype))
            flat = pa.array(np.concatenate([array.reshape(-1) for array in arrays]) if arrays else [], kind)
            offsets = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int32)
            fields[name] = pa.ListArray.from_arrays(pa.array(offsets), flat)
    tensors = [name for name, column in columns.items() if column.tensor]
    with replacing(path) as partial:
        pq.write_table(
            pa.table(fields),
            partial,
            row_group_size=ROWS_PER_GROUP,
            compression={name: "none" if name in tensors else "zstd" for name in fields},
            use_dictionary=False,
            write_statistics=[name for name in fields if name not in tensors],
            store_schema=True,
        )
    return len(ordered)


class FeatureStore:
    """The read side of one extractor's table: random access by image key, over memory-mapped Parquet.

    `identity` says what made the features (kind, model, sha256 of the weights, settings, columns); `len` is the number
    of images. Arrays returned are read-only views where the column is stored as bytes.
    """

    def __init__(self, table: Table, cached_groups: int = 64) -> None:
        manifest = table.manifest
        self.identity: dict[str, Any] = manifest.info["identity"]
        self.columns = {
            name: Column(c["dtype"], tuple(c["shape"]), c["tensor"]) for name, c in self.identity["columns"].items()
        }
        self._files = []
        self._place: dict[str, tuple[int, int, int]] = {}
        for path in table.paths(".parquet"):
            try:
                file = pq.ParquetFile(path, memory_map=True)
                keys = file.read(columns=["key"])["key"].to_pylist()
            except (OSError, pa.ArrowInvalid) as error:
                raise PairmillError(
                    f"{path} cannot be read: {error}", "remove it and run `make extract` again"
                ) from error
            self._files.append(file)
            for position, key in enumerate(keys):
                self._place[key] = (len(self._files) - 1, position // ROWS_PER_GROUP, position % ROWS_PER_GROUP)
        self._group = lru_cache(maxsize=cached_groups)(self._read_group)

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    @property
    def keys(self) -> list[str]:
        return list(self._place)

    def place(self, key: str) -> tuple[int, int]:
        """(shard, row group) of an image: what a reader that wants few seeks groups its samples by."""
        shard, group, _ = self._place[key]
        return shard, group

    def __getitem__(self, key: str) -> ImageFeatures:
        shard, group, row = self._place[key]
        table = self._group(shard, group)
        n = table["n"][row].as_py()
        arrays = {}
        for name, column in self.columns.items():
            value = table[name][row]
            if column.tensor:
                array = np.frombuffer(value.as_buffer(), dtype=column.dtype)
            else:
                array = value.values.to_numpy(zero_copy_only=False)
            arrays[name] = array.reshape(n, *column.shape)
        return ImageFeatures(key, n, arrays)

    def _read_group(self, shard: int, group: int) -> pa.Table:
        return self._files[shard].read_row_group(group).combine_chunks()
