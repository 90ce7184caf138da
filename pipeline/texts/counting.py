"""How often does a key occur in the whole corpus? Asked for every occurrence, out of core, by hash partition.

Three steps, each a map over independent tasks that meet in a folder:

1. `Count.add` sums up one block of keys: its distinct keys with their numbers, ordered by partition (a partition is a
   range of hashes), and for every occurrence the place of its key among them.
2. `Count.merge`, one task a group of neighbouring partitions, adds up over the blocks what falls into the group, and
   writes for every block's distinct keys how often they occur in the corpus.
3. `Count.frequencies` brings them back to the occurrences of one block, in their order.

Memory is set by a block in steps 1 and 3 and by a group in step 2. A key that everybody has is one entry a block, so no
partition can outgrow the others by much. A finished task leaves a file under its final name and is not done again.
The files are scratch: they are not flushed to the disk, and one that a power cut left short is taken as not there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.store.arrays import INTEGER, Arrays, is_whole, write_arrays

_PER_PARTITION = 1 << 17
"""Entries (distinct keys of a block, over all blocks) that a partition should have: its table then fits the cache."""
_MOST_PARTITIONS = 1024
"""More would cut a block into slices too small to read fast; beyond a billion pairs the partitions grow instead."""
_PER_GROUP = 1 << 23
"""Entries that a group should have; 12 bytes each are in memory at once."""

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_KEY, _NUMBER = np.dtype("<u8"), np.dtype("<u4")
_MOST = 2**32 - 1
_RARE = 4096
"""Frequencies below this are tallied in a table, the few above it one by one."""


@dataclass(frozen=True)
class Histogram:
    """How many distinct keys occur how often: `distinct[i]` keys `frequency[i]` times each, the rarest first."""

    frequency: NDArray[np.uint32]
    distinct: NDArray[np.int64]

    def ranks(self, frequencies: NDArray[np.uint32]) -> NDArray[np.int64]:
        """1 + the number of distinct keys that are more frequent, so that equals share a rank."""
        not_rarer = np.append(np.cumsum(self.distinct[::-1])[::-1], 0)
        return 1 + not_rarer[np.searchsorted(self.frequency, frequencies, side="right")]


@dataclass(frozen=True)
class Count:
    """The count of one kind of key over a corpus. `folder` is its own; whoever made it deletes it at the end."""

    folder: Path
    partitions: int
    """A power of two."""
    groups: int
    """How many merge tasks there are; divides `partitions`."""

    @classmethod
    def of(cls, folder: Path, occurrences: int) -> "Count":
        """A count laid out for about so many keys, repeated ones included; the same number gives the same layout."""
        entries = occurrences // 2  # what is left of a web corpus' words and pairs when each block is summed up
        partitions = _power_of_two(entries // _PER_PARTITION, _MOST_PARTITIONS)
        return cls(folder, partitions, _power_of_two(entries // _PER_GROUP, partitions))

    @property
    def tasks(self) -> list[str]:
        """Names of the merge tasks: `engine.map(count.merge, count.tasks, label)`."""
        return [f"{group:05d}" for group in range(self.groups)]

    def has(self, block: str) -> bool:
        """Whether `add` has finished for this block."""
        return is_whole(self._block(block))

    def add(self, block: str, keys: NDArray[np.uint64]) -> None:
        """Step 1: sum up the keys of one block, which may be empty. The caller names the blocks."""
        if self.has(block):
            return
        starts, distinct, numbers, places = _sum_up(np.ascontiguousarray(keys, np.uint64), self.partitions)
        write_arrays(self._block(block), starts, distinct, numbers, places)

    def merge(self, task: str) -> None:
        """Step 2, when all blocks are added: add up one group of partitions over all blocks."""
        path = self._group(task)
        if is_whole(path):
            return
        width = self.partitions // self.groups
        first = int(task) * width
        names = sorted(block.stem for block in self.folder.glob("*.block"))
        blocks = [Arrays(self._block(name)) for name in names]
        # Where each partition of the group starts: in each block's file, and in the group, block after block.
        in_file = [block.read(0, INTEGER, first, first + width + 1) for block in blocks]
        ends = np.cumsum([0, *(own[-1] - own[0] for own in in_file)], dtype=np.int64)
        starts = np.array([own - own[0] + end for own, end in zip(in_file, ends[:-1], strict=True)], np.int64)
        keys, numbers = np.empty(ends[-1], np.uint64), np.empty(ends[-1], np.uint32)
        for row, (block, own) in enumerate(zip(blocks, in_file, strict=True)):
            keys[ends[row] : ends[row + 1]] = block.read(1, _KEY, own[0], own[-1])
            numbers[ends[row] : ends[row + 1]] = block.read(2, _NUMBER, own[0], own[-1])
        tally, frequent = _add_up(keys, numbers, starts.reshape(len(blocks), width + 1), self.partitions)
        rare = np.flatnonzero(tally)
        frequent, distinct = np.unique(frequent, return_counts=True)
        write_arrays(
            path,
            ends,
            numbers,
            np.concatenate([rare, frequent]).astype(INTEGER),
            np.concatenate([tally[rare], distinct]).astype(INTEGER),
            np.frombuffer("\n".join(names).encode(), np.uint8),
        )

    def histogram(self) -> Histogram:
        """How many distinct keys occur how often, when all groups are merged."""
        groups = [Arrays(self._group(task)) for task in self.tasks]
        frequency, which = np.unique(np.concatenate([group.read(2, INTEGER) for group in groups]), return_inverse=True)
        distinct = np.zeros(len(frequency), np.int64)
        np.add.at(distinct, which, np.concatenate([group.read(3, INTEGER) for group in groups]))
        return Histogram(frequency.astype(np.uint32), distinct)

    def frequencies(self, block: str) -> NDArray[np.uint32]:
        """Step 3, when all groups are merged: how often each key of a block is in the corpus, in the order given."""
        groups = [Arrays(self._group(task)) for task in self.tasks]
        names = groups[0].read(4, np.dtype(np.uint8)).tobytes().decode().split("\n")
        row = names.index(block)
        pieces = []
        for group in groups:
            start, end = group.read(0, INTEGER, row, row + 2)
            pieces.append(group.read(1, _NUMBER, start, end))
        found: NDArray[np.uint32] = np.concatenate(pieces)[Arrays(self._block(block)).read(3, _NUMBER)]
        return found

    def _block(self, name: str) -> Path:
        return self.folder / f"{name}.block"

    def _group(self, task: str) -> Path:
        return self.folder / f"{task}.group"


def _power_of_two(at_least: int, at_most: int) -> int:
    return min(1 << max(0, at_least - 1).bit_length(), at_most)


@njit(cache=True, nogil=True)
def _slots_for(entries: Any) -> Any:
    """Bits that number the slots of a table at most half full."""
    bits = 4
    while (1 << bits) < 2 * entries:
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _bits_of(power: Any) -> Any:
    bits = 0
    while (1 << bits) < power:
        bits += 1
    return np.uint64(bits)


@njit(cache=True, nogil=True)
def _sum_up(keys: Any, partitions: Any) -> Any:
    """A block's distinct keys by partition.

    Returns where each partition starts (partitions + 1), its distinct keys and how often each is in the block, and
    for every key given the place of its like among the distinct ones.
    """
    n = len(keys)
    bits = _bits_of(partitions)
    below = np.uint64(63) - bits
    cursors: Any = np.zeros(partitions + 1, np.int64)
    for key in keys:
        cursors[np.int64((key * _SPREAD) >> np.uint64(1) >> below) + 1] += 1
    cursors = np.cumsum(cursors)
    bounds = cursors.copy()
    ordered = np.empty(n, np.uint64)
    for key in keys:
        home = np.int64((key * _SPREAD) >> np.uint64(1) >> below)
        ordered[cursors[home]] = key
        cursors[home] += 1

    starts = np.zeros(partitions + 1, np.int64)
    distinct = np.empty(n, np.uint64)
    numbers = np.empty(n, np.uint32)
    ordered_places = np.empty(n, np.uint32)
    largest: Any = 0
    for partition in range(partitions):
        largest = max(largest, bounds[partition + 1] - bounds[partition])
    slots: Any = np.empty(1 << _slots_for(largest), np.int64)
    used = 0
    for partition in range(partitions):
        first, end = bounds[partition], bounds[partition + 1]
        slot_bits = _slots_for(end - first)
        beside, mask = np.uint64(64 - slot_bits), (1 << slot_bits) - 1
        slots[: mask + 1] = -1
        for at in range(first, end):
            key = ordered[at]
            slot = np.int64((key * _SPREAD) << bits >> beside)
            while slots[slot] >= 0 and distinct[slots[slot]] != key:
                slot = (slot + 1) & mask
            place: Any = slots[slot]
            if place < 0:
                slots[slot] = place = used
                distinct[place] = key
                numbers[place] = 0
                used += 1
            numbers[place] += np.uint32(1)
            ordered_places[at] = place
        starts[partition + 1] = used

    places = np.empty(n, np.uint32)
    cursors = bounds
    for at in range(n):
        home = np.int64((keys[at] * _SPREAD) >> np.uint64(1) >> below)
        places[at] = ordered_places[cursors[home]]
        cursors[home] += 1
    return starts, distinct[:used], numbers[:used], places


@njit(cache=True, nogil=True)
def _add_up(keys: Any, numbers: Any, starts: Any, partitions: Any) -> Any:
    """Replace each entry's number by the sum of those with its key.

    `starts[b, p]` is where partition p of block b begins. Returns how many distinct keys have each frequency below
    `_RARE`, and the frequencies of the others, one by one.
    """
    blocks, width = starts.shape[0], starts.shape[1] - 1
    bits = _bits_of(partitions)
    tally = np.zeros(_RARE, np.int64)
    frequent: Any = np.empty(16, np.int64)
    many: Any = 0
    largest: Any = 0
    for partition in range(width):
        entries = (starts[:, partition + 1] - starts[:, partition]).sum()
        largest = max(largest, entries)
    table_keys = np.empty(1 << _slots_for(largest), np.uint64)
    sums: Any = np.empty(len(table_keys), np.int64)
    slot_of = np.empty(largest, np.uint32)
    for partition in range(width):
        entries = (starts[:, partition + 1] - starts[:, partition]).sum()
        slot_bits = _slots_for(entries)
        beside, mask = np.uint64(64 - slot_bits), (1 << slot_bits) - 1
        sums[: mask + 1] = 0
        entry = 0
        for block in range(blocks):
            for at in range(starts[block, partition], starts[block, partition + 1]):
                key = keys[at]
                slot = np.int64((key * _SPREAD) << bits >> beside)
                while sums[slot] and table_keys[slot] != key:
                    slot = (slot + 1) & mask
                table_keys[slot] = key
                sums[slot] += numbers[at]
                slot_of[entry] = slot
                entry += 1
        entry = 0
        for block in range(blocks):
            for at in range(starts[block, partition], starts[block, partition + 1]):
                numbers[at] = min(sums[slot_of[entry]], _MOST)
                entry += 1
        for total in sums[: mask + 1]:
            if 0 < total < _RARE:
                tally[total] += 1
            elif total:
                if many == len(frequent):
                    room = np.empty(2 * many, np.int64)
                    room[:many] = frequent
                    frequent = room
                frequent[many] = min(total, _MOST)
                many += 1
    return tally, frequent[:many]
