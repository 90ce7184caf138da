"""Grid features: the last feature map of a CNN (Pixel-BERT, SOHO, METER on a CNN)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.extractors.cnn import FeatureMaps
from pipeline.recipe import Grid
from pipeline.store.features import Column
from pipeline.weights import Weights


class GridExtractor:
    """`features`: (cells * cells, channels), row by row."""

    def __init__(self, section: Grid, weights: Weights) -> None:
        self.maps = FeatureMaps(section, weights)
        self.cells = section.cells
        self.identity: dict[str, Any] = {
            "model": section.model,
            "trained": True,
            "grid": [section.cells, section.cells],
        }
        self.columns = {"features": Column("float16", (self.maps.channels,), tensor=True)}

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        pooled = adaptive_avg_pool2d(self.maps(images), self.cells).flatten(2).transpose(1, 2)
        return [{"features": row} for row in pooled.half().cpu().numpy()]
