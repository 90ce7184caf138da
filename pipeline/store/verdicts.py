"""Verdicts: one row (uid, stage, rule, value, detail) for each rule that a pair failed, in shards parallel to `pairs`.

`value` is the measured number; where what was measured is words (a language, an address found in the text), they stand
in `detail`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from pipeline.errors import PairmillError
from pipeline.rules import Rule, rule_of
from pipeline.store.atomic import digest, replacing
from pipeline.store.sql import literal, number, parquet, write_parquet
from pipeline.store.table import Manifest, Shard, Table


@dataclass(frozen=True)
class Asked:
    """A rule with the recipe's threshold; `cutoff` is what is compared with: the threshold itself but for fractions."""

    rule: Rule
    threshold: Any
    cutoff: Any

    @property
    def setting(self) -> str:
        """The threshold in words."""
        if self.rule.takes == "true":
            return getattr(self.threshold, "keep_if", "")
        if self.rule.takes == "names":
            return ", ".join(self.threshold)
        if self.rule.takes == "fraction":
            return f"{self.threshold:g} (from {self.cutoff:.6g} up)"
        return f"{self.threshold:,.0f}" if float(self.threshold).is_integer() else f"{self.threshold:g}"


def asked_rules(stage: str, rules: Mapping[str, Any]) -> list[Asked]:
    """The recipe's rules of a stage, in their order. The cutoffs of fractions are still to be found."""
    return [Asked(rule_of(stage, name, threshold), threshold, threshold) for name, threshold in rules.items()]


def with_cutoffs(asked: Sequence[Asked], connection: duckdb.DuckDBPyConnection, relation: str) -> list[Asked]:
    """Find the cutoff of every rule that keeps a top fraction of `relation`'s pairs.

    DataComp's: of n scores in descending order, that at rank int(n * fraction); what equals it is kept.
    """
    found = []
    for entry in asked:
        if entry.rule.takes == "fraction":
            scores = f"SELECT {entry.rule.value} AS score FROM {relation} WHERE {entry.rule.value} IS NOT NULL"
            rank = int(number(connection, f"SELECT count(*) FROM ({scores})") * entry.threshold)
            row = connection.execute(f"{scores} ORDER BY score DESC LIMIT 1 OFFSET {rank}").fetchone()
            entry = Asked(entry.rule, entry.threshold, row[0] if row else -1e308)
        found.append(entry)
    return found


def failing(asked: Sequence[Asked], relation: str) -> str:
    """SQL of the verdicts over a relation of (uid, what the rules measure), in order of uid and rule."""
    selects = [
        f"SELECT uid, {literal(entry.rule.stage)} AS stage, {literal(entry.rule.name)} AS rule, "
        f"{entry.rule.value} AS value, {entry.rule.detail} AS detail, {position} AS position "
        f"FROM {relation} WHERE {entry.rule.predicate(entry.cutoff)}"
        for position, entry in enumerate(asked)
    ]
    none = (
        "SELECT NULL::VARCHAR AS uid, '' AS stage, '' AS rule, NULL::DOUBLE AS value, NULL::VARCHAR AS detail, "
        "0 AS position WHERE false"
    )
    return " UNION ALL ".join([*selects, none])


def write_shard(
    connection: duckdb.DuckDBPyConnection, asked: Sequence[Asked], relation: str, folder: Path, name: str, key: str
) -> Shard:
    """Judge `relation`, one shard's pairs, and write their verdicts."""
    try:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE failed AS {failing(asked, relation)}")
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        for entry in asked:  # the recipe's own SQL is all that can be wrong: which one is it?
            try:
                connection.execute(f"SELECT count(*) FROM ({failing([entry], relation)})")
            except duckdb.Error as own:
                said = str(own).splitlines()[0]
                raise PairmillError(f"the rule {entry.rule.name!r}: {said}", "correct its keep_if") from None
        raise error
    with replacing(folder / f"{name}.parquet") as path:
        write_parquet(connection, "SELECT uid, stage, rule, value, detail FROM failed ORDER BY uid, position", path)
    pairs = number(connection, f"SELECT count(*) FROM {relation}")
    dropped = number(connection, "SELECT count(DISTINCT uid) FROM failed")
    kept = number(connection, f"SELECT count(*) FROM {relation} ANTI JOIN failed USING (uid)")
    return Shard.of(folder, name, key, [f"{name}.parquet"], {"pairs": pairs, "kept": kept, "dropped": dropped})


def described(asked: Sequence[Asked]) -> dict[str, Any]:
    """Rule -> threshold (a number, or null) and setting (in words), for the manifest and the view `rules`."""
    return {
        entry.rule.name: {
            "threshold": entry.cutoff if isinstance(entry.cutoff, float) else None,
            "setting": entry.setting,
            "condition": entry.rule.condition,
        }
        for entry in asked
    }


def check_account(manifest: Manifest) -> None:
    """Pairs judged = kept + dropped, or an AssertionError."""
    counts = manifest.counts()
    if counts["pairs"] != counts["kept"] + counts["dropped"]:
        raise AssertionError(f"the account of {manifest.stage} does not add up: {counts}")


def write_verdicts(
    table: Table,
    key: str,
    asked: Sequence[Asked],
    connection: duckdb.DuckDBPyConnection,
    pairs: Table,
    info: Mapping[str, Any] | None = None,
) -> Manifest:
    """Judge the table `signals` (uid, measures) of the connection, shard by shard of `pairs`, and commit."""
    pair_shards = pairs.manifest.shards
    asked = with_cutoffs(asked, connection, "signals")
    with table.writing(key, {shard.name: digest(key, shard.name) for shard in pair_shards}) as writing:
        for shard in pair_shards:
            if shard.name not in writing.todo:
                continue
            uids = f"(SELECT uid FROM {parquet([pairs.folder / shard.files[0].name])})"
            connection.execute(f"CREATE OR REPLACE TEMP VIEW judged AS FROM signals SEMI JOIN {uids} USING (uid)")
            shard_key = writing.shard_keys[shard.name]
            writing.add(write_shard(connection, asked, "judged", table.folder, shard.name, shard_key))
        return writing.commit({"rules": described(asked), **(info or {})}, check=check_account)
