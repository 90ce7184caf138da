"""Which items stand in which batch: a pure function of (seed, epoch), so that a resumed run needs no sampler state."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from pipeline.model_recipe import Batches
from trainers.data.samples import Samples
from trainers.loop.randomness import numpy_generator

MIXED_SHARDS = 64
"""Shards whose row groups are shuffled together; a feature store keeps twice as many open."""
POOL_BATCHES = 256
"""A pool holds about so many batches at least: fewer leave more padding, and no choice to a contrast."""
LARGEST_UNIT = 8
"""Large batches have a multiple of so many items: what kernels and ranks divide by."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step's place in the run and its items."""

    number: int
    source: int
    """Which of the run's sources; its samples are meant."""
    epoch: int
    """Of that source."""
    rows: np.ndarray
    """(B,) integers, places in the samples."""

    def part(self, rank: int, ranks: int) -> "Step":
        """A rank's share: as many of the rows as any other's, neighbours in the store.

        Where they cannot be divided, the last ranks take some that the rank before has as well.
        """
        share = -(-len(self.rows) // ranks)
        first = min(rank * share, len(self.rows) - share)
        return replace(self, rows=self.rows[first : first + share])


@dataclass(frozen=True, eq=False)
class Epoch:
    """The batches of an epoch of one source."""

    samples: Samples
    rows: np.ndarray
    """(n,) int32: the items, batch by batch, not yet in order of the run."""
    starts: np.ndarray
    """(batches,) int64: where in `rows` each batch begins, in order of the run."""
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, number: int) -> np.ndarray:
        """(B,) int32: a batch's items, in order of their place in the store."""
        return self.samples.in_order(self.rows[self.starts[number] : self.stops[number]])


def plan_epoch(samples: Samples, batches: Batches, seed: int, number: int) -> Epoch:
    """The plan of an epoch; every item, or every choice of items, stands in exactly one batch.

    Row groups are shuffled, among as many shards as can be open at once, and taken in pools, so that reading stays
    local; a pool's items are shuffled, cut into batches of like lengths (`bucketing`), and these shuffled.
    """
    from trainers.data.bucketing import divide  # compiled code, which takes a moment to load

    random = numpy_generator(seed, "epoch", number)
    items = np.arange(len(samples), dtype=np.int32) if samples.choices is None else _chosen(samples.choices, random)
    text, other = samples.lengths
    unit = _unit(samples, batches)
    starts, stops = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    bounds = np.empty(len(items), np.int64)
    first = 0
    pools = _pools(samples, items, batches, random)
    for pool in pools:
        random.shuffle(pool)
        count = divide(pool, text, other, batches.size or 0, batches.tokens or 0, unit, bounds)
        cuts = first + np.concatenate([[0], bounds[:count]])
        order = random.permutation(count)
        starts.append(cuts[order])
        stops.append(cuts[order + 1])
        first += len(pool)
    rows = np.concatenate([np.empty(0, np.int32), *pools])
    return Epoch(samples, rows, np.concatenate(starts), np.concatenate(stops))


def epoch_batches(samples: Samples, batches: Batches, seed: int, number: int) -> Iterator[np.ndarray]:
    """The batches of an epoch, each (B,) int32, in order."""
    epoch = plan_epoch(samples, batches, seed, number)
    return (epoch.batch(place) for place in range(len(epoch)))


def padding_share(samples: Samples, planned: Iterable[np.ndarray]) -> float:
    """Which part of the batches' positions is padding."""
    padded = filled = 0
    for rows in planned:
        for lengths in samples.lengths:
            padded += len(rows) * int(lengths[rows].max())
            filled += int(lengths[rows].sum())
    return 1 - filled / padded


def _chosen(choices: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One item of those with the same number, evenly drawn: (numbers,) int32."""
    by_choice = np.argsort(choices, kind="stable").astype(np.int32)
    counts = np.bincount(choices)
    counts = counts[counts > 0]
    drawn = np.cumsum(counts) - counts + (random.random(len(counts)) * counts).astype(np.int64)
    return by_choice[drawn]


def _pools(samples: Samples, items: np.ndarray, batches: Batches, random: np.random.Generator) -> list[np.ndarray]:
    """The items in pools of shuffled row groups."""
    group_of = samples.groups[items]
    there = np.flatnonzero(np.bincount(group_of, minlength=len(samples.shards)))
    if not len(there):
        return []
    place_of_shard = random.permutation(int(samples.shards.max()) + 1)
    order = there[np.lexsort((random.random(len(there)), place_of_shard[samples.shards[there]] // MIXED_SHARDS))]
    pools = round(len(order) / _groups_a_pool(samples, len(items) / len(there), batches)) or 1
    pool_of_group = np.empty(len(samples.shards), np.int32)
    pool_of_group[order] = np.arange(len(order)) * pools // len(order)
    pool_of = pool_of_group[group_of]
    # numpy sorts 16-bit integers in one sweep.
    by_pool = np.argsort(pool_of.astype(np.uint16) if pools <= 1 << 16 else pool_of, kind="stable")
    return np.split(items[by_pool], np.cumsum(np.bincount(pool_of))[:-1])


def _groups_a_pool(samples: Samples, items_a_group: float, batches: Batches) -> int:
    return max(batches.pool_groups, math.ceil(POOL_BATCHES * _items_a_batch(samples, batches) / items_a_group))


def _items_a_batch(samples: Samples, batches: Batches) -> int:
    """About."""
    text, other = samples.lengths
    return batches.size or int((batches.tokens or 0) / max(1.0, float(text.mean() + other.mean())))


def _unit(samples: Samples, batches: Batches) -> int:
    """Of what number of items batches have a multiple: the largest power of 2 up to `LARGEST_UNIT` that leaves them
    nearly equal, and a batch of `size` whole."""
    eighth = _items_a_batch(samples, batches) // 8
    return math.gcd(LARGEST_UNIT, batches.size or 0, 1 << max(0, eighth.bit_length() - 1))
