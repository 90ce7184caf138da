"""Verdicts: one row (uid, stage, rule, value, detail, first) for each rule that a pair failed, parallel to `pairs`.

`value` is the measured number; where what was measured is words (a language, an address found in the text), they stand
in `detail`. `first` marks the rule by which the pair fell: the first in the recipe's order. Beside each shard's
verdicts lies what was measured of every judged pair, a column for each rule, so that SQL can try another threshold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from pipeline.errors import PairmillError
from pipeline.rules import Rule, rule_of
from pipeline.store.atomic import replacing
from pipeline.store.sql import double, identifier, literal, number, parquet, write_parquet
from pipeline.store.table import Manifest, Shard

VERDICTS = ".verdicts.parquet"
MEASURED = ".measured.parquet"
KEPT = ".kept.parquet"
DOWNLOADS = ".downloads.parquet"
"""What the names of a shard's files end in; `filter` writes the last two as well."""


EVERYTHING = -math.inf
"""The cutoff of a top fraction that is all of the pool: no measured value is below it."""


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
            return f"{self.threshold:g} ({'all' if self.cutoff == EVERYTHING else f'from {self.cutoff:.6g} up'})"
        return f"{self.threshold:,.0f}" if float(self.threshold).is_integer() else f"{self.threshold:g}"


def asked_rules(stage: str, rules: Mapping[str, Any]) -> list[Asked]:
    """The recipe's rules of a stage, in their order. The cutoffs of fractions are still to be found."""
    return [Asked(rule_of(stage, name, threshold), threshold, threshold) for name, threshold in rules.items()]


def with_cutoffs(asked: Sequence[Asked], connection: duckdb.DuckDBPyConnection, relation: str) -> list[Asked]:
    """Find the cutoff of every rule that keeps a top fraction of `relation`'s pairs."""
    found = []
    for entry in asked:
        if entry.rule.takes == "fraction":
            query = f"SELECT {top_cutoff(entry.rule.value, relation, double(entry.threshold))}"
            rows: Any = connection.execute(query).fetchall()
            entry = Asked(entry.rule, entry.threshold, rows[0][0])
        found.append(entry)
    return found


def top_cutoff(value: str, relation: str, fraction: str) -> str:
    """SQL of the least `value` that is in the top fraction of those that `relation` has; EVERYTHING for all of them.

    `fraction` is SQL of a DOUBLE, and `value` is nowhere NaN.

    DataComp's: of n values in descending order, that at rank int(n * fraction); what equals it is kept.
    """
    values = f"FROM {relation} WHERE {value} IS NOT NULL"
    rank = f"(SELECT floor(count(*)::DOUBLE * {fraction})::BIGINT {values})"
    least = f"SELECT {value} AS value {values} ORDER BY value DESC LIMIT 1 OFFSET {rank}"
    return f"coalesce(({least})::DOUBLE, {double(EVERYTHING)})"


def _judging(asked: Sequence[Asked], relation: str) -> str:
    """SQL of a row a pair: uid, and of the rule at each position its value v, detail d and whether it fails, f."""
    columns = "".join(
        f", {entry.rule.value} AS v{position}, {entry.rule.detail} AS d{position}, "
        f"coalesce({entry.rule.predicate(entry.cutoff)}, false) AS f{position}"
        for position, entry in enumerate(asked)
    )
    return f"SELECT uid{columns} FROM {relation}"


def _verdicts(asked: Sequence[Asked]) -> str:
    """SQL of the verdicts over what was judged, in order of uid and rule."""
    selects = [
        f"SELECT uid, {literal(entry.rule.stage)} AS stage, {literal(entry.rule.name)} AS rule, v{position} AS value, "
        f"d{position} AS detail, NOT ({' OR '.join(['false', *(f'f{earlier}' for earlier in range(position))])}) "
        f"AS first, {position} AS position FROM judged_rows WHERE f{position}"
        for position, entry in enumerate(asked)
    ]
    none = (
        "SELECT NULL::VARCHAR AS uid, '' AS stage, '' AS rule, NULL::DOUBLE AS value, NULL::VARCHAR AS detail, "
        "false AS first, 0 AS position WHERE false"
    )
    return f"SELECT * EXCLUDE position FROM ({' UNION ALL '.join([*selects, none])}) ORDER BY uid, position"


def _failures(asked: Sequence[Asked]) -> str:
    """SQL of the number of rules that a judged pair fails."""
    return f"({' + '.join(['0', *(f'f{position}::INTEGER' for position in range(len(asked)))])})::INTEGER"


def _measured(asked: Sequence[Asked]) -> str:
    """SQL of one row a pair, in the order of the relation: uid, failures, and the value of each rule of numbers."""
    values = "".join(
        f", v{position} AS {identifier(entry.rule.name)}"
        for position, entry in enumerate(asked)
        if entry.rule.takes in ("number", "fraction")
    )
    return f"SELECT uid, {_failures(asked)} AS failures{values} FROM judged_rows"


def write_shard(
    connection: duckdb.DuckDBPyConnection,
    asked: Sequence[Asked],
    relation: str,
    folder: Path,
    name: str,
    key: str,
    more: Mapping[str, str] | None = None,
) -> Shard:
    """Judge `relation`, one shard's pairs in order of uid, and write their verdicts and what was measured.

    `more`: suffix -> SQL of a further file of the shard, over the relation and `passed`, the uids that fail no rule.
    """
    try:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE judged_rows AS {_judging(asked, relation)}")
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        for entry in asked:  # the recipe's own SQL is all that can be wrong: which one is it?
            try:
                connection.execute(f"SELECT count(f0) FROM ({_judging([entry], relation)})")
            except duckdb.Error as own:
                said = str(own).splitlines()[0]
                raise PairmillError(f"the rule {entry.rule.name!r}: {said}", "correct its keep_if") from None
        raise error
    passed = f"SELECT uid FROM judged_rows WHERE {_failures(asked)} = 0"
    connection.execute(f"CREATE OR REPLACE TEMP VIEW passed AS {passed}")
    files = {VERDICTS: _verdicts(asked), MEASURED: _measured(asked), **(more or {})}
    for suffix, query in files.items():
        with replacing(folder / f"{name}{suffix}") as path:
            write_parquet(connection, query, path)
    pairs = number(connection, "SELECT count(*) FROM judged_rows")
    kept = number(connection, "SELECT count(*) FROM passed")
    dropped = number(connection, f"SELECT count(*) FILTER (first) FROM {parquet([folder / f'{name}{VERDICTS}'])}")
    counts = {"pairs": pairs, "kept": kept, "dropped": dropped}
    return Shard.of(folder, name, key, [f"{name}{suffix}" for suffix in files], counts)


def described(asked: Sequence[Asked]) -> dict[str, Any]:
    """Rule -> threshold (a number, or null), setting (in words) and what it is about: for the view `rules`.

    JSON has no infinity: a cutoff that is infinite stands as "inf" or "-inf", which `float` reads as it reads a number.
    """
    return {
        entry.rule.name: {
            "threshold": _in_json(entry.cutoff) if isinstance(entry.cutoff, float) else None,
            "setting": entry.setting,
            "condition": entry.rule.condition,
            "takes": "sql" if hasattr(entry.threshold, "keep_if") else entry.rule.takes,
            "measure": entry.setting if hasattr(entry.threshold, "keep_if") else entry.rule.measure,
        }
        for entry in asked
    }


def _in_json(cutoff: float) -> float | str:
    return cutoff if math.isfinite(cutoff) else str(cutoff)


def check_account(manifest: Manifest) -> None:
    """Pairs judged = kept + dropped, or an AssertionError."""
    counts = manifest.counts()
    if counts["pairs"] != counts["kept"] + counts["dropped"]:
        raise AssertionError(f"the account of {manifest.stage} does not add up: {counts}")
