"""Stage `catalog`: `catalog.duckdb`, views over the dataset's Parquet files; nothing is copied."""

import time

import duckdb

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job, is_stamped, stamp
from pipeline.store.atomic import digest, replacing
from pipeline.store.dataset import Dataset
from pipeline.store.views import create_views

VERSION = 3
MAX_ROWS = 200


def run(job: Job) -> str:
    views = refresh(job.dataset)
    return UP_TO_DATE if views is None else f"{len(views)} views: {', '.join(views)}"


def refresh(dataset: Dataset) -> list[str] | None:
    """Make the catalog if the tables have changed since; returns its views' names, or None if it is up to date."""
    dataset.pairs.manifest  # noqa: B018 - says that `ingest` must run first
    for table in dataset.data_tables():
        table.check_whole()
    key = digest(
        "catalog",
        VERSION,
        str(dataset.root.resolve()),
        [table.manifest.digest for table in dataset.data_tables()],
        [(name, path.stat().st_mtime_ns) for name, path in dataset.embeddings().items()],
    )
    if is_stamped(dataset.catalog, key):
        return None
    started = time.monotonic()
    with replacing(dataset.catalog) as path:
        path.unlink(missing_ok=True)
        with duckdb.connect(str(path)) as connection:
            create_views(connection, Dataset(dataset.root.resolve()))
            views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1").fetchall()
    stamp(dataset.catalog, key, time.monotonic() - started)
    return [name for (name,) in views]


def query(dataset: Dataset, sql: str) -> None:
    """Print a query's rows as a table, from a catalog that is in step with the tables and opened read-only.

    Raises PairmillError with DuckDB's own words where the query is wrong.
    """
    refresh(dataset)
    try:
        with duckdb.connect(str(dataset.catalog), read_only=True) as connection:
            relation = connection.sql(sql)
            if relation is not None:
                relation.show(max_rows=MAX_ROWS, max_width=200)
    except duckdb.Error as error:
        raise PairmillError(str(error)) from None
