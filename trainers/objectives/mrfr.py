"""Masked region feature regression (UNITER, section 3.2: MRFR; LXMERT, section 3.1: RoI-feature regression).

Some of an image's regions are masked (see `masking.corrupt_regions`). The target is the feature as it was, by the train
split's statistics where the recipe standardises. loss = squared error, or smooth L1 (LXMERT's code: Huber's with delta
1), averaged over the D dimensions and the masked regions of matching rows. Only these M regions go through the head:
(M, hidden) -> transform -> (M, D), whose last weights are the input projection's, transposed, as in UNITER's code, or
its own.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import RegionRegression
from trainers.network.streams import Streams
from trainers.network.view import View
from trainers.objectives.objective import OBJECTIVES, Outcome, Sizes
from trainers.objectives.regions import RegionReading

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel


@OBJECTIVES.add("mrfr")
class MaskedRegionFeatureRegression(RegionReading):
    settings: RegionRegression
    columns = ("boxes",)

    def __init__(self, settings: RegionRegression, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.transform = nn.Sequential(
            nn.Linear(sizes.vision, sizes.vision), nn.GELU(), nn.LayerNorm(sizes.vision, sizes.epsilon)
        )
        width = sizes.features.width
        self.out = nn.Linear(sizes.vision, width, bias=False) if settings.head == "own" else None
        self.bias = nn.Parameter(torch.zeros(width))

    def loss(self, model: "VisionLanguageModel", view: View, streams: Streams) -> Outcome:
        assert view.regions is not None
        assert view.original_vision is not None
        targets = model.vision.standardized(view.original_vision.values(view.regions))
        predicted = self.predicted(model, streams["vision"].inputs[view.regions]).float()
        error = functional.mse_loss if self.settings.loss == "l2" else functional.smooth_l1_loss
        # A sum over none is zero and not NaN, should no row match.
        return Outcome(error(predicted, targets, reduction="sum") / max(targets.numel(), 1))

    def predicted(self, model: "VisionLanguageModel", states: Tensor) -> Tensor:
        """(M, hidden) -> (M, D)."""
        weight = model.vision.project.weight.t() if self.out is None else self.out.weight
        return functional.linear(self.transform(states), weight, self.bias)
