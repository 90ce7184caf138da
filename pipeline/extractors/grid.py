"""Grid features: the last feature map of a CNN, pooled (Pixel-BERT, SOHO, E2E-VLP, KD-VLP)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.extractors.cnn import FeatureMaps
from pipeline.extractors.precision import autocast
from pipeline.recipe import Grid
from pipeline.store.features import Column
from pipeline.weights import Weights


class GridExtractor:
    """`features`: (cells * cells, channels), row by row: the mean of the map over each cell."""

    def __init__(self, section: Grid, weights: Weights, device: torch.device) -> None:
        self.section, self.device = section, device
        self.maps = FeatureMaps(section, weights, device)
        self.identity: dict[str, Any] = {
            "model": section.model,
            "trained": True,
            "grid": [section.cells, section.cells],
        }
        self.columns = {"features": Column(section.dtype, (self.maps.channels,), tensor=True)}

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return self.maps.prepare(image)

    @torch.inference_mode()
    def __call__(self, prepared: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        with autocast(self.section, self.device):
            maps = self.maps(prepared)
        pooled = adaptive_avg_pool2d(maps, self.section.cells).flatten(2).transpose(1, 2)
        return [{"features": row} for row in pooled.cpu().numpy()]
