"""What batches are made of, as numbers: token sequences, images, lengths, and who is a true partner of whom.

A corpus has more items than a machine has room for Python objects: an item is some hundred bytes in arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.dataset import Dataset
from pipeline.store.features import ROWS_PER_GROUP, FeatureStore
from trainers.data.sequences import Sequences
from trainers.data.text import Pieces


@dataclass(frozen=True, eq=False)
class Catalogue:
    """A feature store's images, in order of key, which is their order in its files."""

    keys: np.ndarray
    """(images,) bytes, ascending."""
    lengths: np.ndarray
    """(images,) int32: how many positions each has."""
    groups: np.ndarray
    """(images,) int32: the row group of each, numbered through the whole store."""
    shards: np.ndarray
    """(groups,) int32: the shard of each row group."""

    @classmethod
    def of(cls, store: FeatureStore) -> "Catalogue":
        """Opens each shard once and reads no feature."""
        keys, lengths = [np.empty(0, "S1")], [np.empty(0, np.int32)]
        groups, shards = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        first = 0
        for number, shard in enumerate(store.shards()):
            keys.append(shard.keys)
            lengths.append(shard.n.astype(np.int32))
            groups.append(first + np.arange(len(shard), dtype=np.int32) // ROWS_PER_GROUP)
            shards.append(np.full(shard.groups, number, np.int32))
            first += shard.groups
        return cls(*(np.concatenate(parts) for parts in (keys, lengths, groups, shards)))

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Places of these keys (n,) bytes: (n,) int32, -1 for one that is not there."""
        at = np.searchsorted(self.keys, keys).astype(np.int32)
        inside = at < len(self)
        inside[inside] = self.keys[at[inside]] == keys[inside]
        return np.where(inside, at, np.int32(-1))


@dataclass(frozen=True, eq=False)
class Pairs:
    """The kept pairs of a split whose image has features, in order of uid."""

    uids: np.ndarray
    """(pairs,) bytes, 32 hexadecimal digits."""
    texts: pa.LargeStringArray
    """(pairs,)"""
    image_of: np.ndarray
    """(pairs,) int32: each pair's image, as a place in `keys`."""
    keys: np.ndarray
    """(images,) bytes: the distinct images' keys, ascending."""
    without_features: int
    """How many kept pairs of the split are not here, because their image has no features."""

    def __len__(self) -> int:
        return len(self.uids)


def read_pairs(dataset: Dataset, store: FeatureStore, split: str, memory_limit: str) -> Pairs:
    """The pairs of `split` ("train", "validation" or "test"); there may be none."""
    return pairs_in(dataset, [Catalogue.of(store)], split, memory_limit)


def pairs_in(dataset: Dataset, catalogues: Sequence[Catalogue], split: str, memory_limit: str) -> Pairs:
    """The pairs of a split whose image is in all of these catalogues."""
    with dataset.connect(memory_limit) as connection:
        query = "SELECT uid, text, key FROM kept WHERE split = ? ORDER BY uid"
        found = connection.sql(query, params=[split]).to_arrow_table()
    keys, image_of = np.unique(byte_strings(found["key"]), return_inverse=True)
    there = np.ones(len(keys), bool)
    for catalogue in catalogues:
        there &= catalogue.find(keys) >= 0
    kept = there[image_of]
    places = np.cumsum(there, dtype=np.int32) - 1
    texts = found["text"].cast(pa.large_string()).combine_chunks().filter(pa.array(kept))
    uids = byte_strings(found["uid"])[kept]
    return Pairs(uids, texts, places[image_of[kept]], keys[there], len(found) - len(uids))


@dataclass(frozen=True, eq=False)
class Partners:
    """Which items belong together, by the numbers of their two sides, such as text and image."""

    first: np.ndarray
    """(items,) int32: a number for each distinct first side. Texts that look the same to the model are the same."""
    second: np.ndarray
    """(items,) int32: the same for the second."""

    @cached_property
    def _seconds(self) -> np.ndarray:
        """Second sides of the first side 0, those of 1, ...; each one's ascending."""
        ordered: np.ndarray = self.second[np.lexsort((self.second, self.first))]
        return ordered

    @cached_property
    def _starts(self) -> np.ndarray:
        """(first sides + 1,) int64: where in `_seconds` each one's begin."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.first))])

    def among(self, rows: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
        """(B, A) bool for these items and `others`, by default the same.

        [i, j] says that i's first side is, anywhere in the split, with j's second.
        """
        first, second = self.first[rows], self.second[rows if others is None else others]
        partners = self.second[rows][:, None] == second
        for number in np.unique(first[self._starts[first + 1] - self._starts[first] > 1]):
            theirs = self._seconds[self._starts[number] : self._starts[number + 1]]
            partners[first == number] = theirs[np.searchsorted(theirs, second).clip(max=len(theirs) - 1)] == second
        return partners


@dataclass(frozen=True, eq=False)
class Samples:
    """Items made ready for batches: texts with their images, with their translations, or one of these alone."""

    uids: np.ndarray
    """(items,) bytes: the pair's uid, the image's key, or the file and row that a text comes from."""
    pieces: Pieces
    partners: Partners
    texts: Sequences | None = None
    """Each item's tokens, [CLS] and [SEP] included."""
    translations: Sequences | None = None
    images: Catalogue | None = None
    image_of: np.ndarray | None = None
    """(items,) int32: each item's place in `images`."""
    tags: Sequences | None = None
    """The object tags of each of `images`, closed by [SEP]."""
    sample: int = 0
    """How many of an image's positions a training step sees; 0 is all."""
    choices: np.ndarray | None = None
    """(items,) int32: an epoch sees one item of those with the same number; None: all of them."""

    def __len__(self) -> int:
        return len(self.uids)

    @cached_property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Two of (items,) int32: what a batch pads apart, texts with their tags, and images or translations."""
        text = other = np.zeros(len(self), np.int32)
        if self.texts:
            text = self.texts.lengths.astype(np.int32)
        if self.translations:
            other = self.translations.lengths.astype(np.int32)
        if self.images:
            other = self.images.lengths[self.image_of]
            other = other.clip(max=self.sample) if self.sample else other
            if self.tags:
                text = text + self.tags.lengths.astype(np.int32)[self.image_of]
        return np.ascontiguousarray(text), np.ascontiguousarray(other)

    @cached_property
    def groups(self) -> np.ndarray:
        """(items,) int32: which lie side by side: the feature store's row groups, or neighbours where there is none."""
        if self.images is None:
            return np.arange(len(self), dtype=np.int32) // ROWS_PER_GROUP
        groups: np.ndarray = self.images.groups[self.image_of]
        return groups

    @property
    def shards(self) -> np.ndarray:
        """(groups,) int32: the shard of each of `groups`."""
        return np.zeros(-(-len(self) // ROWS_PER_GROUP), np.int32) if self.images is None else self.images.shards

    def keys_of(self, rows: np.ndarray) -> list[str]:
        """The keys of the images of these items."""
        assert self.images is not None
        assert self.image_of is not None
        return [key.decode() for key in self.images.keys[self.image_of[rows]].tolist()]

    def in_order(self, rows: np.ndarray) -> np.ndarray:
        """The rows in order of their place in the feature store, or in the corpus."""
        ordered: np.ndarray = np.sort(rows)
        return ordered if self.image_of is None else ordered[np.argsort(self.image_of[ordered], kind="stable")]


def byte_strings(column: pa.ChunkedArray) -> np.ndarray:
    """A column of ASCII strings without nulls as numpy's bytes: no Python object is made."""
    parts = [np.empty(0, "S1")]
    for chunk in column.chunks:
        width = pc.max(pc.binary_length(chunk)).as_py() or 1
        padded = pc.ascii_rpad(chunk.cast(pa.large_string()), width, padding="\0")
        offsets, content = padded.buffers()[1:]
        first = np.frombuffer(offsets, np.int64, 1, padded.offset * 8)[0] if len(padded) else 0
        parts.append(np.frombuffer(content or b"", f"S{width}", len(padded), int(first)))
    return np.concatenate(parts)
