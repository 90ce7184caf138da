"""Boxes, and which predicted one stands for which true one (DETR: Carion et al. 2020, section 3.1)."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

CLASS_COST, L1_COST, OVERLAP_COST = 1.0, 5.0, 2.0
"""What the parts of the cost weigh (DETR, appendix A.4 and the authors' code)."""


@dataclass(frozen=True)
class Matches:
    """M pairs of a query and an object of the same image, each query and each object at most once; all (M,) int64."""

    images: Tensor
    queries: Tensor
    objects: Tensor


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> x1 y1 x2 y2."""
    centres, halves = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centres - halves, centres + halves], -1)


def centred(boxes: Tensor) -> Tensor:
    """(..., 4) x1 y1 x2 y2 -> centre x, centre y, width, height."""
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(first + second) / 2, second - first], -1)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Rezatofighi et al. 2019 of boxes x1 y1 x2 y2: (..., 4) and (..., 4), broadcast -> (...), in [-1, 1].

    Intersection over union, less the share of the smallest box around both that neither covers. Two boxes without an
    area in the same place have 0.
    """
    shared = _area(torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:]))
    union = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - shared
    around = _area(torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:]))
    smallest = torch.finfo(union.dtype).tiny
    return shared / union.clamp(min=smallest) - (around - union) / around.clamp(min=smallest)


def match(logits: Tensor, boxes: Tensor, classes: Tensor, targets: Tensor, present: Tensor) -> Matches:
    """The assignment of least cost of Q queries to O objects, image by image.

    logits (B, Q, classes + 1) with "no object" last, boxes (B, Q, 4) centred; classes (B, O) int64, targets (B, O, 4)
    centred, present (B, O) bool. cost = -p(class) + 5 |box - target|_1 - 2 GIoU. Where an image has more objects than
    there are queries, those that cost most stay without one.
    """
    with torch.no_grad():
        probabilities = logits.float().softmax(-1)
        chance = probabilities.gather(2, classes[:, None].expand(-1, logits.shape[1], -1))
        distance = torch.cdist(boxes.float(), targets.float(), p=1)
        overlap = generalized_iou(corners(boxes.float())[:, :, None], corners(targets.float())[:, None])
        costs = L1_COST * distance - CLASS_COST * chance - OVERLAP_COST * overlap
        # Of what is not a number any assignment will do: the loss is none either, and that stops the training.
        numbers = costs.nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
    images, queries, objects = [], [], []
    for image, there in enumerate(present.cpu()):
        places = there.nonzero()[:, 0]
        rows, columns = linear_sum_assignment(numbers[image][:, places.numpy()])
        images.append(torch.full((len(rows),), image))
        queries.append(torch.from_numpy(rows))
        objects.append(places[torch.from_numpy(columns)])
    return Matches(*(torch.cat(part).to(logits.device) for part in (images, queries, objects)))


def _area(first: Tensor, second: Tensor) -> Tensor:
    """Of boxes by their corners; 0 where the second lies before the first."""
    return (second - first).clamp(min=0).prod(-1)
