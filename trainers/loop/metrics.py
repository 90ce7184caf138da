"""The curves of a training: every scalar of every step, kept as (step, name, value) rows."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.atomic import replacing

EDGE = 0.05
"""Which part of the steps, at the start and at the end, `edges` averages over."""


class Metrics:
    """Rows in the order in which they were added."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, float]] = []
        self._on_disk = 0

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.rows += [(step, name, float(value)) for name, value in values.items()]

    def append_new(self, path: Path) -> None:
        """Add the rows that are not there yet to a file of JSON lines; after `restore`, write it anew."""
        lines = (json.dumps(row) + "\n" for row in self.rows[self._on_disk :])
        if self._on_disk:
            with open(path, "a") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
        else:
            with replacing(path) as partial, open(partial, "w") as file:
                file.writelines(lines)
        self._on_disk = len(self.rows)

    def restore(self, path: Path, before: int) -> None:
        """Take the rows of steps before `before` from a file of JSON lines."""
        self.rows = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                step, name, value = json.loads(line)
            except ValueError:
                break  # the line that was being written when the process died
            if step < before:
                self.rows.append((step, name, value))
        self._on_disk = 0

    def write(self, path: Path) -> None:
        """As Parquet: columns step, name, value."""
        steps, names, values = zip(*self.rows, strict=True) if self.rows else ((), (), ())
        table = pa.table(
            {
                "step": pa.array(steps, pa.int64()),
                "name": pa.array(names, pa.string()),
                "value": pa.array(values, pa.float64()),
            }
        )
        with replacing(path) as partial:
            pq.write_table(table, partial, compression="zstd")

    def edges(self, steps: int, weights: Mapping[str, float]) -> tuple[float, float]:
        """Mean loss over the first and over the last 5 % of the steps.

        Each objective is averaged by itself and the means are added by weight, over the objectives that both ends have
        seen: where a step draws one objective, the two ends are comparable whatever was drawn. Ends that have seen none
        in common are made wider.
        """
        edge, both = max(1, math.ceil(steps * EDGE)), list[str]()
        ends: list[dict[str, list[float]]] = []
        while not both and edge < 2 * steps:
            ends = [defaultdict(list), defaultdict(list)]
            for step, name, value in self.rows:
                objective = name.removeprefix("loss/")
                if name.startswith("loss/") and objective in weights:
                    if step < edge:
                        ends[0][objective].append(value)
                    if step >= steps - edge:
                        ends[1][objective].append(value)
            both = [name for name in weights if name in ends[0] and name in ends[1]]
            edge *= 2
        if not both:
            return math.nan, math.nan
        total = sum(weights[name] for name in both)
        first, last = (sum(weights[name] / total * sum(end[name]) / len(end[name]) for name in both) for end in ends)
        return first, last
