"""What `make sql` takes on ten million pairs, what it reads for that, and what pandas and pyarrow take for the same.

`python -m tests.bench.explore_sql --pairs 10_000_000`. Each query is asked in a new connection, so that nothing of
DuckDB's is warm but what the system's cache holds; two cores are used. Of boxes the bytes that were read are held
against those of the columns that the query names: features lie between them, in the same files.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.catalog import refresh
from pipeline.sql_shell.session import Session
from pipeline.store.dataset import Dataset
from pipeline.store.verdicts import KEPT, MEASURED, VERDICTS
from tests.bench.explore_dataset import CLASSES, SCREEN, make
from tests.bench.table import Row, write
from tests.bench.text_rules import FOLDER, thousands

CORES = 2
SECONDS = 2.0
BOXES = ("key", "n", "boxes", "classes", "confidences")
STRICTER, LOOSER = 10, 16
"""Than the recipe's `max_words`."""
MB = 1e6
Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Question:
    """A query, the same by other means, which must give what `check` makes of the rows, and the columns of the feature
    store that the query needs."""

    sql: str
    peer: Callable[[], Any] | None = None
    peer_name: str = "pandas"
    check: Callable[[Rows], Any] = lambda rows: rows[0][0]
    columns: tuple[str, ...] = ()
    called: str = ""
    """Where the query itself is too long to say, or names a pair."""

    @property
    def name(self) -> str:
        return self.called or self.sql


@dataclass(frozen=True)
class Answer:
    """Of one asking: its seconds from the open connection to the last row, and the bytes that the process read."""

    rows: Rows
    seconds: float
    bytes: int


def questions(dataset: Dataset) -> list[Question]:
    """What is asked of every dataset, some of it about a kept pair from the middle."""
    kept, regions = dataset.filtered.paths(KEPT), dataset.features("region").paths(".parquet")
    middle = pd.read_parquet(kept[len(kept) // 2], columns=["uid", "key"])
    uid, key = middle.iloc[len(middle) // 2]
    verdicts = [*dataset.screened.paths(VERDICTS), *dataset.filtered.paths(VERDICTS)]

    def rules() -> dict[tuple[str, str], int]:
        failed = _pandas(verdicts, ["stage", "rule"])
        return {key: int(number) for key, number in failed.groupby(["stage", "rule"]).size().items()}

    def labels() -> dict[str, int]:
        counted = pc.value_counts(pc.list_flatten(_arrow(regions, ["classes"])["classes"].combine_chunks()))
        return {CLASSES[of["values"]]: of["counts"] for of in counted.to_pylist() if of["values"] >= 0}

    def dogs() -> int:
        found = _arrow(regions, ["classes", "confidences"])
        classes, confidences = (pc.list_flatten(found[name].combine_chunks()) for name in found.column_names)
        chosen = pc.and_(pc.equal(classes, CLASSES.index("dog")), pc.greater(confidences, 0.5))
        return int(pc.sum(chosen).as_py())

    def stricter() -> int:
        found = _pandas(dataset.screened.paths(MEASURED), ["uid", "failures", "max_words"])
        passing = found[(found["failures"] == 0) & ~(found["max_words"] > STRICTER)]
        return len(passing.merge(_pandas(kept, ["uid"]), on="uid"))

    def looser() -> int:
        found = _pandas(dataset.screened.paths(MEASURED), ["failures", "max_words"])
        words = found["max_words"]
        return int(((found["failures"] == 1) & (words > SCREEN["max_words"]) & ~(words > LOOSER)).sum())

    def spelt() -> int:
        found = _pandas(kept, ["text", "split"])
        return int((found["text"].str.lower().str.contains("tra", regex=False) & (found["split"] == "train")).sum())

    def boxes() -> int:
        found = pd.read_parquet(regions, columns=["boxes"], filters=[("key", "==", key)])
        return len(found["boxes"].iloc[0]) // 4

    return [
        Question("SELECT count(*) FROM kept", lambda: len(_pandas(kept, ["uid"]))),
        Question("SELECT count(*) FROM kept WHERE text ILIKE '%tra%' AND split = 'train'", spelt),
        Question(
            "SELECT stage, rule, failing FROM funnel() WHERE failing > 0 AND stage <> 'download'",
            rules,
            check=lambda rows: {(stage, rule): failing for stage, rule, failing in rows},
            called="FROM funnel()",
        ),
        Question(f"FROM why('{uid}')", called="FROM why(uid)"),
        Question(f"SELECT kept FROM would_keep('max_words', {STRICTER})", stricter),
        Question(f"SELECT undecided FROM would_keep('max_words', {LOOSER})", looser),
        Question(
            "SELECT label, count(*) FROM regions GROUP BY label",
            labels,
            "pyarrow",
            check=lambda rows: {label: number for label, number in rows if label is not None},
            columns=("classes", "confidences"),
        ),
        Question(
            "SELECT count(*) FROM regions WHERE label = 'dog' AND confidence > 0.5",
            dogs,
            "pyarrow",
            columns=("classes", "confidences"),
        ),
        Question("SELECT * FROM regions WHERE label = 'dog' AND confidence > 0.5 LIMIT 50", columns=BOXES),
        Question(
            f"SELECT * FROM regions WHERE key = '{key}'",
            boxes,
            "pandas, read_parquet(filters=...)",
            check=len,
            columns=BOXES,
            called="SELECT * FROM regions WHERE key = ...",
        ),
    ]


def ask(catalog: Path, sql: str) -> Answer:
    """As `make sql` does, from its session on."""
    with Session(catalog) as session:

        def fetch() -> Answer:
            session.connection.execute(f"SET threads = {CORES}")
            before, started = _bytes_read(), time.perf_counter()
            rows = session.connection.execute(sql).fetchall()
            return Answer(rows, time.perf_counter() - started, _bytes_read() - before)

        return session.work(fetch)


def measure(dataset: Dataset, pairs: int, rounds: int) -> list[Row]:
    """Every question and its peer, in turns."""
    rows = []
    sizes = feature_bytes(dataset)
    for question in questions(dataset):
        answers, peers, found = [], [], None
        for _ in range(rounds):
            answers.append(ask(dataset.catalog, question.sql))
            if question.peer:
                started = time.perf_counter()
                found = question.peer()
                peers.append(time.perf_counter() - started)
        ours = median(answer.seconds for answer in answers)
        wanted = question.check(answers[0].rows)
        if question.peer and wanted != found:
            raise AssertionError(
                f"{question.name}: {str(wanted)[:200]} here, {str(found)[:200]} by {question.peer_name}"
            )
        read = max(answer.bytes for answer in answers)
        beside = f"; {question.peer_name}: {median(peers):.2f} s" if peers else ""
        work = f"`{question.name}` on {thousands(pairs)} pairs, reads {read / MB:.1f} MB"
        print(f"  {ours:7.3f} s  {work}{beside}", file=sys.stderr, flush=True)
        rows.append(Row.of(work, f"a wait that one accepts{beside}", ours, "s", f"<= {SECONDS:g}"))
        if question.columns:
            named = sum(sizes[name] for name in (*question.columns, ""))
            features = f"features are {sizes['features'] / MB:.0f} MB"
            peer = f"the columns that it names and the footers, {named / MB:.0f} MB; {features}"
            rows.append(Row.of(f"`{question.name}`: bytes read", peer, read / named, "x their bytes", "<= 1.2"))
        if ours > SECONDS:
            print(_explained(dataset.catalog, question.sql), file=sys.stderr, flush=True)
    return rows


def feature_bytes(dataset: Dataset) -> dict[str, int]:
    """Bytes of each column of the region features on the disk; under "" those of footers and whatever else is none."""
    sizes: dict[str, int] = {}
    for path in dataset.features("region").paths(".parquet"):
        footer = pq.read_metadata(path)
        names = [footer.schema.column(at).path.partition(".")[0] for at in range(footer.num_columns)]
        for group in (footer.row_group(number) for number in range(footer.num_row_groups)):
            for at, name in enumerate(names):
                sizes[name] = sizes.get(name, 0) + group.column(at).total_compressed_size
        sizes[""] = sizes.get("", 0) + footer.serialized_size
    return sizes


def _pandas(paths: list[Path], columns: list[str]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path, columns=columns, dtype_backend="pyarrow") for path in paths])


def _arrow(paths: list[Path], columns: list[str]) -> pa.Table:
    return pa.concat_tables([pq.read_table(path, columns=columns) for path in paths])


def _bytes_read() -> int:
    """By this process so far, out of the system's cache or not."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def _explained(catalog: Path, sql: str) -> str:
    with Session(catalog) as session:
        session.connection.execute(f"SET threads = {CORES}")
        return str(session.connection.execute(f"EXPLAIN ANALYZE {sql}").fetchall()[0][1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    dataset = make(options.pairs, options.folder, pictures=False).dataset
    refresh(dataset)
    write("explore_sql", measure(dataset, options.pairs, options.rounds))


if __name__ == "__main__":
    main()
