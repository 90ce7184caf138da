"""Stage `ingest`: lists of urls and texts -> `pairs/`, sorted by uid, each (url, text) once.

Two maps. Each part of the lists is read in blocks, and each block's pairs are put by, in order of uid. Then each shard
is merged from what the blocks hold of its range of uids, a stretch at a time, and freed of repeated pairs. So no more
than a block or a stretch is in memory, and the result depends on the lists alone, not on their order or on how many
workers read them. A row that cannot be read goes to `pairs/quarantine` with its file, row and reason; a further copy
of a pair to `repeated`.
"""

import shutil
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipeline.errors import PairmillError
from pipeline.job import UP_TO_DATE, Job
from pipeline.lists.files import Part, broken, parts_of
from pipeline.lists.merging import Stretches, merge, put_by, staged_schema
from pipeline.lists.pairing import pairs_of
from pipeline.lists.reading import blocks
from pipeline.lists.row_groups import RowGroups
from pipeline.recipe import Ingest
from pipeline.store.atomic import digest, replacing, sync
from pipeline.store.table import Manifest, Shard

VERSION = 2
QUARANTINE = pa.schema({"file": pa.string(), "row": pa.int64(), "reason": pa.string(), "content": pa.string()})


def run(job: Job) -> str:
    section = job.recipe.ingest
    if section is None:
        raise PairmillError("the recipe has no [ingest] section", 'add one with inputs = ["list.csv"]')
    found = parts_of(section.inputs)
    parts = {f"{index:05d}": part for index, part in enumerate(found)}
    reading = section.model_dump(mode="json", exclude={"inputs", "shards"})
    part_keys = {name: digest(VERSION, reading, vars(part)) for name, part in parts.items()}
    key = job.key(VERSION, section.shards, list(part_keys.values()))
    staging = job.dataset.root / ".staging" / key
    if job.dataset.pairs.is_current(key) and job.dataset.quarantine.is_current(key):
        shutil.rmtree(staging, ignore_errors=True)  # where the last run was cut off at its very end
        return UP_TO_DATE

    for old in staging.parent.glob("*"):
        if old != staging:
            shutil.rmtree(old)
    shard_keys = {f"{shard:05d}": digest(key, shard) for shard in range(section.shards)}
    with (
        job.dataset.quarantine.writing(key, part_keys) as quarantine,
        job.dataset.pairs.writing(key, shard_keys) as pairs,
    ):
        todo = quarantine.todo
        if pairs.todo:
            todo = [name for name in parts if name in todo or not (staging / name).exists()]
        read = partial(
            _read,
            parts=parts,
            keys=part_keys,
            section=section,
            staging=staging,
            folder=job.dataset.quarantine.folder,
        )
        for shard in job.engine.map(read, todo, "ingest: reading"):
            quarantine.add(shard)
        if pairs.todo:
            rows = sum(shard.counts["rows_in"] - shard.counts["quarantined"] for shard in quarantine.shards)
            if not rows:
                raise PairmillError(
                    "the lists hold no readable pair", "are they empty? pairs/quarantine says why rows were refused"
                )
            write = partial(
                _merge,
                keys=shard_keys,
                stretches=Stretches.of(staging, rows, section.shards),
                schema=staged_schema(staging, _required(section)),
                paths={name: part.path for name, part in parts.items()},
                staging=staging,
                folder=job.dataset.pairs.folder,
            )
            for shard in job.engine.map(write, pairs.todo, "ingest: sorting"):
                pairs.add(shard)

        def account(manifest: Manifest) -> None:
            rows_in = sum(shard.counts["rows_in"] for shard in quarantine.shards)
            quarantined = sum(shard.counts["quarantined"] for shard in quarantine.shards)
            if rows_in != quarantined + manifest.count("repeated") + manifest.count("pairs"):
                raise AssertionError(f"{rows_in} rows in, but {quarantined} quarantined and {manifest.counts()}")

        made = pairs.commit(check=account)
        bad = quarantine.commit()
    shutil.rmtree(staging)
    return (
        f"{bad.count('rows_in'):,} rows = {made.count('pairs'):,} pairs + {made.count('repeated'):,} repeated "
        f"+ {bad.count('quarantined'):,} quarantined"
    )


def _required(section: Ingest) -> dict[str, str]:
    """Columns of `pairs` that some list must have -> the recipe's key that asks for them."""
    required = {name: "numbers" for name in section.numbers}
    if section.tags_column:
        required["tags"] = "tags_column"
    if section.lang_column:
        required["lang"] = "lang_column"
    return required


def _read(
    name: str, *, parts: dict[str, Part], keys: dict[str, str], section: Ingest, staging: Path, folder: Path
) -> Shard:
    """Put a part's pairs by in `staging/<name>/`, block by block; its bad rows become the quarantine shard."""
    part = parts[name]
    target, unfinished = staging / name, staging / f"{name}.partial"
    for leftover in (target, unfinished):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    good = quarantined = 0
    with replacing(folder / f"{name}.parquet") as path, RowGroups(path, QUARANTINE) as bad_rows:
        wanted = (section.url_column, section.text_column)
        for index, block in enumerate(blocks(part, wanted, section.columns)):
            pairs = pairs_of(block, section, part.path)
            try:
                put_by(pairs.table, unfinished / f"{index:06d}.arrow")
            except pa.ArrowException as error:  # columns nested beyond what Arrow's files hold
                raise broken(part.path, error) from None
            good, quarantined = good + len(pairs.table), quarantined + len(pairs.bad)
            bad_rows.add(pa.Table.from_pylist([{"file": part.path, **vars(bad)} for bad in pairs.bad], QUARANTINE))
    unfinished.rename(target)
    sync(staging)
    counts = {"rows_in": good + quarantined, "quarantined": quarantined}
    return Shard.of(folder, name, keys[name], [f"{name}.parquet"], counts)


def _merge(
    name: str,
    *,
    keys: dict[str, str],
    stretches: Stretches,
    schema: pa.Schema,
    paths: dict[str, str],
    staging: Path,
    folder: Path,
) -> Shard:
    """One shard of the pairs, and beside it the further copies of them."""
    names = (f"{name}.parquet", f"repeated-{name}.parquet")
    with replacing(folder / names[0]) as path, replacing(folder / names[1]) as repeated_path:
        pairs, repeated = merge(staging, int(name), stretches, schema, paths, (path, repeated_path))
    return Shard.of(folder, name, keys[name], names, {"pairs": pairs, "repeated": repeated})
