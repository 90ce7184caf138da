"""Masked region classification by KL divergence (UNITER, section 3.2: MRC-kl; ViLBERT, section 3.2).

Some of an image's regions are masked (see `masking.corrupt_regions`). The target is the detector's stored class
distribution: its K kept probabilities, renormalised to sum to 1. loss = KL(target || prediction), summed over the
classes, averaged over the masked regions of matching rows. Only these M regions go through the head:
(M, hidden) -> (M, classes).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model_recipe import MaskedRegions
from trainers.network.streams import Streams
from trainers.network.view import View
from trainers.objectives.objective import OBJECTIVES, Outcome, Sizes
from trainers.objectives.regions import RegionReading, known_classes, prediction_head, told_regions

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel


@OBJECTIVES.add("mrc_kl")
class MaskedRegionDistribution(RegionReading):
    settings: MaskedRegions
    columns = ("boxes", "topk_ids", "topk_values")

    def __init__(self, settings: MaskedRegions, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.head = prediction_head(sizes.vision, known_classes("mrc_kl", sizes.features), sizes.epsilon)

    def loss(self, model: "VisionLanguageModel", view: View, streams: Streams) -> Outcome:
        vision = view.original_vision
        assert vision is not None
        assert vision.class_ids is not None
        assert vision.class_values is not None
        told = told_regions(view)
        ids, values = vision.class_ids[told].long(), vision.class_values[told]
        return Outcome(divergence(self.head(streams["vision"].inputs[told]), ids, values))


def divergence(logits: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Mean over M of KL(renormalised values at ids || softmax(logits)), for (M, classes), (M, K) int64, (M, K)."""
    target = values / values.sum(-1, keepdim=True).clamp(min=1e-12)
    predicted = functional.log_softmax(logits.float(), -1).gather(-1, ids)
    # xlogy: a kept probability of 0 adds 0.
    terms = torch.xlogy(target, target) - target * predicted
    return terms.sum() / max(len(logits), 1)
