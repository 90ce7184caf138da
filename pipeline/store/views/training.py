"""The views over trainings and what they were found to be worth."""

import json
from typing import TYPE_CHECKING, Any

import duckdb

from pipeline.errors import PairmillError
from pipeline.evaluations import FILE, read
from pipeline.store.sql import double, literal, parquet

if TYPE_CHECKING:
    from pipeline.store.dataset import Dataset


_TYPES = {int: "BIGINT", float: "DOUBLE"}


def create_training_views(connection: duckdb.DuckDBPyConnection, dataset: "Dataset") -> None:
    """`runs`, `metrics` and `evaluations`."""
    runs, metrics, evaluations = [], [], []
    for name in dataset.runs():
        table = dataset.run(name)
        try:
            manifest = table.manifest
        except PairmillError:  # `train` makes it again
            continue
        info = manifest.info
        features = (_read(table.folder / "recipe.json") or {}).get("features")
        numbers = [info.get(key) for key in ("steps", "parameters", "loss_first", "loss_last")]
        shown = [
            "NULL" if value is None else f"{literal(value)}::{_TYPES[type(value)]}"
            for value in [*numbers, manifest.seconds]
        ]
        runs.append(f"({literal(name)}, {literal(features or '')}, {', '.join(shown)})")
        path = table.folder / "metrics.parquet"
        if path.exists():
            metrics.append(f"SELECT {literal(name)} AS run, step, name, value FROM {parquet([path])}")
        evaluation = read(table.folder / FILE)
        for task, found in evaluation.model_dump().items() if evaluation else ():
            if isinstance(found, dict):
                evaluations += [
                    f"({literal(name)}, {literal(task)}, {literal(metric)}, {double(value)})"
                    for metric, value in found.items()
                ]
    named = {
        "runs": ("run, features, steps, parameters, loss_first, loss_last, seconds", runs),
        "evaluations": ("run, task, metric, value", evaluations),
    }
    for view, (columns, rows) in named.items():
        if rows:
            connection.execute(f"CREATE OR REPLACE VIEW {view} AS FROM (VALUES {', '.join(rows)}) AS t({columns})")
    if metrics:
        connection.execute(f"CREATE OR REPLACE VIEW metrics AS {' UNION ALL '.join(metrics)}")


def _read(path: Any) -> dict[str, Any] | None:
    """None where the file is missing or broken: whoever wrote it writes it anew."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
