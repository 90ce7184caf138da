"""Object detection by set prediction, as a pretraining task (E2E-VLP, Xu et al. 2021; DETR, section 3).

The decoder's Q learnt queries look at the encoder's last states of image and text. From each query's last state
(B, Q, hidden) two heads predict a class or "no object", (B, Q, classes + 1), and a box, (B, Q, 4): centre, width and
height in [0, 1], through three layers and a sigmoid. What is to be found are the detector's boxes of the image and
their most probable classes (`Batch.objects`). Queries and objects are matched one to one at the least cost (see
`set_matching`); then

    loss = cross-entropy over all queries, "no object" weighing 0.1
           + (5 |box - target|_1 + 2 (1 - GIoU)), summed over the matched and divided by the batch's number of objects,

the cross-entropy being a mean by weight. DETR's further losses, on each decoder layer's output, are left out, and the
paper's attributes, which no detector here predicts.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_recipe import Detection
from trainers.network.view import View
from trainers.objectives.objective import OBJECTIVES, Objective, Outcome, Sizes
from trainers.objectives.regions import detected_classes, known_classes
from trainers.objectives.set_matching import L1_COST, OVERLAP_COST, Matches, centred, corners, generalized_iou, match

if TYPE_CHECKING:
    from trainers.network.towers import Towers

NO_OBJECT_WEIGHT = 0.1


@OBJECTIVES.add("detection")
class ObjectDetection(Objective):
    settings: Detection
    needs = frozenset({"vision", "objects"})

    def __init__(self, settings: Detection, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.classes = nn.Linear(sizes.hidden, known_classes("detection", sizes.objects) + 1)
        self.boxes = nn.Sequential(
            nn.Linear(sizes.hidden, sizes.hidden),
            nn.ReLU(),
            nn.Linear(sizes.hidden, sizes.hidden),
            nn.ReLU(),
            nn.Linear(sizes.hidden, 4),
        )

    def forward(self, towers: "Towers", random: torch.Generator) -> Outcome:
        objects = towers.batch.objects
        assert objects is not None
        assert objects.boxes is not None
        states = towers.model.query(towers.encode(View.of(towers.batch)))
        logits, boxes = self.classes(states).float(), self.boxes(states).float().sigmoid()
        classes, targets = detected_classes(objects), centred(objects.boxes.float())
        matches = match(logits, boxes, classes, targets, objects.present)
        return set_loss(logits, boxes, classes, targets, matches, int(objects.present.sum()))


def set_loss(
    logits: Tensor, boxes: Tensor, classes: Tensor, targets: Tensor, matches: Matches, objects: int
) -> Outcome:
    """The loss above, of matched predictions; shapes as `match` has them."""
    nothing = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:2], nothing, dtype=torch.int64, device=logits.device)
    found, true = (matches.images, matches.queries), (matches.images, matches.objects)
    wanted[found] = classes[true]
    weights = torch.ones(nothing + 1, device=logits.device)
    weights[nothing] = NO_OBJECT_WEIGHT
    classification = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weights)
    overlap = generalized_iou(corners(boxes[found]), corners(targets[true]))
    distance = (boxes[found] - targets[true]).abs().sum() / max(objects, 1)
    apart = (1 - overlap).sum() / max(objects, 1)
    right = (logits[found].argmax(-1) == classes[true]).float().sum() / max(len(matches.queries), 1)
    return Outcome(
        classification + L1_COST * distance + OVERLAP_COST * apart,
        {
            "class_loss": classification.detach(),
            "l1": distance.detach(),
            "giou_loss": apart.detach(),
            "accuracy": right.detach(),
        },
    )
