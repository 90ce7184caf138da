"""Stage `catalog`: `catalog.duckdb`, views over the dataset's Parquet files; nothing is copied."""

import time
from pathlib import Path

import duckdb

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job, is_stamped, stamp
from pipeline.store.atomic import replacing
from pipeline.store.dataset import Dataset
from pipeline.store.views import create_views

VERSION = 1
MAX_ROWS = 200


def run(job: Job) -> str:
    dataset = job.dataset
    tables = [dataset.pairs, dataset.quarantine, dataset.screened, dataset.images, dataset.filtered]
    dataset.pairs.manifest  # noqa: B018 - says that `ingest` must run first
    key = job.key(VERSION, str(dataset.root.resolve()), *(table for table in tables if table.exists))
    if is_stamped(dataset.catalog, key):
        return UP_TO_DATE
    started = time.monotonic()
    with replacing(dataset.catalog) as path:
        path.unlink(missing_ok=True)
        with duckdb.connect(str(path)) as connection:
            create_views(connection, Dataset(dataset.root.resolve()))
            views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1").fetchall()
    stamp(dataset.catalog, key, time.monotonic() - started)
    return f"{len(views)} views: {', '.join(name for (name,) in views)}"


def query(catalog: Path, sql: str) -> None:
    """Print a query's rows as a table. The catalog is opened read-only; DuckDB's own words where the query is wrong."""
    if not catalog.exists():
        raise PairmillError(f"{catalog} is not there yet", "run `make catalog` first")
    try:
        with duckdb.connect(str(catalog), read_only=True) as connection:
            relation = connection.sql(sql)
            if relation is not None:
                relation.show(max_rows=MAX_ROWS, max_width=200)
    except duckdb.Error as error:
        raise PairmillError(str(error)) from None
