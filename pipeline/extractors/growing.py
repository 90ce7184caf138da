"""Shards of features that grow: old rows are copied, as they are on the disk, and new ones come between them."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from heapq import merge
from pathlib import Path
from typing import Any

from pipeline.store.features import SCALES, Column, FeatureStore, FeatureWriter, ImageFeatures
from pipeline.store.table import Manifest, Shard, ShardFile, Table


class _OneFile(Table):
    """A file of features that no manifest vouches for as yet, as a table of its own."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        super().__init__(path.parent, "extract")
        self._shard = Shard(path.stem, "", (ShardFile(path.name, path.stat().st_size, ""),))
        self._identity = dict(identity)

    @property
    def manifest(self) -> Manifest:
        return Manifest("extract", "", "", (self._shard,), {"identity": self._identity}, 0.0)


def read_features(path: Path, identity: Mapping[str, Any]) -> FeatureStore:
    """One file of features. Raises PairmillError where it is damaged, or of another identity."""
    return FeatureStore(_OneFile(path, identity))


def merge_features(path: Path, parts: Iterable[FeatureStore]) -> int:
    """Write the rows of all `parts`, which share no key, in order of key to `path`; returns how many."""
    parts = list(parts)
    identity, columns = parts[0].identity, parts[0].columns
    rows = merge(*([(key, at) for key in part.keys()] for at, part in enumerate(parts)))  # noqa: SIM118
    # As they are stored: quantised anew, the scales of an int8 column may differ in their last bit.
    stored: dict[str, Column] = {}
    for name, column in columns.items():
        stored[name] = replace(column, dtype="uint8") if column.quantised else column
        if column.quantised:
            stored[name + SCALES] = Column("float32", column.shape[:-1])
    with FeatureWriter(path, stored, identity) as writer:
        for key, at in rows:
            found = parts[at].gather([key])
            arrays = {name: found[name][0].view(column.dtype) for name, column in stored.items()}
            writer.add(ImageFeatures(key, int(found.n[0]), arrays))
    return writer.rows
