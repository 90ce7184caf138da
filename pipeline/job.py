"""What a stage is given: the recipe, the dataset, the engine, and a log beside the output."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.engine import Engine
from pipeline.ranks import rank
from pipeline.recipe import Recipe
from pipeline.store.atomic import digest, write_json
from pipeline.store.dataset import Dataset
from pipeline.store.table import Table

UP_TO_DATE = "up to date"


@dataclass
class Job:
    """One call of one stage. A stage is a function `run(job) -> str`: its one-line summary, or `UP_TO_DATE`."""

    stage: str
    recipe: Recipe
    dataset: Dataset
    engine: Engine
    only: frozenset[str] = field(default_factory=frozenset)
    """Names of the extractors or runs that were asked for; empty for all of the recipe."""

    def key(self, version: int, *parts: BaseModel | Table | str | float | dict[str, Any] | list[Any]) -> str:
        """The stage's key: its code version, its own recipe sections and the digests of the tables that it reads."""
        return digest(self.stage, version, [_part(part) for part in parts])

    def log(self, event: str, **values: Any) -> None:
        """Append an event to `logs/<stage>.jsonl`."""
        if rank():
            return
        folder = self.dataset.root / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{self.stage}.jsonl", "a") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "event": event, **values}, default=str) + "\n")

    def selected(self, names: list[str]) -> list[str]:
        """Those of the recipe's names that this call is about."""
        return [name for name in names if not self.only or name in self.only]


def _part(part: Any) -> Any:
    if isinstance(part, BaseModel):
        return part.model_dump(mode="json")
    if isinstance(part, Table):
        part.check_whole()
        return part.manifest.digest
    return part


def is_stamped(path: Path, key: str) -> bool:
    """Whether a single-file product (catalog, report) is there and was made under `key`."""
    try:
        return path.exists() and bool(json.loads(_stamp_of(path).read_text())["key"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def stamped_seconds(path: Path) -> float | None:
    """How long a single-file product took, where it has its stamp."""
    try:
        return float(json.loads(_stamp_of(path).read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stamp(path: Path, key: str, seconds: float) -> None:
    write_json(_stamp_of(path), {"key": key, "seconds": round(seconds, 3)})


def _stamp_of(path: Path) -> Path:
    return path.with_name(path.name + ".key.json")
