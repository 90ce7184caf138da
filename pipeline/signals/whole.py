"""Tables of signals that look at the whole corpus at once: one Parquet file, made by one process."""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.atomic import replacing
from pipeline.store.table import Shard, Table


def write_whole(table: Table, key: str, rows: Callable[[], pa.Table], info: Mapping[str, Any] | None = None) -> None:
    """Bring a table of one file up to date under `key`; `rows` makes its content, `info` is for its manifest."""
    if table.is_current(key):
        return
    with table.writing(key, {"all": key}) as writing:
        if writing.todo:
            made = rows()
            with replacing(table.folder / "all.parquet") as path:
                pq.write_table(made, path, compression="zstd")
            writing.add(Shard.of(table.folder, "all", key, ["all.parquet"], {"rows": made.num_rows}))
        writing.commit(dict(info or {}))
