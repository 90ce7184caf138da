"""Regions computed directly and slowly: one picture, one box, one point at a time, from a head's raw output."""

import math
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch

from pipeline.recipe import Region

Box = tuple[float, float, float, float]


def square_of(image: np.ndarray, size: int, stretched: bool) -> tuple[np.ndarray, int, int]:
    """The picture in the upper left of a grey square, and its width and height there."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    w, h = (size, size) if stretched else (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    square = np.full((size, size, 3), 114, np.uint8)
    for y in range(h):
        for x in range(w):
            square[y, x] = resized[y, x]
    return square, w, h


def raw_candidates(model: Any, square: np.ndarray) -> tuple[list[Box], np.ndarray, list[np.ndarray]]:
    """ultralytics' own model, as it loads it -> boxes in pixels, logits (A, classes), the maps that its head reads."""
    seen: list[torch.Tensor] = []
    handle = model.model[-1].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    size = square.shape[0]
    with torch.no_grad():
        out = model(torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255)
    handle.remove()
    maps = [level[0].double().numpy() for level in seen if level.ndim == 4]
    if model.model[-1].__class__.__name__ == "RTDETRDecoder":
        boxes, logits = out[1][0][-1, 0].double().tolist(), out[1][1][-1, 0].double().numpy()
        found = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in boxes]
        return [tuple(side * size for side in box) for box in found], logits, maps  # type: ignore[misc]
    raw = out[1]
    if "one2many" in raw:
        raw = raw["one2many"] or raw["one2one"]
    distances, logits = raw["boxes"][0].double().numpy(), raw["scores"][0].double().numpy()
    places = [
        (x + 0.5, y + 0.5, size / level.shape[2])
        for level in maps
        for y in range(level.shape[1])
        for x in range(level.shape[2])
    ]
    found = []
    for (x, y, stride), bins in zip(places, distances.T.reshape(len(places), 4, -1), strict=True):
        left, top, right, bottom = (_expected(side) for side in bins)
        found.append(((x - left) * stride, (y - top) * stride, (x + right) * stride, (y + bottom) * stride))
    return found, logits.T, maps


def _expected(bins: np.ndarray) -> float:
    """The mean of a distribution over 0, 1, 2, ... strides; a single bin is the distance itself."""
    if len(bins) == 1:
        return float(bins[0])
    shares = np.exp(bins - bins.max())
    return float(sum(index * share for index, share in enumerate(shares / shares.sum())))


def overlap(a: Box, b: Box) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def pooled(level: np.ndarray, box: Box) -> np.ndarray:
    """RoIAlign (channels, h, w) at a box in cells: 3 x 3 cells of 2 x 2 points, averaged."""
    total = np.zeros(level.shape[0])
    for row in range(6):
        for column in range(6):
            y = box[1] + (box[3] - box[1]) * (row + 0.5) / 6 - 0.5
            x = box[0] + (box[2] - box[0]) * (column + 0.5) / 6 - 0.5
            y, x = min(max(y, 0), level.shape[1] - 1), min(max(x, 0), level.shape[2] - 1)
            y0, x0 = math.floor(y), math.floor(x)
            y1, x1 = min(y0 + 1, level.shape[1] - 1), min(x0 + 1, level.shape[2] - 1)
            total += level[:, y0, x0] * (y0 + 1 - y) * (x0 + 1 - x) + level[:, y0, x1] * (y0 + 1 - y) * (x - x0)
            total += level[:, y1, x0] * (y - y0) * (x0 + 1 - x) + level[:, y1, x1] * (y - y0) * (x - x0)
    return total / 36


def regions(model: Any, image: np.ndarray, section: Region) -> tuple[dict[str, np.ndarray], float]:
    """The rows of a picture, and how narrowly any of their decisions went: rounding may turn one below 1e-5."""
    stretched = model.model[-1].__class__.__name__ == "RTDETRDecoder"
    square, w, h = square_of(image, section.image_size, stretched)
    boxes, logits, maps = raw_candidates(model, square)
    decided: list[tuple[float, float]] = []  # on a candidate of which score, and how narrowly
    candidates = []
    for (x1, y1, x2, y2), scores in zip(boxes, 1 / (1 + np.exp(-logits)), strict=True):
        box = (min(max(x1, 0.0), w), min(max(y1, 0.0), h), min(max(x2, 0.0), w), min(max(y2, 0.0), h))
        sides = (box[2] - box[0] - min(1, w / 2), box[3] - box[1] - min(1, h / 2))
        decided += [(scores.max(), abs(side)) for side in sides if side]
        if min(sides) >= 0:
            candidates.append((scores.max(), int(scores.argmax()), box, scores))
    candidates = sorted(candidates, key=lambda candidate: -candidate[0])[:300]
    standing: list[Any] = []
    suppressed: list[Any] = []
    for candidate in candidates:
        rivals = [better for better in standing if better[1] == candidate[1]]
        overlaps = [overlap(better[2], candidate[2]) - section.iou for better in rivals]
        decided += [(candidate[0], abs(over)) for over in overlaps]
        # Where all is padding, anchors tie, and which of them suppresses the others is anybody's choice.
        leads = [1 - candidate[0] / better[0] for better, over in zip(rivals, overlaps, strict=True) if over > 0]
        decided.append((candidate[0], max(leads, default=1.0)))
        (suppressed if leads else standing).append(candidate)
    passing = [candidate for candidate in standing if candidate[0] >= section.confidence]
    decided += [(candidate[0], abs(candidate[0] - section.confidence)) for candidate in standing]
    number = min(max(len(passing), section.min_boxes - 1), section.max_boxes - 1)
    ranked = standing + suppressed
    chosen = ranked[:number]
    decided += [(one[0], 1 - other[0] / one[0]) for one, other in pairwise(ranked[: number + 1]) if other[0] <= one[0]]
    # With none of the suppressed chosen, what was decided on those that score less than the last one changed nothing.
    least = chosen[-1][0] if 0 < number <= len(standing) else 0.0
    narrowest = min([1.0, *(margin for score, margin in decided if score >= least)])

    whole = (0.0, 0.0, float(w), float(h))
    features, levels = [], []
    for box in [whole, *(candidate[2] for candidate in chosen)]:
        of_levels = []
        for level in maps:
            cells = level.shape[2] / section.image_size
            of_levels.append(pooled(level, tuple(side * cells for side in box)))  # type: ignore[arg-type]
        # FPN, equation 1: level 4 has stride 16.
        side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        wanted = 2 ** math.floor(4 + math.log2(side / 224)) if side else 0
        strides = [section.image_size / level.shape[2] for level in maps]
        levels.append(max([index for index, stride in enumerate(strides) if stride <= wanted], default=0))
        if section.levels == "one":
            one = of_levels[levels[-1]]
            features.append(np.concatenate([one, np.zeros(max(map(len, of_levels)) - len(one))]))
        else:
            features.append(np.concatenate(of_levels))
    shares = [candidate[3] / candidate[3].sum() for candidate in chosen]
    top = [np.argsort(-share, kind="stable")[: section.top_k] for share in shares]
    none = [0] * min(section.top_k, logits.shape[1])
    return {
        "boxes": np.array([whole, *(candidate[2] for candidate in chosen)]) / [w, h, w, h],
        "classes": np.array([-1, *(candidate[1] for candidate in chosen)]),
        "confidences": np.array([1.0, *(candidate[0] for candidate in chosen)]),
        "topk_ids": np.array([none, *top]),
        "topk_values": np.array([none, *(share[ids] for share, ids in zip(shares, top, strict=True))]),
        "levels": np.array(levels),
        "features": np.array(features),
    }, narrowest
