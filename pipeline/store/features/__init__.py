"""The feature store: one Parquet file an image shard, one row an image, read into batches with one copy.

store = FeatureStore.open("data/demo", "region")
store.identity["model"], len(store), "000000007" in store
store["000000007"]["boxes"]                                   # (n, 4)
for batch in store.stream(64, columns=["features", "boxes"], where="split = 'train'", seed=0):
    batch["features"]                                         # (64, longest n, D)
"""

from pipeline.store.features.columns import (
    SCALES,
    Column,
    ImageFeatures,
    NotFiniteError,
    identity_digest,
)
from pipeline.store.features.store import FeatureStore, Padded
from pipeline.store.features.writing import ROWS_PER_GROUP, FeatureWriter, write_features

__all__ = [
    "ROWS_PER_GROUP",
    "SCALES",
    "Column",
    "FeatureStore",
    "FeatureWriter",
    "ImageFeatures",
    "NotFiniteError",
    "Padded",
    "identity_digest",
    "write_features",
]
