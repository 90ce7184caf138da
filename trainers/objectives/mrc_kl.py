"""Masked region classification by KL divergence (UNITER, section 3.2: MRC-kl; ViLBERT, section 3.2).

15 % of an image's regions, at least one, and what overlaps them, lose their feature (see `masking`); the text is in
full sight. The target is the detector's stored class distribution: its K kept probabilities, renormalised to sum to 1.
loss = KL(target || prediction), summed over the classes, averaged over the masked regions. Only the M masked regions go
through the head: (M, hidden) -> (M, classes).
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import PairmillError
from pipeline.model_recipe import MaskedRegions
from trainers.batch import Batch
from trainers.embeddings import EPSILON
from trainers.objectives.masking import choose_regions
from trainers.objectives.objective import OBJECTIVES, Objective, Outcome, Sizes

if TYPE_CHECKING:
    from trainers.model import VisionLanguageModel


@OBJECTIVES.add("mrc_kl")
class MaskedRegionClassification(Objective):
    settings: MaskedRegions
    columns = ("boxes", "topk_ids", "topk_values")

    def __init__(self, settings: MaskedRegions, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        if not sizes.features.classes:
            raise PairmillError(
                "mrc_kl predicts the detector's classes, and these features do not say which there are",
                "import them with CLASSES=names.txt, or leave mrc_kl out",
            )
        self.head = nn.Sequential(
            nn.Linear(sizes.hidden, sizes.hidden),
            nn.GELU(),
            nn.LayerNorm(sizes.hidden, EPSILON),
            nn.Linear(sizes.hidden, sizes.features.classes),
        )

    def forward(self, model: "VisionLanguageModel", batch: Batch, random: torch.Generator) -> Outcome:
        vision = batch.vision
        assert vision.boxes is not None
        assert vision.class_ids is not None
        assert vision.class_values is not None
        chosen = choose_regions(
            vision.present, vision.boxes, self.settings.probability, self.settings.co_mask_iou, random
        ).to(vision.present.device)
        ids, values = vision.class_ids[chosen].long(), vision.class_values[chosen]
        hidden = replace(vision, features=vision.features.masked_fill(chosen[..., None], 0), masked=chosen)
        states = model.encode(batch.text, hidden)["vision"].states[chosen]
        return Outcome(divergence(self.head(states), ids, values))


def divergence(logits: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Mean over M of KL(renormalised values at ids || softmax(logits)), for (M, classes), (M, K) int64, (M, K)."""
    target = values / values.sum(-1, keepdim=True).clamp(min=1e-12)
    predicted = functional.log_softmax(logits.float(), -1).gather(-1, ids)
    # xlogy: a kept probability of 0 adds 0.
    terms = torch.xlogy(target, target) - target * predicted
    return terms.sum() / max(len(logits), 1)
