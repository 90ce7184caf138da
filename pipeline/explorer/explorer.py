"""What every page is given: one dataset, its pictures, and SQL over it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.explorer.current import Current
from pipeline.explorer.querying import ROWS, SECONDS, Answer, Querying, View
from pipeline.recipe import Recipe
from pipeline.store.dataset import Dataset
from pipeline.store.pictures import Pictures
from pipeline.store.table import MANIFEST

Encode = Callable[[str, str], list[float]]
"""A run's name and a text -> where the run puts the text, as in its embeddings. Blocks: call it in a thread."""


class Explorer:
    """Shared by all pages and users. `recipe`: the one that was named at the start, if any."""

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe | None = None,
        recipe_path: Path | None = None,
        encode: Encode | None = None,
    ) -> None:
        self.dataset, self.recipe, self.recipe_path, self.encode = dataset, recipe, recipe_path, encode
        self.querying, self.current = Querying(dataset), Current(dataset)
        self._pictures: tuple[int, Pictures] | None = None

    async def ask(
        self, sql: str, parameters: Sequence[object] = (), rows: int = ROWS, seconds: float = SECONDS
    ) -> Answer:
        """One SELECT's rows as Python values; at most `rows` of them. Raises PairmillError in DuckDB's words."""
        return await self.querying.ask(sql, parameters, rows, seconds)

    async def show(self, sql: str, who: str, rows: int = ROWS, seconds: float = SECONDS) -> Answer:
        """As `ask`, for what a user has typed: every value as DuckDB writes it, cut where it is long.

        `who`: the browser (`visitors`), which has few turns at once.
        """
        return await self.querying.show(sql, rows, seconds, who)

    async def arrays(
        self, sql: str, parameters: Sequence[object] = (), seconds: float = SECONDS
    ) -> dict[str, np.ndarray]:
        """One SELECT's columns, each (rows,), all rows; a masked array where values are NULL."""
        return await self.querying.arrays(sql, parameters, seconds)

    async def views(self) -> dict[str, View]:
        """The catalog's views, by name."""
        return await self.querying.views()

    @property
    def pictures(self) -> Pictures:
        """The dataset's pictures as they are now: they may be downloaded anew while the app runs."""
        manifest = self.dataset.images.folder / MANIFEST
        state = manifest.stat().st_mtime_ns if manifest.exists() else 0
        if self._pictures is None or self._pictures[0] != state:
            self._pictures = state, Pictures(self.dataset.images)
        return self._pictures[1]
