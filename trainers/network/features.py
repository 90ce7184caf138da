"""What a model must know of the features that it reads: their shape, their identity, their statistics."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import PairmillError
from pipeline.store.atomic import digest
from pipeline.store.features import FeatureStore
from trainers.network.embeddings import FeatureShape

STATISTICS_IMAGES = 4096
"""From how many images at most the features' mean and deviation are taken."""
PROVENANCE = ("libraries", "weights")
"""What of an identity does not change what the features stand for: versions, of which an upgrade would make yesterday's
runs useless, and the name of the weights' file, whose content has its digest."""


def feature_shape(store: FeatureStore, kind: str) -> FeatureShape:
    """What the identity says of the features. Raises PairmillError where the model cannot read them."""
    identity = store.identity
    if identity["kind"] != kind:
        raise PairmillError(
            f"the model reads {kind} features, and the extractor that it names makes {identity['kind']} features",
            "name another extractor in `features`, or another `vision.kind`",
        )
    width = identity["columns"]["features"]["shape"][-1]
    return FeatureShape(int(width), len(identity.get("classes") or ()), _grid(identity))


def _grid(identity: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns; of pixel patches, whose images differ in shape, the most there can be: the longer side's."""
    if identity["kind"] == "region":
        return 0, 0
    if identity["kind"] == "pixel":
        longest = identity["settings"]["image_size"] // identity["settings"]["patch"]
        return longest, longest
    if not identity.get("grid"):
        raise PairmillError(
            f"the tokens of {identity['model']} have no place in rows and columns", "name an extractor of a plain ViT"
        )
    rows, columns = identity["grid"]
    return int(rows), int(columns)


def features_digest(store: FeatureStore, storage: bool = True) -> str:
    """What a run remembers of the features that it was trained on; without `storage`, in whichever dtype."""
    meaning = {name: value for name, value in store.identity.items() if name not in PROVENANCE}
    return digest(meaning if storage else _without_dtype(meaning))


def _without_dtype(meaning: Any) -> Any:
    if isinstance(meaning, Mapping):
        return {name: _without_dtype(value) for name, value in meaning.items() if name != "dtype"}
    return meaning


def feature_statistics(store: FeatureStore, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each dimension over the positions of the images `keys` (ascending bytes): two (D,) float32.

    At most 4096 images are read, evenly spread. A dimension that never varies gets the deviation 1.
    """
    chosen = [key.decode() for key in keys[:: -(-len(keys) // STATISTICS_IMAGES)].tolist()]
    count, total, squares = 0, 0.0, 0.0
    # Summed about the first image's mean, so that small deviations from a large mean are not lost.
    pivot = store[chosen[0]]["features"].astype(np.float64).mean(0)
    for key in chosen:
        features = store[key]["features"].astype(np.float64) - pivot
        count, total, squares = count + len(features), total + features.sum(0), squares + (features**2).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return (mean + pivot).astype(np.float32), np.where(deviation > 0, deviation, 1.0).astype(np.float32)
