"""Near-duplicates as `filter` found them: pictures that look alike, the one that stays first."""

from dataclasses import dataclass

import duckdb

from pipeline.store.dataset import Dataset
from pipeline.store.views.duplicates import create_duplicates_view

CLUSTERS = 8
MEMBERS = 7


@dataclass(frozen=True)
class Member:
    """A picture that falls: in how many bits of its perceptual hash it differs from the one that stays."""

    key: str
    distance: int


@dataclass(frozen=True)
class Cluster:
    """`size`: how many distinct files look alike; the nearest of those that fall are `members`."""

    stays: str
    size: int
    members: list[Member]


@dataclass(frozen=True)
class Clusters:
    """The largest clusters, and how many files of how many clusters fall in all."""

    largest: list[Cluster]
    clusters: int
    fallen: int


def clusters(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> Clusters | None:
    """None where the recipe does not ask for near-duplicates, or there are none. Copies of a file count once."""
    create_duplicates_view(connection, dataset)
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE alike AS SELECT stays, min(key) AS key, any_value(distance) AS distance "
        "FROM duplicates JOIN (SELECT key, sha256 FROM images) USING (key) WHERE NOT same_bytes GROUP BY stays, sha256"
    )
    ((fallen, number),) = connection.execute("SELECT count(*), count(DISTINCT stays) FROM alike").fetchall()
    if not fallen:
        return None
    rows = connection.execute(
        f"""WITH largest AS (SELECT stays, count(*) AS fallen FROM alike GROUP BY stays
                             ORDER BY fallen DESC, stays LIMIT {CLUSTERS})
            SELECT stays, fallen, key, distance FROM alike JOIN largest USING (stays)
            QUALIFY row_number() OVER (PARTITION BY stays ORDER BY distance, key) <= {MEMBERS}
            ORDER BY fallen DESC, stays, distance, key"""
    ).fetchall()
    largest: dict[str, Cluster] = {}
    for stays, size, key, distance in rows:
        largest.setdefault(stays, Cluster(stays, size + 1, [])).members.append(Member(key, distance))
    return Clusters(list(largest.values()), number, fallen)
