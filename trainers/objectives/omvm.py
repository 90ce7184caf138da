"""Object-guided masked vision modelling (KD-VLP, Liu et al. 2022: OMVM).

A detector's objects supervise a model that sees only an image's grid or patches (`Batch.objects`). In each image one
object is drawn evenly, and every position inside its box is masked; so the model has to tell from the surroundings and
the text what was there. The last states of these positions are averaged to one for the object, (M, hidden), from which
two heads (a transform and a linear layer each) predict

    the detector's feature of the object: squared error, averaged over its D dimensions and the M objects;
    its most probable class: cross-entropy, averaged over the M objects;

loss = the sum of both, over matching rows. Which positions lie in a box `regions.cells_inside` says. Ours are drawing
one object, and evenly, and that an object which covers no position or all of them is not drawn: of it there is nothing
to hide, or nothing to tell it from.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.model_recipe import MaskedObjects
from trainers.network.streams import Streams, Wanted
from trainers.network.view import View
from trainers.objectives.objective import OBJECTIVES, Outcome, Reading, Sizes
from trainers.objectives.regions import (
    detected_classes,
    inside_objects,
    known_classes,
    known_grid,
    mean_of,
    prediction_head,
)

if TYPE_CHECKING:
    from trainers.network.model import VisionLanguageModel


@OBJECTIVES.add("omvm")
class ObjectMaskedVisionModelling(Reading):
    settings: MaskedObjects
    needs = frozenset({"vision", "objects"})

    def __init__(self, settings: MaskedObjects, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        classes = known_classes("omvm", sizes.objects)
        assert sizes.objects is not None
        self.grid = known_grid("omvm", sizes.features)
        self.classes = prediction_head(sizes.vision, classes, sizes.epsilon)
        self.features = prediction_head(sizes.vision, sizes.objects.width, sizes.epsilon)

    def corrupt(self, view: View, random: torch.Generator) -> View:
        vision, objects = view.vision, view.objects
        assert vision is not None
        assert objects is not None
        inside = self._inside(view)
        hidden = choose_object(inside, vision.present, random).to(vision.present.device)
        masked = inside[torch.arange(len(hidden), device=hidden.device), hidden] & (hidden >= 0)[:, None]
        if vision.masked is not None:
            masked = masked | vision.masked
        features = vision.features.masked_fill(masked[..., None], 0)
        return replace(
            view,
            vision=replace(vision, features=features, masked=masked),
            regions=masked & view.true_rows,
            hidden_object=hidden,
        )

    def wanted(self, view: View) -> Wanted:
        assert view.regions is not None
        return Wanted({"vision": view.regions})

    def loss(self, model: "VisionLanguageModel", view: View, streams: Streams) -> Outcome:
        assert view.objects is not None
        assert view.hidden_object is not None
        rows = ((view.hidden_object >= 0) & view.true_rows[:, 0]).nonzero()[:, 0]
        places = view.hidden_object[rows]
        objects = view.objects.select(rows)
        chosen = functional.one_hot(places, objects.present.shape[1]).bool()
        members = self._inside(view)[rows, places]
        pooled = mean_of(streams["vision"].inputs[rows], members[:, None])[:, 0]
        logits, classes = self.classes(pooled).float(), detected_classes(objects, chosen)
        predicted, features = self.features(pooled).float(), objects.values(chosen)
        # A sum over none is zero and not NaN, should no row match.
        count = max(len(rows), 1)
        classification = functional.cross_entropy(logits, classes, reduction="sum") / count
        regression = functional.mse_loss(predicted, features, reduction="sum") / (count * features.shape[-1])
        right = (logits.argmax(-1) == classes).float().sum() / count
        return Outcome(
            classification + regression,
            {
                "class_loss": classification.detach(),
                "feature_loss": regression.detach(),
                "accuracy": right.detach(),
            },
        )

    def _inside(self, view: View) -> Tensor:
        """(N, O, V) bool: which positions lie in which object."""
        assert view.original_vision is not None
        assert view.objects is not None
        return inside_objects(view.original_vision, self.grid, view.objects)


def choose_object(inside: Tensor, present: Tensor, random: torch.Generator) -> Tensor:
    """For each row of (B, O, V) bool one object that covers some, but not all, of the positions present (B, V).

    (B,) int64 on the CPU; -1 where there is none.
    """
    inside, present = inside.cpu(), present.cpu()
    covered = inside.sum(-1)
    candidates = (covered > 0) & (covered < present.sum(-1, keepdim=True))
    draws = torch.rand(candidates.shape, generator=random).masked_fill(~candidates, -1.0)
    return torch.where(candidates.any(1), draws.argmax(1), -1)
