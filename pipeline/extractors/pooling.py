"""RoIAlign, averaged over its cells, of all boxes of a batch at once.

RoIAlign (He et al. 2017, Mask R-CNN, section 3) reads a map at regular points of a box, bilinearly. The mean over those
points is linear in the map, and as the points stand in rows and columns its weights are a column's times a row's. So a
batch is pooled by one matrix product a level, which on a CPU is two to three times as fast as sampling the points.
"""

from collections.abc import Sequence

import torch

CELLS = 3  # RoIAlign's cells a side, averaged
SAMPLES = 2  # points a cell and side
CANONICAL = 14
"""Sides of a box in strides at the level that suits it: 224 pixels at stride 16 (Lin et al. 2017, FPN, equation 1)."""


def pool(level: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """`level`: (B, channels, h, w); `boxes`: (B, n, 4), x1 y1 x2 y2 with the map as unit square -> (B, n, channels).

    As torchvision's roi_align(level, boxes, CELLS, sampling_ratio=SAMPLES, aligned=True).mean((2, 3)). A box that is
    NaN has NaN features.
    """
    height, width = level.shape[2:]
    rows = _weights(boxes[..., 1], boxes[..., 3], height)
    columns = _weights(boxes[..., 0], boxes[..., 2], width)
    weights = (rows[..., :, None] * columns[..., None, :]).flatten(2)
    return torch.bmm(weights, level.float().permute(0, 2, 3, 1).flatten(1, 2))


def _weights(low: torch.Tensor, high: torch.Tensor, cells: int) -> torch.Tensor:
    """`low`, `high`: (B, n) in [0, 1] along one axis -> the share in the mean of each of its `cells`, (B, n, cells)."""
    points = CELLS * SAMPLES
    steps = (torch.arange(points, device=low.device) + 0.5) / points
    at = (
        torch.lerp(low[..., None] * cells, high[..., None] * cells, steps) - 0.5
    )  # in cells, from the first one's centre
    at = at.clamp(0, cells - 1)[..., None]
    return (1 - (at - torch.arange(cells, device=low.device)).abs()).clamp_(min=0).mean(-2)


def concatenated(levels: Sequence[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
    """`boxes` (B, n, 4) pooled from each of the `levels`: (B, n, sum of their channels)."""
    return torch.cat([pool(level, boxes) for level in levels], -1)


def suited(sides: torch.Tensor, strides: Sequence[float]) -> torch.Tensor:
    """The level for boxes of mean `sides` (B, n), the root of their area in pixels: its index (B, n), finest first.

    Equation 1 of FPN, k = floor(4 + log2(side / 224)), for levels of any strides: the coarsest of which `CANONICAL`
    strides are no longer than the side, and else the finest.
    """
    limits = torch.tensor([CANONICAL * stride for stride in strides[1:]], device=sides.device)
    return torch.bucketize(sides, limits, right=True)


def from_suited(levels: Sequence[torch.Tensor], boxes: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """`boxes` (B, n, 4) pooled each from its `chosen` level (B, n): (B, n, channels of the widest level).

    The levels of a YOLO's neck differ in width; a narrower one's features are followed by zeros. They differ in meaning
    as well (each has a head of its own), so whoever reads them must be told `chosen`.
    """
    widest = max(level.shape[1] for level in levels)
    found = boxes.new_zeros(*boxes.shape[:2], widest)
    for index, level in enumerate(levels):
        here = (chosen == index)[..., None]
        channels = level.shape[1]
        found[..., :channels] = torch.where(here, pool(level, boxes), found[..., :channels])
    return found
