"""Samples of what was kept and of what fell out. Which pairs are shown depends on their uids alone."""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import duckdb

from pipeline.store.sql import literal

T = TypeVar("T")

SEED = "pairmill"
KEPT = 24
DROPPED = 8
QUARANTINED = 40
SPARE = 12
"""How many times more is drawn than shown, so that one text or picture need not be shown twice."""


@dataclass(frozen=True)
class Sample:
    """A pair. `key` is its picture's, where there is one; `value` what its rule measured, where it is about one.

    `content`: the digest of the picture's bytes, which copies have in common.
    """

    uid: str
    url: str
    text: str
    key: str | None = None
    split: str | None = None
    value: float | str | None = None
    content: str | None = None


KEPT_UIDS, KEPT_KEYS = "kept_uids", "kept_keys"


def look_up_kept(connection: duckdb.DuckDBPyConnection, has_images: bool) -> None:
    """Make the tables KEPT_UIDS (uid) and KEPT_KEYS (key): several parts of the page ask what is kept."""
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {KEPT_UIDS} AS SELECT uid FROM kept")
    if has_images:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {KEPT_KEYS} AS SELECT DISTINCT key FROM kept")


def order(column: str) -> str:
    """SQL to order by: as good as chance, and always the same."""
    return f"md5({column} || '{SEED}')"


def distinct(values: Iterable[T], by: Callable[[T], Hashable], limit: int) -> list[T]:
    """The first of each, at most `limit`."""
    first: dict[Hashable, T] = {}
    for value in values:
        first.setdefault(by(value), value)
    return list(first.values())[:limit]


def looks(stage: str) -> Callable[[Sample], str]:
    """What no two samples of a stage have in common: `screen` judges texts, `filter` pictures."""
    return lambda sample: sample.text if stage == "screen" else sample.content or sample.text


def kept(connection: duckdb.DuckDBPyConnection, has_images: bool) -> list[Sample]:
    """Some kept pairs, no two of the same picture."""
    columns = "uid, url, text, key, split" if has_images else "uid, url, text, NULL, NULL"
    rows = connection.execute(
        f"SELECT {columns} FROM kept ORDER BY {order('uid')}, uid LIMIT {KEPT * SPARE}"
    ).fetchall()
    return distinct((Sample(*row) for row in rows), lambda sample: sample.key or sample.uid, KEPT)


def dropped(
    connection: duckdb.DuckDBPyConnection, has_images: bool, rules: Collection[tuple[str, str]]
) -> dict[tuple[str, str], list[Sample]]:
    """(stage, rule) -> some pairs that fell out there first, with their pictures where those are there."""
    if not rules:
        return {}
    draws = [
        f"(FROM drops WHERE stage = {literal(stage)} AND rule = {literal(rule)} "
        f"ORDER BY {order('uid')}, uid LIMIT {DROPPED * SPARE})"
        for stage, rule in rules
    ]
    there = "SELECT url, key, sha256 FROM images WHERE status = 'ok'"
    join = f"LEFT JOIN ({there}) AS images USING (url)" if has_images else ""
    key = "images.key, images.sha256" if has_images else "NULL, NULL"
    rows = connection.execute(
        f"""WITH drawn AS MATERIALIZED ({" UNION ALL ".join(draws)})
            SELECT stage, rule, uid, url, text, {key}, value, detail
            FROM drawn JOIN (SELECT uid, url, text FROM pairs) AS pairs USING (uid) {join}
            ORDER BY {order("uid")}, uid"""
    ).fetchall()
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for stage, rule, uid, url, text, image, content, value, detail in rows:
        groups[stage, rule].append(Sample(uid, url, text, image, value=detail or value, content=content))
    return {rule: distinct(group, looks(rule[0]), DROPPED) for rule, group in groups.items()}


def quarantine(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int, str]]:
    """(reason, rows, the content of one of them), most frequent reason first."""
    return connection.execute(
        "SELECT reason, count(*), arg_min(content, md5(file || row)) FROM quarantine GROUP BY reason "
        f"ORDER BY 2 DESC, 1 LIMIT {QUARANTINED}"
    ).fetchall()
