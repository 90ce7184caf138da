"""Masked region feature regression (UNITER, section 3.2: MRFR).

15 % of an image's regions, at least one, and what overlaps them, lose their feature (see `masking`); the text is in
full sight. The target is the feature as it was, by the train split's statistics where the recipe standardises.
loss = squared error, averaged over the D dimensions and the masked regions. Only the M masked regions go through the
head: (M, hidden) -> transform -> (M, D), whose last weights are the input projection's, transposed, as in UNITER's
code.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import MaskedRegions
from trainers.batch import Batch
from trainers.embeddings import EPSILON
from trainers.objectives.masking import choose_regions
from trainers.objectives.objective import OBJECTIVES, Objective, Outcome, Sizes

if TYPE_CHECKING:
    from trainers.model import VisionLanguageModel


@OBJECTIVES.add("mrfr")
class MaskedRegionFeatureRegression(Objective):
    settings: MaskedRegions
    columns = ("boxes",)

    def __init__(self, settings: MaskedRegions, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.transform = nn.Sequential(
            nn.Linear(sizes.hidden, sizes.hidden), nn.GELU(), nn.LayerNorm(sizes.hidden, EPSILON)
        )
        self.bias = nn.Parameter(torch.zeros(sizes.features.width))

    def forward(self, model: "VisionLanguageModel", batch: Batch, random: torch.Generator) -> Outcome:
        vision = batch.vision
        assert vision.boxes is not None
        chosen = choose_regions(
            vision.present, vision.boxes, self.settings.probability, self.settings.co_mask_iou, random
        ).to(vision.present.device)
        targets = model.vision.standardized(vision.values(chosen))
        hidden = replace(vision, features=vision.features.masked_fill(chosen[..., None], 0), masked=chosen)
        states = model.encode(batch.text, hidden)["vision"].states[chosen]
        return Outcome(functional.mse_loss(self.predicted(model, states).float(), targets))

    def predicted(self, model: "VisionLanguageModel", states: Tensor) -> Tensor:
        """(M, hidden) -> (M, D)."""
        return functional.linear(self.transform(states), model.vision.project.weight.t(), self.bias)
