"""Visual-semantic embedding by a hinge with the hardest negative (VSE++, Faghri et al. 2018, section 3.2).

With s the cosine of a text and an image in the joint space and m the margin, a pair (t, v) costs
max over v' of [m - s(t, v) + s(t, v')]+  +  max over t' of [m - s(t, v) + s(t', v)]+, or, with `negatives = "all"`, the
sums in place of the maxima (VSE0). v' and t' are those of the batch, all ranks' together, that are no true partners.
loss = the mean over the pairs; the paper's is the sum.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.model_recipe import Hinge
from trainers.objectives.gathering import Everyone
from trainers.objectives.joint_space import JointSpace, cosines
from trainers.objectives.objective import OBJECTIVES, Outcome

if TYPE_CHECKING:
    from trainers.network.towers import Towers


@OBJECTIVES.add("vse")
class VisualSemanticEmbedding(JointSpace):
    settings: Hinge

    def forward(self, towers: "Towers", random: torch.Generator) -> Outcome:
        texts, images = self.embedded(towers)
        everyone = Everyone(towers.batch)
        similarities, partners = cosines(everyone.rows(texts), everyone.rows(images)), everyone.partners
        loss = hinge(similarities, partners, self.settings.margin, self.settings.negatives == "hardest")
        right = similarities.masked_fill(partners & ~_own(partners), -torch.inf).argmax(1)
        rows = torch.arange(len(right), device=right.device)
        return Outcome(loss, {"accuracy": (right == rows).float().mean().detach()})


def hinge(similarities: Tensor, partners: Tensor, margin: float, hardest: bool = True) -> Tensor:
    """(B, B) cosines of texts and images, (B, B) bool as `Batch.partners` -> ()."""
    true = similarities.diagonal()[:, None]
    pair_cost = similarities.new_zeros(len(similarities))
    for answers, barred in ((similarities, partners), (similarities.t(), partners.t())):
        costs = (margin - true + answers).clamp(min=0).masked_fill(barred, 0)
        pair_cost = pair_cost + (costs.amax(1) if hardest else costs.sum(1))
    return pair_cost.mean()


def _own(partners: Tensor) -> Tensor:
    return torch.eye(len(partners), dtype=torch.bool, device=partners.device)
