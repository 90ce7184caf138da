"""The extractors by kind.

To add one: a module with a class like `Extractor`, its section in `pipeline.recipe`, a row in `BUILDERS`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.recipe import Grid, Patch, Pixel, Region
from pipeline.store.features import Column
from pipeline.weights import Weights

if TYPE_CHECKING:
    import torch


class Extractor(Protocol):
    """Turns images into one feature row each: `prepare` an image at a time, then the model on a batch of them.

    It looks neither for NaN (the store's writer refuses such a row) nor for what happens when memory runs out (the
    stage halves the batch). The same batch gives the same bytes each time on a CPU.
    """

    identity: dict[str, Any]
    """What made the features, beyond settings and weights: model, trained (bool), classes, grid, ..."""
    columns: dict[str, Column]

    def prepare(self, image: np.ndarray) -> Any:
        """RGB uint8 (h, w, 3), from 1 x 1 to 1 x 20 000 -> what the model takes of it. Pure: several threads call it
        at once, while the model runs."""
        ...

    def __call__(self, prepared: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        """For each prepared image the arrays of `columns`, with one first dimension n. The model runs once, on the
        whole batch."""
        ...


def _region(section: Region, weights: Weights, device: "torch.device") -> Extractor:
    from pipeline.extractors.region import RegionExtractor

    return RegionExtractor(section, weights, device)


def _grid(section: Grid, weights: Weights, device: "torch.device") -> Extractor:
    from pipeline.extractors.grid import GridExtractor

    return GridExtractor(section, weights, device)


def _patch(section: Patch, weights: Weights, device: "torch.device") -> Extractor:
    from pipeline.extractors.patch import PatchExtractor

    return PatchExtractor(section, weights, device)


def _pixel(section: Pixel, weights: Weights, device: "torch.device") -> Extractor:
    from pipeline.extractors.pixel import PixelExtractor

    return PixelExtractor(section, weights, device)


# Built in the worker that uses them: importing a detector's library costs seconds.
BUILDERS: dict[str, Callable[[Any, Weights, "torch.device"], Extractor]] = {
    "region": _region,
    "grid": _grid,
    "patch": _patch,
    "pixel": _pixel,
}
