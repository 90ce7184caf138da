"""The pairs of a split as numbers: token sequences, image keys, lengths, and who is a true partner of whom."""

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipeline.errors import PairmillError
from pipeline.model_recipe import ModelRecipe
from pipeline.store.atomic import digest
from pipeline.store.dataset import Dataset
from pipeline.store.features import FeatureStore
from pipeline.store.table import Table
from trainers.embeddings import FeatureShape
from trainers.text import encode

STATISTICS_IMAGES = 4096
"""From how many images at most the features' mean and deviation are taken."""


@dataclass(frozen=True)
class Pairs:
    """The kept pairs of a split whose image has features, in order of uid. All three are equally long."""

    uids: tuple[str, ...]
    texts: tuple[str, ...]
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.uids)


def read_pairs(dataset: Dataset, store: FeatureStore, split: str, memory_limit: str) -> Pairs:
    """The pairs of `split` ("train", "validation" or "test"); there may be none."""
    with dataset.connect(memory_limit) as connection:
        query = "SELECT uid, text, key FROM kept WHERE split = ? ORDER BY uid"
        rows = [row for row in connection.execute(query, [split]).fetchall() if row[2] in store]
    return Pairs(tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(row[2] for row in rows))


@dataclass(frozen=True)
class Samples:
    """Pairs made ready for batches."""

    pairs: Pairs
    tokens: list[tuple[int, ...]]
    """Each pair's tokens, [CLS] and [SEP] included."""
    image_lengths: np.ndarray
    """(pairs,) how many vision positions each pair's image has."""
    groups: list[tuple[int, int]]
    """Each pair's (shard, row group) in the feature store."""
    images_of: dict[tuple[int, ...], frozenset[str]]
    """Token sequence -> the keys of all images that have it: texts that look the same to the model are the same."""

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def text_lengths(self) -> np.ndarray:
        return np.array([len(sequence) for sequence in self.tokens])

    def partners(self, rows: list[int]) -> np.ndarray:
        """(B, B) bool for these pairs: [i, j] says that text i is a text of image j."""
        keys = [self.pairs.keys[row] for row in rows]
        return np.array(
            [[key in images for key in keys] for images in (self.images_of[self.tokens[row]] for row in rows)]
        )


def prepare(
    pairs: Pairs, tokenizer: Tokenizer, recipe: ModelRecipe, store: FeatureStore, lengths: dict[str, int]
) -> Samples:
    """Tokenise the pairs and look up what the batch plan needs; `lengths` as from `image_lengths`."""
    tokens = encode(tokenizer, pairs.texts, recipe.text.max_tokens)
    images_of: dict[tuple[int, ...], set[str]] = {}
    for sequence, key in zip(tokens, pairs.keys, strict=True):
        images_of.setdefault(sequence, set()).add(key)
    seen = [min(lengths[key], recipe.vision.sample or lengths[key]) for key in pairs.keys]
    return Samples(
        pairs,
        tokens,
        np.array(seen),
        [store.place(key) for key in pairs.keys],
        {sequence: frozenset(keys) for sequence, keys in images_of.items()},
    )


def image_lengths(features: Table) -> dict[str, int]:
    """Image key -> how many regions, cells or patches it has; reads no feature."""
    lengths: dict[str, int] = {}
    for path in features.paths(".parquet"):
        columns = pq.read_table(path, columns=["key", "n"])
        lengths.update(zip(columns["key"].to_pylist(), columns["n"].to_pylist(), strict=True))
    return lengths


def feature_shape(store: FeatureStore, kind: str) -> FeatureShape:
    """What the identity says of the features. Raises PairmillError where the model reads another kind."""
    identity = store.identity
    if identity["kind"] != kind:
        raise PairmillError(
            f"the model reads {kind} features, and {identity['model']} made {identity['kind']} features",
            "name another extractor in `features`, or another `vision.kind`",
        )
    rows, columns = identity.get("grid") or (0, 0)
    width = identity["columns"]["features"]["shape"][-1]
    return FeatureShape(int(width), len(identity.get("classes") or ()), (int(rows), int(columns)))


def features_digest(store: FeatureStore) -> str:
    """What a run remembers of the features that it was trained on."""
    return digest(store.identity)


def feature_statistics(store: FeatureStore, keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each dimension over these images' positions: two (D,) float32.

    At most 4096 images are read. A dimension that never varies gets the deviation 1.
    """
    distinct = sorted(set(keys))
    chosen = distinct[:: -(-len(distinct) // STATISTICS_IMAGES)]
    count, total, squares = 0, 0.0, 0.0
    # Summed about the first image's mean, so that small deviations from a large mean are not lost.
    pivot = store[chosen[0]]["features"].astype(np.float64).mean(0)
    for key in chosen:
        features = store[key]["features"].astype(np.float64) - pivot
        count, total, squares = count + len(features), total + features.sum(0), squares + (features**2).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return (mean + pivot).astype(np.float32), np.where(deviation > 0, deviation, 1.0).astype(np.float32)
