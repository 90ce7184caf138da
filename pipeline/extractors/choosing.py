"""Which of a detector's candidates become regions: the best after class-wise suppression, for a whole batch at once."""

from dataclasses import dataclass

import torch

from pipeline.extractors.detector import Candidates

RIVALS = 300
"""Candidates an image that enter the suppression, best first; more where more regions are wanted."""


@dataclass
class Chosen:
    """N regions each of B images, best first, of which the first `n` are meant; the others are padding."""

    n: torch.Tensor
    """(B,) int64"""
    boxes: torch.Tensor
    """(B, N, 4): x1 y1 x2 y2 in pixels of the detector's square, within the picture."""
    scores: torch.Tensor
    """(B, N, classes): sigmoids, each class by itself."""
    confidences: torch.Tensor
    """(B, N): the best class's score."""
    classes: torch.Tensor
    """(B, N) int64: the best class."""


def choose(
    candidates: Candidates, extents: torch.Tensor, *, least: int, most: int, confidence: float, iou: float
) -> Chosen:
    """Of each image the regions over `confidence` that suppression at `iou` leaves, `least` to `most` of them.

    Where too few pass, the next best fill up, and then the best of the suppressed (the 10 to 100 boxes of bottom-up
    attention, Anderson et al. 2018, section 3.1). There are fewer than `least` only where the detector has no more
    candidates in the picture. `extents`: (B, 2), width and height of the picture in the square; boxes are cut to it,
    and those in the padding are no candidates.

    What is NaN compares as if it were good and so is chosen: nothing hides it from who checks the rows.
    """
    limits = torch.cat([extents, extents], 1)[:, :, None]
    boxes = candidates.boxes.clamp(min=0).minimum(limits)
    # Less than a pixel, or than half a picture that is thinner than two, is what a box in the padding leaves over.
    too_thin = boxes[:, 2:] - boxes[:, :2] < (extents[:, :, None] / 2).clamp(max=1)
    best = candidates.logits.amax(1).masked_fill_(too_thin.any(1), -torch.inf)
    best, rivals = best.topk(min(max(RIVALS, most), best.shape[1]))

    boxes = boxes.gather(2, rivals[:, None].expand(-1, 4, -1)).transpose(1, 2)
    logits = candidates.logits.gather(2, rivals[:, None].expand(-1, candidates.logits.shape[1], -1))
    scores = logits.transpose(1, 2).sigmoid()
    confidences, classes = scores.max(2)
    there = best != -torch.inf
    # The pairs of one image's boxes fit a CPU's cache, those of a batch do not; a GPU is given all at once.
    step = 1 if boxes.device.type == "cpu" else len(boxes)
    parts = zip(boxes.split(step), classes.split(step), strict=True)
    suppressed = torch.cat([_suppressed(*part, iou) for part in parts])

    passing = (there & ~suppressed & ~(confidences < confidence)).sum(1)
    n = passing.clamp(min=least, max=most).minimum(there.sum(1))
    order = (suppressed.int() + 2 * (~there).int()).sort(dim=1, stable=True).indices[:, : int(n.max())]

    def ordered(values: torch.Tensor) -> torch.Tensor:
        at = order if values.ndim == 2 else order[..., None].expand(-1, -1, values.shape[2])
        return values.gather(1, at)

    return Chosen(n, ordered(boxes), ordered(scores), ordered(confidences), ordered(classes))


def _suppressed(boxes: torch.Tensor, classes: torch.Tensor, iou: float) -> torch.Tensor:
    """Greedy non-maximum suppression: which of the boxes (B, K, 4), best first, a better one that stands suppresses.

    Boxes are rivals where their classes (B, K) are the same and they overlap by more than `iou`. A box stands if no
    better rival stands. From "all stand" this is applied to all boxes at once until nothing changes: the n-th box is
    settled after n rounds, in practice all are after three or four.
    """
    x1, y1, x2, y2 = boxes.permute(2, 0, 1).contiguous()
    width = torch.minimum(x2[:, :, None], x2[:, None]).sub_(torch.maximum(x1[:, :, None], x1[:, None])).clamp_(min=0)
    height = torch.minimum(y2[:, :, None], y2[:, None]).sub_(torch.maximum(y1[:, :, None], y1[:, None])).clamp_(min=0)
    areas = (x2 - x1) * (y2 - y1)
    shared = width.mul_(height)
    union = (areas[:, :, None] + areas[:, None]).sub_(shared)
    better = (shared > union.mul_(iou)).logical_and_(classes[:, :, None] == classes[:, None]).tril_(-1).float()
    stands = torch.ones_like(better[..., :1])
    while True:
        again = (torch.bmm(better, stands) == 0).float()  # no better rival stands
        if torch.equal(again, stands):
            return stands[..., 0] == 0
        stands = again
