"""What an extractor is to do: over the whole dataset, and in one shard. Light to import, and to send to a worker."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.recipe import Extractor as Section
from pipeline.store.table import ShardFile
from pipeline.weights import Weights

IMPORTED = "imported"
"""In the manifest's info of features that came from other programs."""
IMPORTED_MARK = ".imported"
"""A file in such a table's folder, from its beginning on."""
FAILED = pa.schema([("key", pa.string()), ("cause", pa.string()), ("detail", pa.string())])
"""A row for each image that has no features."""


@dataclass(frozen=True)
class Plan:
    """One extractor's part of the work: `folder` is its table's."""

    section: Section
    weights: Weights
    folder: Path

    def settings(self) -> dict[str, Any]:
        """Those of the section that the features hang on."""
        return self.section.model_dump(mode="json", exclude={"batch_size"})


@dataclass(frozen=True)
class Task:
    """What an extractor is to make of a shard: all of it, or what `old`, the stem of the files it has, lacks."""

    key: str
    old: str | None = None

    def stem(self, shard: str) -> str:
        """Of the files to be made. They have a name of their own, so that the old ones stand until these do."""
        if self.old is None:
            return shard
        return f"{shard}-{int(self.old.removeprefix(shard).removeprefix('-') or 0) + 1}"


@dataclass(frozen=True)
class Images:
    """Where the pictures are, and which of them are wanted: a Parquet of (shard, key), sorted."""

    folder: Path
    tars: Mapping[str, ShardFile]
    wanted: Path

    def keys(self, shard: str) -> list[str]:
        """The wanted keys of a shard, in order."""
        return pq.read_table(self.wanted, columns=["key"], filters=[("shard", "=", shard)])["key"].to_pylist()
