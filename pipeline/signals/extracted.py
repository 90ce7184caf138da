"""What a patch extractor has computed of the same CLIP: image embeddings, and in a table beside them those of texts.

The table `features/<extractor>/texts/` has a Parquet file an image shard, with (uid, key, embedding) for each pair that
was kept when `extract` ran; its manifest says of which model, of which features and of which images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.dataset import Dataset
from pipeline.store.table import FAILED_SUFFIX, Table, naming_damage

EMBEDDING = "embedding"
POOLED = "pooled"


def texts_table(features: Table) -> Table:
    """The table of text embeddings beside an extractor's features."""
    return Table(features.folder / "texts", "extract")


def tars(dataset: Dataset) -> dict[str, str]:
    """Image shard -> sha256 of its tar."""
    return {
        shard.name: next(file.sha256 for file in shard.files if file.name.endswith(".tar"))
        for shard in dataset.images.manifest.shards
    }


def described(dataset: Dataset, features: Table, model: str, autocast: str) -> dict[str, Any]:
    """What the table of texts says of itself: with another of these, neither its vectors nor the images' are ours."""
    return {"model": model, "autocast": autocast, "features": features.manifest.digest, "images": tars(dataset)}


@dataclass(frozen=True)
class Extracted:
    """Where the embeddings of a dataset's own images and texts lie: extractor's features, and the texts beside them."""

    images: Path
    image_files: Mapping[str, str]
    """Image shard -> the file of its features."""
    texts: Path

    def of_images(self, shard: str) -> pa.Table:
        """(key, embedding) of the images that have features: unit vectors (D,) float32."""
        path = self.images / self.image_files[shard]
        with naming_damage(path, "extract"):
            return pq.read_table(path, columns=["key", POOLED]).rename_columns(["key", EMBEDDING])

    def of_texts(self, shard: str) -> dict[str, np.ndarray]:
        """uid -> unit vector (D,) float32."""
        return read_texts(self.texts / f"{shard}.parquet")


def find_extracted(dataset: Dataset, model: str) -> Extracted | None:
    """The embeddings that a finished extractor has of this model (its digest) and of the images as they are now.

    Those of a GPU's short floats do not count: they are not what `filter` would measure.
    """
    for name in dataset.extractors():
        features = dataset.features(name)
        texts = texts_table(features)
        if texts.exists and texts.manifest.info == described(dataset, features, model, "none"):
            files = {
                shard.name: next(file.name for file in shard.files if not file.name.endswith(FAILED_SUFFIX))
                for shard in features.manifest.shards
            }
            return Extracted(features.folder, files, texts.folder)
    return None


def read_texts(path: Path) -> dict[str, np.ndarray]:
    """uid -> unit vector (D,) float32, of one file of the table."""
    with naming_damage(path, "extract"):
        table = pq.read_table(path, columns=["uid", EMBEDDING])
    return dict(zip(table["uid"].to_pylist(), vectors_of(table), strict=True))


def vectors_of(table: pa.Table) -> np.ndarray:
    """The column of embeddings, which has no NULL: (n, D) float32."""
    column = table[EMBEDDING]
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.float32), *values]).reshape(-1, column.type.list_size)
