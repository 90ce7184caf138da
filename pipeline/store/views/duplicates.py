"""The view over pictures that are one: files of the same bytes, and near-duplicates by perceptual hash.

Of each group one picture stays, and what falls to it takes nothing else down (`pipeline.signals.duplicates`): a group
is one that stays and those that fell to it.
"""

from typing import TYPE_CHECKING

import duckdb

from pipeline.store.sql import parquet

if TYPE_CHECKING:
    from pipeline.store.dataset import Dataset

NEAR = "duplicate_distance"
"""The measure by which near-duplicates were looked for."""
_NO_NEAR = f"SELECT NULL::VARCHAR AS key, NULL::INTEGER AS {NEAR}, NULL::VARCHAR AS duplicate_of WHERE false"


def create_duplicates_view(connection: duckdb.DuckDBPyConnection, dataset: "Dataset") -> None:
    """`duplicates`, once there are images. Near-duplicates are in it while a rule of `filter` asks for them."""
    if not dataset.images.exists:
        return
    found = dataset.signals("duplicates", "filter")
    rules = dataset.filtered.manifest.info["rules"].values() if dataset.filtered.exists else ()
    looked_for = found.exists and any(NEAR in said["measure"] for said in rules)
    near = f"FROM {parquet(found.paths('.parquet'))}" if looked_for else _NO_NEAR
    connection.execute(
        f"""CREATE OR REPLACE VIEW duplicates AS
            WITH stored AS (SELECT key, sha256 FROM images WHERE status = 'ok'), near AS ({near})
            SELECT stored.key, contents.key AS stays, coalesce({NEAR}, 0)::INTEGER AS distance,
                   best.sha256 IS NULL AS same_bytes
            FROM stored LEFT JOIN near USING (key) LEFT JOIN stored AS best ON best.key = duplicate_of
                 JOIN contents ON contents.sha256 = coalesce(best.sha256, stored.sha256)
            WHERE stored.key <> contents.key"""
    )
