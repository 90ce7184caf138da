"""Rows that come a few at a time, written as one Parquet file in large row groups."""

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_GROUP = 122_880


class RowGroups:
    """A Parquet file under way. Its bytes depend on the rows alone, not on how they were parted over calls of `add`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._schema = schema
        self._pending = schema.empty_table()
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", store_schema=False)

    def add(self, table: pa.Table) -> None:
        self.rows += len(table)
        self._pending = pa.concat_tables([self._pending, table.select(self._schema.names).cast(self._schema)])
        while len(self._pending) >= ROWS_PER_GROUP:
            self._write(ROWS_PER_GROUP)

    def _write(self, rows: int) -> None:
        group = self._pending.slice(0, rows).combine_chunks()  # since pages end where chunks end
        self._writer.write_table(group, row_group_size=ROWS_PER_GROUP)
        self._pending = self._pending.slice(rows)

    def __enter__(self) -> "RowGroups":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and len(self._pending):
                self._write(len(self._pending))
        finally:
            self._writer.close()
