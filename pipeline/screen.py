"""Stage `screen`: the rules that need only url and text, before a byte is downloaded -> `verdicts/screen`.

Two halves. What the recipe's rules measure is measured once and kept (`signals/<group>/`): a pass over the pairs, the
counts over the whole corpus (`pipeline.texts.counting`), a pass that brings them back to each pair. Then every shard is
judged by SQL; another threshold costs that half alone.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine import Engine
from pipeline.job import UP_TO_DATE, Job
from pipeline.signals import Block, Counted, TextSignals, named_in
from pipeline.signals.registry import text_signals
from pipeline.store.atomic import digest, replacing
from pipeline.store.sql import open_duckdb
from pipeline.store.table import Shard, naming_damage
from pipeline.store.verdicts import Asked, asked_rules, check_account, described, write_shard
from pipeline.texts.counting import Count, Histogram

VERSION = 4
FEW = 300_000  # pairs that one process screens sooner than workers start
BLOCK_ROWS = 1 << 18
BLOCK_BYTES = 1 << 27
KEYS = {"text": 1, "url": 1, "ngram": 18, "entry": 4}
"""About how many keys of each stream a pair has."""


@dataclass(frozen=True)
class Work:
    """What the workers are told: the pairs, the groups to measure and where the unfinished lies."""

    pairs: Path
    files: dict[str, str]
    groups: tuple[TextSignals, ...]
    staging: Path
    counts: dict[str, Count]

    def found(self, shard: str) -> Path:
        return self.staging / f"{shard}.found.parquet"


def run(job: Job) -> str:
    dataset, section = job.dataset, job.recipe.screen
    asked = asked_rules("screen", section.rules)
    groups = text_signals(section, [entry.rule.measure for entry in asked])
    keys = {group.name: job.key(group.version, group.name, group.identity, dataset.pairs) for group in groups}
    rules = section.model_dump(mode="json", include={"rules"})
    key = job.key(VERSION, rules, keys, dataset.pairs)
    if dataset.screened.is_current(key):
        return UP_TO_DATE
    engine = job.engine.light() if dataset.pairs.manifest.count("pairs") < FEW else job.engine
    missing = [g for g in groups if not dataset.signals(g.name, "screen").is_current(keys[g.name])]
    if missing:
        _measure(job, engine, missing, keys)

    shard_keys = {shard.name: digest(key, shard.name) for shard in dataset.pairs.manifest.shards}
    with dataset.screened.writing(key, shard_keys) as writing:
        judge = partial(
            _judge_shard,
            asked=asked,
            pairs=dataset.pairs.folder,
            files={shard.name: shard.files[0].name for shard in dataset.pairs.manifest.shards},
            signals={
                column: dataset.signals(group.name, "screen").folder for group in groups for column in group.columns
            },
            folder=dataset.screened.folder,
            keys=shard_keys,
        )
        for shard in engine.map(judge, writing.todo, "screen: judging"):
            writing.add(shard)
        manifest = writing.commit({"rules": described(asked)}, check=check_account)
    return (
        f"{manifest.count('pairs'):,} pairs = {manifest.count('kept'):,} kept + {manifest.count('dropped'):,} dropped"
    )


def _measure(job: Job, engine: Engine, groups: list[TextSignals], keys: dict[str, str]) -> None:
    """Measure the groups over all shards, each into its own table."""
    pairs = job.dataset.pairs
    files = {shard.name: shard.files[0].name for shard in pairs.manifest.shards}
    staging = job.dataset.root / ".staging" / "screen" / digest({group.name: keys[group.name] for group in groups})
    for old in staging.parent.glob("*"):
        if old != staging:
            shutil.rmtree(old)
    staging.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writings = {}
        for group in groups:
            shard_keys = {name: digest(keys[group.name], name) for name in files}
            table = job.dataset.signals(group.name, "screen")
            writings[group.name] = stack.enter_context(table.writing(keys[group.name], shard_keys))
        todo = [name for name in files if any(name in writing.todo for writing in writings.values())]
        if todo:
            streams = [stream for group in groups for stream in group.streams]
            counts = {
                stream: Count.of(staging / stream, pairs.manifest.count("pairs") * KEYS[stream]) for stream in streams
            }
            work = Work(pairs.folder, files, tuple(groups), staging, counts)
            find = partial(_find, work=work)
            unseen = [name for name in files if not work.found(name).exists()]
            for _ in engine.map(find, unseen, "screen: measuring"):
                pass
            for stream, count in counts.items():
                for _ in engine.map(count.merge, count.tasks, f"screen: counting {stream}s"):
                    pass
            histograms = {stream: count.histogram() for stream, count in counts.items()}
            targets = {name: (writing.table.folder, writing.shard_keys) for name, writing in writings.items()}
            gather = partial(_gather, work=work, histograms=histograms, targets=targets)
            for made in engine.map(gather, todo, "screen: gathering"):
                for name, shard in made.items():
                    writings[name].add(shard)
        for writing in writings.values():
            writing.commit()
    shutil.rmtree(staging)


def _find(name: str, *, work: Work) -> str:
    """Measure one shard, block by block: columns to the staging folder, keys scattered for counting."""
    path = work.pairs / work.files[name]
    source = pq.ParquetFile(path)
    reads = list(dict.fromkeys(column for group in work.groups for column in group.reads))
    with replacing(work.found(name)) as found_path, ExitStack() as stack, naming_damage(path, "ingest"):
        writer: pq.ParquetWriter | None = None
        for number, rows in enumerate(_blocks(source, reads)):
            block, columns = Block(rows), {"row": np.arange(rows.num_rows, dtype=np.int32)}
            for group in work.groups:
                found = group.find(block)
                columns |= {f"{group.name}.{column}": value for column, value in found.columns.items()}
                for stream, keys in found.keys.items():
                    work.counts[stream].add(f"{name}-{number:05d}", keys)
            table = pa.table(columns)
            writer = writer or stack.enter_context(pq.ParquetWriter(found_path, table.schema, compression="lz4"))
            writer.write_table(table, row_group_size=BLOCK_ROWS)
    return name


def _blocks(source: pq.ParquetFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """A shard's rows, in blocks small enough for counting, also where every text is as long as it may be."""
    if source.metadata.num_rows == 0:
        yield pa.RecordBatch.from_pylist([], pa.schema([source.schema_arrow.field(column) for column in columns]))
    for rows in source.iter_batches(BLOCK_ROWS, columns=columns):
        parts = 1 + rows.nbytes // BLOCK_BYTES
        step = -(-rows.num_rows // parts)
        for first in range(0, rows.num_rows, step):
            yield rows.slice(first, step)


def _gather(
    name: str, *, work: Work, histograms: Mapping[str, Histogram], targets: Mapping[str, tuple[Path, dict[str, str]]]
) -> dict[str, Shard]:
    """Bring the corpus' counts back to one shard's rows; returns each group's finished shard."""
    found = pq.ParquetFile(work.found(name))
    with ExitStack() as stack:
        writers: dict[str, pq.ParquetWriter] = {}
        paths = {g: stack.enter_context(replacing(folder / f"{name}.parquet")) for g, (folder, _) in targets.items()}
        for number in range(found.num_row_groups):
            block = found.read_row_group(number)
            for group in work.groups:
                prefix = f"{group.name}."
                own = {c.removeprefix(prefix): block[c] for c in block.column_names if c.startswith(prefix)}
                counted = {
                    stream: Counted(work.counts[stream].frequencies(f"{name}-{number:05d}"), histograms[stream])
                    for stream in group.streams
                }
                table = pa.table(group.gather(pa.table(own), counted))
                if group.name not in writers:
                    writer = pq.ParquetWriter(paths[group.name], table.schema, compression="zstd")
                    writers[group.name] = stack.enter_context(writer)
                writers[group.name].write_table(table, row_group_size=BLOCK_ROWS)
    return {
        group: Shard.of(folder, name, keys[name], [f"{name}.parquet"], {}) for group, (folder, keys) in targets.items()
    }


def _judge_shard(
    name: str,
    *,
    asked: Sequence[Asked],
    pairs: Path,
    files: dict[str, str],
    signals: dict[str, Path],
    folder: Path,
    keys: dict[str, str],
) -> Shard:
    """Judge one shard's pairs by their own columns and the signals that lie beside them, row by row."""
    expressions = [entry.rule.measure for entry in asked]
    path = pairs / files[name]
    source = pq.ParquetFile(path)
    listed = [column for column in source.schema_arrow.names if column not in {"uid", *signals}]
    with naming_damage(path, "ingest"):
        table = source.read(columns=["uid", *named_in(expressions, listed)])
    for column in named_in(expressions, list(signals)):
        signal = pq.read_table(signals[column] / f"{name}.parquet", columns=[column])
        table = table.append_column(column, signal[column])
    with open_duckdb() as connection:
        connection.execute("SET threads = 1")
        connection.register("signals", table)
        return write_shard(connection, asked, "signals", folder, name, keys[name])
