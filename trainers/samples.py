"""The pairs of a split as numbers: token sequences, images, lengths, and who is a true partner of whom.

A corpus has more pairs than a machine has room for Python objects: a pair is some hundred bytes in arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from pipeline.model_recipe import ModelRecipe
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from trainers.text import blocks, encode


@dataclass(frozen=True)
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
    with dataset.connect(memory_limit) as connection:
        query = "SELECT uid, text, key FROM kept WHERE split = ? ORDER BY uid"
        found = connection.sql(query, params=[split]).to_arrow_table()
    distinct = found["key"].unique().sort()
    there = pa.array(np.fromiter((key.as_py() in store for key in distinct), np.bool_, len(distinct)))
    kept = found.filter(pc.is_in(found["key"], distinct.filter(there)))
    keys, image_of = np.unique(_bytes(kept["key"]), return_inverse=True)
    texts = kept["text"].cast(pa.large_string()).combine_chunks()
    return Pairs(_bytes(kept["uid"]), texts, image_of.astype(np.int32), keys, len(found) - len(kept))


@dataclass(frozen=True)
class Samples:
    """Pairs made ready for batches."""

    uids: np.ndarray
    """(pairs,) bytes."""
    keys: np.ndarray
    """(images,) bytes, ascending."""
    image_of: np.ndarray
    """(pairs,) int32: each pair's place in `keys`."""
    image_lengths: np.ndarray
    """(pairs,) int32: how many vision positions of each pair's image a training step sees."""
    groups: np.ndarray
    """(pairs,) int32: numbers of the feature store's row groups, in its order."""
    tokens: np.ndarray
    """All pairs' tokens one after the other, [CLS] and [SEP] included."""
    starts: np.ndarray
    """(pairs + 1,) int64: where in `tokens` each pair's begin."""
    text_of: np.ndarray
    """(pairs,) int32: a number for each distinct token sequence. Texts that look the same to the model are the same."""
    images_of_texts: np.ndarray
    """(pairs,) int32: the images of text 0, those of text 1, ...; each text's ascending."""
    text_starts: np.ndarray
    """(texts + 1,) int64: where in `images_of_texts` each text's begin."""

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def text_lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def sequence(self, row: int) -> np.ndarray:
        """A pair's tokens."""
        return self.tokens[self.starts[row] : self.starts[row + 1]]

    def keys_of(self, rows: np.ndarray) -> list[str]:
        return [key.decode() for key in self.keys[self.image_of[rows]].tolist()]

    def partners(self, rows: np.ndarray) -> np.ndarray:
        """(B, B) bool for these pairs: [i, j] says that text i is, anywhere in the split, a text of image j."""
        images, texts = self.image_of[rows], self.text_of[rows]
        partners = images[:, None] == images
        for text in np.unique(texts[self.text_starts[texts + 1] - self.text_starts[texts] > 1]):
            theirs = self.images_of_texts[self.text_starts[text] : self.text_starts[text + 1]]
            partners[texts == text] = theirs[np.searchsorted(theirs, images).clip(max=len(theirs) - 1)] == images
        return partners


def prepare(pairs: Pairs, tokenizer: Tokenizer, recipe: ModelRecipe, store: FeatureStore) -> Samples:
    """Tokenise the pairs and look up what the batch plan needs; no feature is read."""
    dtype = np.min_scalar_type(tokenizer.get_vocab_size())
    sequences, lengths = [np.empty(0, dtype)], [np.empty(0, np.int64)]
    for block in blocks(pairs.texts):
        encoded = encode(tokenizer, block, recipe.text.max_tokens)
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        sequences.append(np.fromiter(chain.from_iterable(encoded), dtype))
    tokens = np.concatenate(sequences)
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    text_of = _numbered(tokens, starts)
    by_text = np.lexsort((pairs.image_of, text_of))
    seen = image_lengths(store, pairs.keys)
    if recipe.vision.sample:
        seen = seen.clip(max=recipe.vision.sample)
    places = np.fromiter(chain.from_iterable(store.place(key.decode()) for key in pairs.keys), np.int32)
    _, groups = np.unique(places.reshape(-1, 2), axis=0, return_inverse=True)
    return Samples(
        uids=pairs.uids,
        keys=pairs.keys,
        image_of=pairs.image_of,
        image_lengths=seen[pairs.image_of],
        groups=groups.astype(np.int32)[pairs.image_of],
        tokens=tokens,
        starts=starts,
        text_of=text_of,
        images_of_texts=pairs.image_of[by_text],
        text_starts=np.concatenate([[0], np.cumsum(np.bincount(text_of))]),
    )


def image_lengths(store: FeatureStore, keys: np.ndarray) -> np.ndarray:
    """How many regions, cells or patches each of these images has: (images,) int32; `keys` ascending bytes."""
    lengths = np.empty(len(keys), np.int32)
    place, wanted = 0, iter(keys)
    key_wanted = next(wanted, None)
    for key, n in store.lengths():
        if key.encode() == key_wanted:
            lengths[place] = n
            place, key_wanted = place + 1, next(wanted, None)
    return lengths


def _numbered(tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(pairs,) int32: a number for each distinct token sequence."""
    offsets = pa.py_buffer(np.ascontiguousarray(starts * tokens.itemsize, dtype=np.int64))
    sequences = pa.Array.from_buffers(pa.large_binary(), len(starts) - 1, [None, offsets, pa.py_buffer(tokens)])
    return np.asarray(sequences.dictionary_encode().indices, dtype=np.int32)


def _bytes(column: pa.ChunkedArray) -> np.ndarray:
    """A column of ASCII strings, 32 bytes a uid and not a Python object."""
    parts: Sequence[np.ndarray] = [np.array(chunk.to_pylist(), np.bytes_) for chunk in column.chunks]
    return np.concatenate([np.empty(0, "S1"), *parts])
