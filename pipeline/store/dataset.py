"""A dataset: one folder, its tables, and SQL over all of them.

pairs/              the pairs, sorted by uid          verdicts/<stage>/   why pairs fell out
pairs/quarantine/   rows that could not be read       features/<name>/    one feature row an image
images/             WebDataset shards and metadata    runs/<name>/        one training each
signals/<group>/    what rules measure
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

from pipeline.errors import PairmillError
from pipeline.store.atomic import digest
from pipeline.store.sql import open_duckdb
from pipeline.store.table import FAILED_SUFFIX, Table
from pipeline.store.views import create_views
from pipeline.store.views.features import vector_width

EMBEDDINGS = "embeddings.parquet"
"""In a run's folder: where it puts texts and images."""


class Dataset:
    """The folder that the stages fill. `root` need not exist yet."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.pairs = Table(self.root / "pairs", "ingest")
        self.quarantine = Table(self.root / "pairs" / "quarantine", "ingest")
        self.screened = Table(self.root / "verdicts" / "screen", "screen")
        self.images = Table(self.root / "images", "download")
        self.filtered = Table(self.root / "verdicts" / "filter", "filter")
        self.catalog = self.root / "catalog.duckdb"

    @property
    def chain(self) -> list[Table]:
        """The tables from `ingest` to `filter`, each made from those before it."""
        return [self.pairs, self.screened, self.images, self.filtered]

    @property
    def gaps(self) -> list[Table]:
        """Those of the chain that are not finished, but were: a finished one was made from them."""
        last = max((place for place, table in enumerate(self.chain) if table.exists), default=0)
        return [table for table in self.chain[:last] if not table.exists]

    @property
    def knows_kept(self) -> bool:
        """Whether there can be a view `kept`: without the verdicts of `screen`, what it dropped would be back."""
        return self.screened not in self.gaps

    def check_finished(self, *tables: Table) -> None:
        """Raise PairmillError that names the stage to run where one of the tables is not finished: the first."""
        for table in tables:
            table.manifest  # noqa: B018 - says which stage must run first

    def data_tables(self) -> list[Table]:
        """The finished tables that SQL's views read."""
        tables = [self.pairs, self.quarantine, self.screened, self.images, self.filtered]
        return [table for table in tables if table.exists] + [self.features(name) for name in self.extractors()]

    @property
    def judged_digest(self) -> str:
        """Of what `filter` judges, as it is now."""
        return digest([table.manifest.digest for table in (self.pairs, self.screened, self.images)])

    @property
    def is_settled(self) -> bool:
        """Whether `filter` has judged the pairs, the verdicts of `screen` and the images that there are now."""
        tables = (self.pairs, self.screened, self.images, self.filtered)
        if not all(table.exists for table in tables):
            return False
        return bool(self.filtered.manifest.info.get("settled") == self.judged_digest)

    def signals(self, group: str, made_by: str) -> Table:
        return Table(self.root / "signals" / group, made_by)

    def features(self, extractor: str) -> Table:
        return Table(self.root / "features" / extractor, "extract")

    def feature_files(self, extractor: str) -> list[Path]:
        """The files of a finished extractor's rows, in shard order."""
        return [path for path in self.features(extractor).paths(".parquet") if not path.name.endswith(FAILED_SUFFIX)]

    def run(self, name: str) -> Table:
        return Table(self.root / "runs" / name, "train")

    def extractors(self) -> list[str]:
        """Names of the extractors whose features are all there."""
        return sorted(path.parent.name for path in self.root.glob("features/*/manifest.json"))

    def runs(self) -> list[str]:
        """Names of the finished trainings."""
        return sorted(path.parent.name for path in self.root.glob("runs/*/manifest.json"))

    def embeddings(self) -> dict[str, Path]:
        """The files of the runs whose texts and images have been embedded, by the run's name.

        A file that is cut off is none: `embed` makes it anew.
        """
        paths = sorted(self.root.glob(f"runs/*/{EMBEDDINGS}"))
        return {path.parent.name: path for path in paths if vector_width(path) is not None}

    def files_of_runs(self) -> list[Path]:
        """What the catalog shows of the trainings."""
        names = ("manifest.json", "metrics.parquet", "evaluation.json", EMBEDDINGS)
        return sorted(path for name in names for path in self.root.glob(f"runs/*/{name}"))

    def kept_digest(self, splits: Sequence[str], memory_limit: str = "4GB") -> str:
        """A digest of the kept pairs of these splits and of their images: what a model sees of all the stages' work.

        Raises PairmillError where one of the stages up to `filter` has not finished.
        """
        self.check_finished(*self.chain)
        with self.connect(memory_limit) as connection:
            query = (
                "SELECT count(*), bit_xor(md5_number(uid || key || split)) FROM kept WHERE split IN (FROM unnest(?))"
            )
            return digest(connection.execute(query, [list(splits)]).fetchall()[0])

    @contextmanager
    def connect(
        self, memory_limit: str = "4GB", threads: int | None = None, images: bool = True
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """An in-memory DuckDB with this dataset's views (`pipeline.store.views`); large work spills to disk.

        Without `images`, the views that read the images' metadata are left out: it may be damaged or about to go.
        Raises PairmillError where there are no pairs, or their verdicts by `screen` are missing below later ones.
        """
        self.check_finished(self.pairs, *([] if self.knows_kept else [self.screened]))
        connection = open_duckdb()
        try:
            # Processes that torchrun started have one each.
            spill = self.root / f".tmp{os.environ.get('RANK', '')}"
            connection.execute("SET memory_limit = ?", [memory_limit])
            connection.execute("SET temp_directory = ?", [str(spill)])
            if threads:
                connection.execute("SET threads = ?", [threads])
            create_views(connection, self, images)
            yield connection
        except duckdb.OutOfMemoryException as error:
            raise PairmillError(
                f"DuckDB ran out of memory or spill space: {error}", "raise [engine] memory_limit"
            ) from error
        finally:
            connection.close()
