"""Groups of pictures that are one: files of the same bytes, and near-duplicates by perceptual hash.

`filter` keeps one picture of each group, the largest, and writes for every other one of which it is a near-duplicate
(`signals/duplicates`). What falls takes nothing else down, so that a group is one that stays and those that fell to it.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.store.dataset import Dataset
from pipeline.store.sql import parquet

REMEDY = (
    "Near-duplicates have not been looked for: files of the same bytes are all that is shown. Add near_duplicates = 4 "
    "(bits of 64) under [filter.rules] of the recipe and run make filter."
)


def near_files(dataset: Dataset) -> list[Path]:
    """Where the near-duplicates stand; nothing where they were not looked for."""
    table = dataset.signals("duplicates", "filter")
    return [path.resolve() for path in table.paths(".parquet")] if table.exists else []


_NO_NEAR = "SELECT NULL::VARCHAR AS key, NULL::INTEGER AS duplicate_distance, NULL::VARCHAR AS duplicate_of WHERE false"


def _members(near: Sequence[Path]) -> str:
    """SQL of (key, "group", distance, stays): each picture, and the content of that which stays in its place."""
    edges = f"FROM {parquet(near)}" if near else _NO_NEAR
    return (
        f"WITH near AS ({edges}), stored AS (SELECT key, sha256 FROM images WHERE status = 'ok') "
        'SELECT key, coalesce(stays.sha256, stored.sha256) AS "group", '
        "coalesce(duplicate_distance, 0) AS distance, stays.sha256 IS NULL AS stays "
        "FROM stored LEFT JOIN near USING (key) LEFT JOIN stored AS stays ON stays.key = duplicate_of"
    )


def groups_query(near: Sequence[Path]) -> str:
    """SQL of ("group", pictures, groups, fell): groups of two and more, the largest first; parameters LIMIT, OFFSET.

    `groups` is the number of all of them, `fell` that of all the pictures that another one stands for.
    """
    return (
        'SELECT "group", count(*) AS pictures, count(*) OVER () AS "groups", (sum(count(*)) OVER () - count(*) OVER ())'
        f'::BIGINT AS fell FROM ({_members(near)}) GROUP BY "group" HAVING count(*) > 1 '
        'ORDER BY pictures DESC, "group" LIMIT ? OFFSET ?'
    )


def pictures_query(near: Sequence[Path]) -> str:
    """SQL of ("group", key, distance, stays) of a list of groups, its parameter: in each, what stays comes first.

    `distance` in bits of 64; 0 and `stays` for files of the same bytes as that which stays. At most MOST of a group.
    """
    return (
        f'SELECT * FROM ({_members(near)}) WHERE "group" IN (FROM unnest(?)) '
        f'QUALIFY row_number() OVER (PARTITION BY "group" ORDER BY stays DESC, distance, key) <= {MOST} '
        'ORDER BY "group", stays DESC, distance, key'
    )


MOST = 40
"""Pictures shown of a group."""
