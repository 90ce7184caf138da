"""Rows of open shards, as arrays: what a batch is read by."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.store.features.shard import FeatureShard


@dataclass(frozen=True)
class Rows:
    """Rows of open shards, as arrays with an entry a row: its shard (as a place in `shards`) and its place there, its
    key, its n, and the addresses at which its values of each column begin: (rows, columns)."""

    shards: tuple[FeatureShard, ...]
    shard: np.ndarray
    row: np.ndarray
    keys: np.ndarray
    n: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, shard: FeatureShard, rows: np.ndarray) -> "Rows":
        same = np.zeros(len(rows), np.int32)
        return cls((shard,), same, rows, shard.keys[rows], shard.n[rows], shard.places[rows])

    @classmethod
    def together(cls, parts: Sequence["Rows"]) -> "Rows":
        """One after another. Shards of which no row is left are let go."""
        used = [part.shards[place] for part in parts for place in np.unique(part.shard)]
        at = {shard: place for place, shard in enumerate(dict.fromkeys(used))}
        moved = [np.array([at.get(shard, -1) for shard in part.shards], np.int32)[part.shard] for part in parts]
        rest = [np.concatenate([getattr(part, name) for part in parts]) for name in ("row", "keys", "n", "places")]
        return cls(tuple(at), np.concatenate(moved), *rest)

    def __len__(self) -> int:
        return len(self.row)

    def at(self, places: np.ndarray | slice) -> "Rows":
        return Rows(
            self.shards,
            self.shard[places],
            self.row[places],
            self.keys[places],
            self.n[places],
            self.places[places],
        )
