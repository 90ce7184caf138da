"""What each stage cost: seconds, bytes of the images that were had, bytes on the disk; and when it was made."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import duckdb

from pipeline.job import UP_TO_DATE
from pipeline.store.dataset import Dataset
from pipeline.store.table import Table


@dataclass(frozen=True)
class Cost:
    """One stage. None: it keeps no such thing."""

    stage: str
    seconds: float | None
    downloaded: int | None
    stored: int | None
    made: str | None


def costs(dataset: Dataset, connection: duckdb.DuckDBPyConnection, seconds: Mapping[str, float]) -> list[Cost]:
    """The stages that have run, in their order; `seconds` is the summary's."""
    tables = _tables(dataset)
    downloaded = None
    if dataset.images.exists:
        ((downloaded,),) = connection.execute("SELECT sum(bytes) FROM images WHERE status = 'ok'").fetchall()
    return [
        Cost(
            stage,
            took,
            int(downloaded or 0) if stage == "download" else None,
            _stored(tables[stage]) if stage in tables else None,
            _made(dataset, stage),
        )
        for stage, took in seconds.items()
    ]


def _tables(dataset: Dataset) -> dict[str, list[Table]]:
    """Stage -> its finished tables."""
    tables = {
        "ingest": [dataset.pairs, dataset.quarantine],
        "screen": [dataset.screened],
        "download": [dataset.images],
        "filter": [dataset.filtered],
        "extract": [dataset.features(name) for name in dataset.extractors()],
        "train": [dataset.run(name) for name in dataset.runs()],
    }
    for path in sorted(dataset.root.glob("signals/*/manifest.json")):
        table = dataset.signals(path.parent.name, "screen")
        tables.setdefault(table.manifest.stage, []).append(table)
    return {stage: there for stage, own in tables.items() if (there := [table for table in own if table.exists])}


def _stored(tables: Iterable[Table]) -> int:
    return sum(file.bytes for table in tables for shard in table.manifest.shards for file in shard.files)


def _made(dataset: Dataset, stage: str) -> str | None:
    """When the stage last made something, by its log: UTC, to the minute."""
    path = dataset.root / "logs" / f"{stage}.jsonl"
    made = None
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            event = json.loads(line)
            if event["event"] == "end" and event["said"] != UP_TO_DATE:
                made = datetime.fromtimestamp(event["time"], UTC).strftime("%Y-%m-%d %H:%M")
        except (ValueError, KeyError, TypeError, OSError):  # a line that was cut short
            continue
    return made
