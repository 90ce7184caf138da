"""Verdicts: one row (uid, stage, rule, value) for each rule that a pair failed, in shards parallel to `pairs`."""

from collections.abc import Mapping
from typing import Any

import duckdb

from pipeline.rules import RULES
from pipeline.store.atomic import digest, replacing
from pipeline.store.sql import literal, number, parquet, write_parquet
from pipeline.store.table import Manifest, Shard, Table


def write_verdicts(
    table: Table,
    key: str,
    stage: str,
    rules: Mapping[str, float],
    connection: duckdb.DuckDBPyConnection,
    pairs: Table,
    info: Mapping[str, Any] | None = None,
) -> Manifest:
    """Apply `rules` (name -> threshold) to the table `signals` (uid, measures) and commit the verdicts.

    A pair gets a verdict for every rule that it fails, with the measured value. Only pairs in `signals` are judged; the
    manifest counts `pairs` judged, `kept` and `dropped`, and the three are checked against each other.
    """
    failing = [
        f"SELECT uid, {literal(stage)} AS stage, {literal(name)} AS rule, ({RULES[name].measure})::DOUBLE AS value, "
        f"{position} AS position FROM signals WHERE {RULES[name].predicate(threshold)}"
        for position, (name, threshold) in enumerate(rules.items())
    ]
    none = "SELECT NULL::VARCHAR AS uid, '' AS stage, '' AS rule, NULL::DOUBLE AS value, 0 AS position WHERE false"
    connection.execute(f"CREATE TEMP TABLE failed AS {' UNION ALL '.join([*failing, none])}")
    pair_shards = pairs.manifest.shards
    with table.writing(key, {shard.name: digest(key, shard.name) for shard in pair_shards}) as writing:
        for shard in pair_shards:
            if shard.name not in writing.todo:
                continue
            uids = f"(SELECT uid FROM {parquet([pairs.folder / shard.files[0].name])})"
            with replacing(table.folder / f"{shard.name}.parquet") as path:
                rows = f"failed SEMI JOIN {uids} USING (uid)"
                write_parquet(connection, f"SELECT uid, stage, rule, value FROM {rows} ORDER BY uid, position", path)
            judged = f"signals SEMI JOIN {uids} USING (uid)"
            counts = {
                "pairs": number(connection, f"SELECT count(*) FROM {judged}"),
                "kept": number(connection, f"SELECT count(*) FROM {judged} ANTI JOIN failed USING (uid)"),
                "dropped": number(connection, f"SELECT count(DISTINCT uid) FROM {rows}"),
            }
            writing.add(
                Shard.of(table.folder, shard.name, writing.shard_keys[shard.name], [f"{shard.name}.parquet"], counts)
            )
        return writing.commit({"rules": dict(rules), **(info or {})}, check=_account)


def _account(manifest: Manifest) -> None:
    counts = manifest.counts()
    if counts["pairs"] != counts["kept"] + counts["dropped"]:
        raise AssertionError(f"the account of {manifest.stage} does not add up: {counts}")
