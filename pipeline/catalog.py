"""Stage `catalog`: `catalog.duckdb`, views and macros over the dataset's Parquet files; nothing is copied."""

import errno
import time

import duckdb
from filelock import FileLock

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job, is_stamped, stamp
from pipeline.store.atomic import digest, file_sha256, replacing
from pipeline.store.dataset import Dataset
from pipeline.store.views import create_catalog

VERSION = 10
OLDEST_READER = "v1.4.0"
"""The DuckDB from which on a shell of the user's own can open the catalog."""


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
        [(str(path), path.stat().st_mtime_ns) for path in dataset.files_of_runs()],
    )
    if _is_current(dataset, key):
        return None
    # Of the stages one at a time works in a dataset; but anybody may ask for the catalog at any time.
    try:
        with FileLock(dataset.catalog.with_name(".catalog.lock")):
            return None if _is_current(dataset, key) else _make(dataset, key)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        raise PairmillError(
            f"{dataset.root}: the catalog is damaged, or of other tables or another place, and cannot be written anew",
            "make the folder writable, or copy the dataset",
        ) from None


def _make(dataset: Dataset, key: str) -> list[str]:
    started = time.monotonic()
    with replacing(dataset.catalog) as path:
        path.unlink(missing_ok=True)
        with duckdb.connect(str(path), config={"storage_compatibility_version": OLDEST_READER}) as connection:
            create_catalog(connection, Dataset(dataset.root.resolve()))
            views = connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1").fetchall()
    stamp(dataset.catalog, _bound(dataset, key), time.monotonic() - started)
    return [name for (name,) in views]


def _is_current(dataset: Dataset, key: str) -> bool:
    return dataset.catalog.is_file() and is_stamped(dataset.catalog, _bound(dataset, key))


def _bound(dataset: Dataset, key: str) -> str:
    """The key with the file's own digest, a millisecond's work: a catalog that was damaged since has another."""
    return digest(key, file_sha256(dataset.catalog))
