"""Which images a reader is to yield: those of kept pairs, of a condition, of a list."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import duckdb
import numpy as np

from pipeline.errors import PairmillError
from pipeline.store.dataset import Dataset
from pipeline.store.sql import condition

QUERY_MEMORY = "512MB"
"""DuckDB's, while it looks up which images are kept."""


def wanted_keys(dataset: Dataset, where: str | None, keys: Iterable[str] | None) -> np.ndarray | None:
    """The sorted keys, as bytes, or None for all. `where`: SQL over the view `kept`."""
    wanted = None if keys is None else np.unique(np.array([key.encode() for key in keys], np.bytes_))
    if where is not None and dataset.filtered.exists and dataset.images.exists:
        with dataset.connect(QUERY_MEMORY) as connection, _saying(where):
            connection.execute("SET enable_progress_bar = false")
            found = connection.sql(f"SELECT DISTINCT key FROM kept WHERE {condition(where)} ORDER BY key")
            parts = [np.array(part["key"].to_pylist(), np.bytes_) for part in found.to_arrow_reader(100_000)]
        kept = np.concatenate([np.array([], np.bytes_), *parts])
        wanted = kept if wanted is None else np.intersect1d(wanted, kept)
    elif where not in (None, "true"):
        raise PairmillError(f"{dataset.root} has no verdicts to ask: {where}", "run `make filter` first")
    return wanted


@contextmanager
def _saying(where: str) -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        said = str(error).splitlines()[0]
        raise PairmillError(f"where = {where!r}: {said}", "it is SQL over the view `kept`") from None


def among(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(keys,) bool: which of them are in `wanted`, which is sorted."""
    at = np.searchsorted(wanted, keys)
    found: np.ndarray = at < len(wanted)
    found[found] = wanted[at[found]] == keys[found]
    return found
