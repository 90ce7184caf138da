"""Stage `filter`: the rules that need the image -> `verdicts/filter`. Nothing is fetched, and no image is rewritten.

Two halves. What the recipe's rules name is measured where it is not at hand (`pipeline.signals.measuring`); then SQL
joins the signals and judges. Another threshold costs that half alone. The split of the images is fixed here, and what
became of every pair: which are kept, and by what the others fell.
"""

from collections.abc import Iterable, Sequence

import duckdb

from pipeline.job import UP_TO_DATE, Job
from pipeline.signals import named_in
from pipeline.signals.judged import JUDGED
from pipeline.signals.measuring import Measured, measured
from pipeline.store.atomic import digest
from pipeline.store.sql import identifier, parquet
from pipeline.store.table import Manifest
from pipeline.store.verdicts import (
    DOWNLOADS,
    KEPT,
    Asked,
    asked_rules,
    check_account,
    described,
    with_cutoffs,
    write_shard,
)
from pipeline.store.views.chain import failed_downloads, places

VERSION = 4

# What follows from the metadata that the download wrote, from other pairs, and from a picture's hash.
_FACTS = {
    "shorter_side": "least(original_width, original_height)",
    "aspect": "greatest(original_width, original_height) / least(original_width, original_height)",
    "megapixels": "original_width::BIGINT * original_height / 1e6",
    "texts_per_image": "count(DISTINCT text) OVER (PARTITION BY sha256)",
    "copy": "row_number() OVER (PARTITION BY sha256, text ORDER BY uid)",
    "look_alike": "CASE WHEN phash IS NOT NULL THEN row_number() OVER (PARTITION BY phash, text ORDER BY uid) END",
}


def run(job: Job) -> str:
    dataset, split = job.dataset, job.recipe.split
    asked = asked_rules("filter", job.recipe.filter.rules)
    expressions = [entry.rule.measure.lower() for entry in asked]  # in SQL, names are the same in either case
    expressions += [_FACTS[fact] for fact in named_in(expressions, list(_FACTS))]
    found = measured(job, expressions)
    rules = job.recipe.filter.model_dump(mode="json", include={"rules"})
    signals = {signal.name: signal.table.manifest.digest for signal in found}
    key = job.key(VERSION, rules, signals, split, dataset.pairs, dataset.screened, dataset.images)
    if dataset.filtered.is_current(key):
        return UP_TO_DATE
    with dataset.connect(job.recipe.engine.memory_limit, job.engine.workers) as connection:
        connection.execute(f"CREATE TEMP TABLE signals AS {_signals(connection, expressions, found)}")
        manifest = _judge(job, connection, asked, key)
    notes = "".join(f"; {signal.note}" for signal in found if signal.note)
    return (
        f"{manifest.count('pairs'):,} pairs = {manifest.count('kept'):,} kept + {manifest.count('dropped'):,} dropped"
        + notes
    )


def _judge(job: Job, connection: duckdb.DuckDBPyConnection, asked: Sequence[Asked], key: str) -> Manifest:
    """Judge the table `signals` shard by shard of `pairs`, settle what became of each pair, and commit.

    Two further files a shard: the pairs that are kept, and the verdicts of the downloads that failed.
    """
    dataset, split = job.dataset, job.recipe.split.model_dump()
    asked = with_cutoffs(asked, connection, "signals")
    connection.execute(f"CREATE TEMP VIEW places AS {places(split)}")
    shards = dataset.pairs.manifest.shards
    with dataset.filtered.writing(key, {shard.name: digest(key, shard.name) for shard in shards}) as writing:
        for shard in shards:
            if shard.name not in writing.todo:
                continue
            rows = parquet([dataset.pairs.folder / shard.files[0].name])
            connection.execute(f"CREATE OR REPLACE TEMP VIEW shard_pairs AS SELECT uid, url, text FROM {rows}")
            judged = "FROM signals SEMI JOIN shard_pairs USING (uid) ORDER BY uid"
            connection.execute(f"CREATE OR REPLACE TEMP VIEW judged AS {judged}")
            more = {
                KEPT: "SELECT uid, url, text, key, split FROM shard_pairs SEMI JOIN passed USING (uid) "
                "JOIN places USING (url) ORDER BY uid",
                DOWNLOADS: f"SELECT *, uid IN (SELECT uid FROM screened WHERE failures = 0) AS first "
                f"FROM ({failed_downloads('shard_pairs')}) ORDER BY uid",
            }
            shard_key = writing.shard_keys[shard.name]
            writing.add(write_shard(connection, asked, "judged", dataset.filtered.folder, shard.name, shard_key, more))
        info = {"rules": described(asked), "split": split, "settled": dataset.judged_digest}
        return writing.commit(info, check=check_account)


def _signals(connection: duckdb.DuckDBPyConnection, expressions: Sequence[str], found: Sequence[Measured]) -> str:
    """SQL of (uid, every column that the expressions name) for the judged pairs.

    Of equal names a fact hides what was measured, that the images' metadata, and those a column of the lists.
    """
    selected: dict[str, str] = {}

    def select(relation: str, named: Iterable[str]) -> list[str]:
        by_lower = {name.lower(): f"{relation}.{identifier(name)}" for name in named}
        new = [name for name in named_in(expressions, list(by_lower)) if name not in selected]
        selected.update({name: f"{by_lower[name]} AS {identifier(name)}" for name in new})
        return new

    select("facts", _FACTS)
    joins = ""
    for position, signal in enumerate(found):
        select(f"signal{position}", signal.columns)
        source = parquet(signal.table.paths(".parquet"))
        joins += f" LEFT JOIN {source} AS signal{position} USING ({signal.joins})"
    select("judged", ["text", *_columns(connection, "images")])
    if select("listed", [column for column in _columns(connection, "pairs") if column != "uid"]):
        joins += " JOIN pairs AS listed USING (uid)"
    facts = ", ".join(f"{_FACTS[fact]} AS {fact}" for fact in named_in(expressions, list(_FACTS)))
    hashes = next((signal for signal in found if signal.name == "phash"), None)
    hashed = f" LEFT JOIN {parquet(hashes.table.paths('.parquet'))} USING (key)" if hashes else ""
    if facts:
        joins += f" JOIN (SELECT uid, {facts} FROM judged{hashed}) AS facts USING (uid)"
    columns = "".join(f", {expression}" for expression in selected.values())
    return f"WITH judged AS ({JUDGED}) SELECT judged.uid{columns} FROM judged{joins}"


def _columns(connection: duckdb.DuckDBPyConnection, relation: str) -> list[str]:
    return [row[0] for row in connection.execute(f"DESCRIBE {relation}").fetchall()]
