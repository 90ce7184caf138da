"""The catalog, brought up to date while the app is open: stages may run meanwhile."""

import asyncio
import time

import duckdb

from pipeline.catalog import refresh
from pipeline.errors import PairmillError
from pipeline.store.dataset import Dataset

UNJUDGED = "filter has not judged what screen lets through now: run make filter"
_SECONDS = 2.0
"""For so long nobody looks again."""


class Current:
    """Of one dataset, for all pages. `notice`: why the catalog is an older one, or ""; `unjudged`: UNJUDGED or ""."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._looking = asyncio.Lock()
        self._looked: float | None = None
        self.notice = self.unjudged = ""

    async def bring(self) -> None:
        """Make the catalog anew where tables have changed; while that cannot be, the one there is goes on to answer."""
        async with self._looking:
            if self._looked is None or time.monotonic() - self._looked >= _SECONDS:
                await asyncio.to_thread(self._look)
                self._looked = time.monotonic()

    def _look(self) -> None:
        try:
            refresh(self._dataset)
            lags = self._dataset.filtered.exists and not self._dataset.is_settled
        except (PairmillError, OSError, duckdb.Error) as error:  # a stage has taken away what it makes anew
            self.notice = f"A stage is under way, or has left off: shown is what was there before. {error}"
        else:
            self.notice, self.unjudged = "", UNJUDGED if lags else ""
