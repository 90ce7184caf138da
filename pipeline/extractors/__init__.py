"""The extractors by kind.

To add one: a module with a class like those here, its section in `pipeline.recipe`, a row in `BUILDERS`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from pipeline.recipe import Grid, Pixel, Region
from pipeline.store.features import Column
from pipeline.weights import Weights


class Extractor(Protocol):
    """Turns images into one feature row each."""

    identity: dict[str, Any]
    """What made the features, beyond settings and weights: dimensions, label names."""
    columns: dict[str, Column]

    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """RGB uint8 images (h, w, 3) -> for each the arrays of `columns`, with one first dimension n."""
        ...


def _region(section: Region, weights: Weights) -> Extractor:
    from pipeline.extractors.region import RegionExtractor

    return RegionExtractor(section, weights)


def _grid(section: Grid, weights: Weights) -> Extractor:
    from pipeline.extractors.grid import GridExtractor

    return GridExtractor(section, weights)


def _pixel(section: Pixel, weights: Weights) -> Extractor:
    from pipeline.extractors.pixel import PixelExtractor

    return PixelExtractor(section)


# Built in the worker that uses them: importing a detector's library costs seconds.
BUILDERS: dict[str, Callable[[Any, Weights], Extractor]] = {"region": _region, "grid": _grid, "pixel": _pixel}
