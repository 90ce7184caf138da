"""Samples of what was kept and of what fell out. Which pairs are shown depends on their uids alone."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import duckdb

T = TypeVar("T")

SEED = "pairmill"
KEPT = 24
DROPPED = 8
URLS = 4
SPARE = 12
"""How many times more is drawn than shown, so that one text or picture need not be shown twice."""


@dataclass(frozen=True)
class Sample:
    """A pair. `key` is its picture's, where there is one; `value` what its rule measured, where it fell out."""

    uid: str
    url: str
    text: str
    key: str | None = None
    split: str | None = None
    value: float | str | None = None


@dataclass(frozen=True)
class Failure:
    """A cause of failed downloads: how many urls, and some of them."""

    urls: int
    examples: list[str]


def _order(column: str) -> str:
    return f"md5({column} || '{SEED}')"


def _distinct(values: Iterable[T], by: Callable[[T], Hashable], limit: int) -> list[T]:
    """The first of each, at most `limit`."""
    first: dict[Hashable, T] = {}
    for value in values:
        first.setdefault(by(value), value)
    return list(first.values())[:limit]


def kept(connection: duckdb.DuckDBPyConnection, has_images: bool) -> list[Sample]:
    """Some kept pairs, no two of the same picture."""
    columns = "uid, url, text, key, split" if has_images else "uid, url, text, NULL, NULL"
    rows = connection.execute(
        f"SELECT {columns} FROM kept ORDER BY {_order('uid')}, uid LIMIT {KEPT * SPARE}"
    ).fetchall()
    return _distinct((Sample(*row) for row in rows), lambda sample: sample.key or sample.uid, KEPT)


def dropped(connection: duckdb.DuckDBPyConnection, has_images: bool) -> dict[tuple[str, str], list[Sample]]:
    """(stage, rule) -> some pairs that fell out there first: of `screen` by text, of `filter` with their pictures."""
    join = "LEFT JOIN images USING (url)" if has_images else ""
    key = "images.key" if has_images else "NULL"
    rows = connection.execute(
        f"""SELECT drawn.stage, drawn.rule, pairs.uid, pairs.url, pairs.text, {key}, drawn.value, drawn.detail
            FROM (FROM drops WHERE stage IN ('screen', 'filter')
                  QUALIFY row_number() OVER (PARTITION BY stage, rule ORDER BY {_order("uid")}, uid)
                          <= {DROPPED * SPARE}) drawn
            JOIN rules USING (stage, rule) JOIN pairs USING (uid) {join}
            ORDER BY rules.position, {_order("uid")}, uid"""
    ).fetchall()
    groups: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for stage, rule, uid, url, text, image, value, detail in rows:
        groups[stage, rule].append(Sample(uid, url, text, image if stage == "filter" else None, None, detail or value))
    return {
        (stage, rule): _distinct(group, lambda sample: sample.key or sample.text, DROPPED)
        for (stage, rule), group in groups.items()
    }


def failures(connection: duckdb.DuckDBPyConnection) -> dict[str, Failure]:
    """Cause -> the urls that failed by it, most frequent cause first."""
    causes = connection.execute(
        "SELECT status, count(*) FROM images WHERE status <> 'ok' GROUP BY status ORDER BY 2 DESC, 1"
    ).fetchall()
    found = {}
    for cause, urls in causes:
        examples = connection.execute(
            f"SELECT url FROM images WHERE status = ? ORDER BY {_order('url')}, url LIMIT {URLS}", [cause]
        ).fetchall()
        found[cause] = Failure(urls, [url for (url,) in examples])
    return found


def quarantine(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, int, str]]:
    """(reason, rows, the content of one of them), most frequent reason first."""
    return connection.execute(
        "SELECT reason, count(*), arg_min(content, md5(file || row)) FROM quarantine GROUP BY reason ORDER BY 2 DESC, 1"
    ).fetchall()
