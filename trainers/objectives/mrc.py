"""Masked region classification (UNITER, Chen et al. 2020, section 3.2: MRC; LXMERT, Tan and Bansal 2019, section 3.1).

Some of an image's regions are masked (see `masking.corrupt_regions`). The target of a masked region is the most
probable of the detector's classes, without background; from the region's last state a transform and a linear layer
predict it. loss = cross-entropy, averaged over the masked regions of matching rows. Only these M regions go through the
head: (M, hidden) -> (M, classes).
"""

from typing import TYPE_CHECKING

from torch.nn import functional

from pipeline.model_recipe import MaskedRegions
from trainers.network.streams import Streams
from trainers.network.view import View
from trainers.objectives.objective import OBJECTIVES, Outcome, Sizes
from trainers.objectives.regions import RegionReading, detected_classes, known_classes, prediction_head, told_regions

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel


@OBJECTIVES.add("mrc")
class MaskedRegionClassification(RegionReading):
    settings: MaskedRegions
    columns = ("boxes", "topk_ids", "topk_values")

    def __init__(self, settings: MaskedRegions, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.head = prediction_head(sizes.vision, known_classes("mrc", sizes.features), sizes.epsilon)

    def loss(self, model: "VisionLanguageModel", view: View, streams: Streams) -> Outcome:
        assert view.original_vision is not None
        told = told_regions(view)
        classes = detected_classes(view.original_vision, told)
        logits = self.head(streams["vision"].inputs[told]).float()
        # A sum over none is zero and not NaN, should no row match.
        loss = functional.cross_entropy(logits, classes, reduction="sum") / max(len(classes), 1)
        right = (logits.argmax(-1) == classes).float().sum() / max(len(classes), 1)
        return Outcome(loss, {"accuracy": right.detach()})
